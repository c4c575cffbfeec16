//! The kernels and their choice at run time.
//!
//! All kernels of one [`numerics class`](Kernel::numerics_class) give the same bits: the fast ones do the operations of
//! the portable ones in the same order. The dot product of pairs is that of the instruction `VDPBF16PS` (Intel SDM
//! volume 2): the odd product first, then the even one, each fused into the f32 sum, subnormals read and written as zero.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod math;
mod multiversion;
pub mod pack;
mod portable;
pub mod quantize;
mod run;
pub mod tile;
pub mod vector;

use std::fmt;
use std::str::FromStr;

/// An instruction set to compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust, any CPU. Without a fused multiply-add in hardware it is slow, though right.
    Portable,
    /// AVX2 and FMA: two multiply-adds to f32 for a pair.
    Avx2,
    /// AVX-512 with VBMI (E4M3 look-up in registers) and BF16 (dot product of pairs).
    Avx512,
}

/// A kernel that this CPU can run; there is no other way to make one than [`Kernel::detect`] and [`Kernel::new`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernel(Level);

/// The kernel that was asked for does not run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The name is none of the known ones.
    #[error("unknown kernel `{0}`: use one of portable, avx2, avx512, or leave it out to take the fastest")]
    Unknown(String),
    /// The CPU lacks instructions.
    #[error(
        "the kernel `{0}` needs instructions that this CPU lacks: leave the kernel out to take the fastest that runs here"
    )]
    Unsupported(Level),
}

impl Kernel {
    /// The fastest kernel of this CPU.
    #[must_use]
    pub fn detect() -> Self {
        [Level::Avx512, Level::Avx2]
            .into_iter()
            .find_map(|level| Self::new(level).ok())
            .unwrap_or(Self(Level::Portable))
    }

    /// The kernel of that level.
    ///
    /// # Errors
    /// [`KernelError::Unsupported`] when the CPU lacks the instructions, or computes with them otherwise than documented.
    pub fn new(level: Level) -> Result<Self, KernelError> {
        let kernel = Self(level);
        let runs = match level {
            Level::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::is_supported() && run::agrees_with_portable(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::is_supported() && run::agrees_with_portable(kernel),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        };
        if runs {
            Ok(kernel)
        } else {
            Err(KernelError::Unsupported(level))
        }
    }

    /// The level.
    #[must_use]
    pub fn level(self) -> Level {
        self.0
    }

    /// Name of the family of kernels that give the same bits; ranks of different classes refuse to form a group.
    #[must_use]
    pub fn numerics_class(self) -> &'static str {
        "cpu-dpbf16-v1"
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

impl FromStr for Level {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<Self, KernelError> {
        match name {
            "portable" | "scalar" => Ok(Self::Portable),
            "avx2" => Ok(Self::Avx2),
            "avx512" => Ok(Self::Avx512),
            other => Err(KernelError::Unknown(other.to_owned())),
        }
    }
}
