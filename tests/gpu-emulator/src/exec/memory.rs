//! Memory as a kernel sees it: spaces, bounds, alignment, and who read and wrote how much.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::fault::Cause;
use super::raw;
use crate::ptx::types::Space;

/// Generic addresses of shared memory start here, above what a process can map.
pub(super) const SHARED_WINDOW: u64 = 1 << 60;
/// Generic addresses of local memory.
pub(super) const LOCAL_WINDOW: u64 = 2 << 60;
/// Generic addresses of the parameter block.
pub(super) const PARAM_WINDOW: u64 = 3 << 60;
/// Offset inside a window.
pub(super) const WINDOW_MASK: u64 = (1 << 60) - 1;

/// What generic addresses of a space have more than its own.
pub(super) fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Generic | Space::Global | Space::Const => 0,
    }
}

/// The space of a generic address.
pub(super) fn space_of(address: u64) -> Space {
    match address & !WINDOW_MASK {
        SHARED_WINDOW => Space::Shared,
        LOCAL_WINDOW => Space::Local,
        PARAM_WINDOW => Space::Param,
        _ => Space::Global,
    }
}

/// A piece of global memory that kernels may touch.
#[derive(Debug)]
pub struct Region {
    base: u64,
    size: u64,
    writable: bool,
    read: AtomicU64,
    written: AtomicU64,
}

impl Region {
    /// `size` bytes at `base`.
    ///
    /// # Safety
    /// They must stay mapped readable, and writable where `writable`, for as long as a launch uses the region, and no
    /// Rust reference to them may exist meanwhile: kernels read and write them at any time.
    #[must_use]
    pub unsafe fn new(base: u64, size: u64, writable: bool) -> Self {
        Self {
            base,
            size,
            writable,
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// First address.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that kernels read from it. Lanes of one instruction that read the same element count once.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Relaxed)
    }

    /// Bytes that kernels wrote to it.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.written.load(Relaxed)
    }
}

/// All global memory of a launch.
#[derive(Debug, Default)]
pub struct Global {
    regions: Vec<Region>,
}

impl Global {
    /// Of regions that do not overlap.
    #[must_use]
    pub fn new(mut regions: Vec<Region>) -> Self {
        regions.sort_by_key(|region| region.base);
        Self { regions }
    }

    /// The regions by address, with their counters.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn find(&self, address: u64) -> Option<usize> {
        let after = self.regions.partition_point(|region| region.base <= address);
        let index = after.checked_sub(1)?;
        (address - self.regions[index].base < self.regions[index].size).then_some(index)
    }

    fn missing(&self, access: &'static str, address: u64, bytes: usize) -> Cause {
        let before = self
            .regions
            .partition_point(|region| region.base <= address)
            .checked_sub(1);
        let reason = match before.map(|index| &self.regions[index]) {
            Some(region) if address - region.base < region.size.saturating_add(1 << 20) => format!(
                "{} bytes behind the end of the {} bytes at {:#x}",
                (address + bytes as u64).saturating_sub(region.base + region.size),
                region.size,
                region.base
            ),
            _ => "nothing is allocated there".to_owned(),
        };
        Cause::OutOfBounds {
            access,
            bytes,
            space: "global",
            address,
            reason,
        }
    }
}

/// One warp's way to global memory. Remembers the last region and counts locally, so that blocks do not share counters.
pub(super) struct GlobalPort<'a> {
    global: &'a Global,
    last: usize,
    counts: Vec<(u64, u64)>,
}

impl<'a> GlobalPort<'a> {
    pub(super) fn new(global: &'a Global) -> Self {
        Self {
            global,
            last: 0,
            counts: vec![(0, 0); global.regions.len()],
        }
    }

    /// Check an access and remember its region.
    #[inline(always)]
    fn locate(&mut self, access: &'static str, address: u64, bytes: usize) -> Result<(), Cause> {
        if address & (bytes as u64 - 1) != 0 {
            return Err(Cause::Misaligned {
                access,
                bytes,
                space: "global",
                address,
            });
        }
        let inside = |region: &Region| {
            let offset = address.wrapping_sub(region.base);
            offset < region.size && region.size - offset >= bytes as u64
        };
        let hit = self.global.regions.get(self.last).is_some_and(inside);
        if !hit {
            match self.global.find(address) {
                Some(index) if inside(&self.global.regions[index]) => self.last = index,
                _ => return Err(self.global.missing(access, address, bytes)),
            }
        }
        if access != "read" && !self.global.regions[self.last].writable {
            return Err(Cause::OutOfBounds {
                access,
                bytes,
                space: "global",
                address,
                reason: "the memory is read-only".to_owned(),
            });
        }
        Ok(())
    }

    /// Check a read of `bytes` at `address`, a multiple of `bytes`. `count`: whether it is one more.
    #[inline(always)]
    pub(super) fn check_read(&mut self, address: u64, bytes: usize, count: bool) -> Result<(), Cause> {
        self.locate("read", address, bytes)?;
        if count {
            self.counts[self.last].0 += bytes as u64;
        }
        Ok(())
    }

    /// Check a write as [`Self::check_read`] does.
    #[inline(always)]
    pub(super) fn check_write(&mut self, address: u64, bytes: usize) -> Result<(), Cause> {
        self.locate("write", address, bytes)?;
        self.counts[self.last].1 += bytes as u64;
        Ok(())
    }

    /// Read a part of what [`Self::check_read`] allowed.
    #[inline(always)]
    pub(super) fn read(&mut self, address: u64, bytes: usize) -> Result<u64, Cause> {
        self.locate("read", address, bytes)?;
        // SAFETY: inside a region, which its maker promised to be mapped, and aligned.
        Ok(unsafe { raw::read(address, bytes) })
    }

    /// Write a part of what [`Self::check_write`] allowed.
    #[inline(always)]
    pub(super) fn write(&mut self, address: u64, bytes: usize, value: u64) -> Result<(), Cause> {
        self.locate("write", address, bytes)?;
        // SAFETY: inside a writable region, which its maker promised to be mapped, and aligned.
        unsafe { raw::write(address, bytes, value) };
        Ok(())
    }

    /// Atomically replace a value, and return what it was.
    pub(super) fn update(
        &mut self,
        address: u64,
        bytes: usize,
        next: impl Fn(u64) -> u64,
    ) -> Result<u64, Cause> {
        self.locate("atomic", address, bytes)?;
        let counts = &mut self.counts[self.last];
        counts.0 += bytes as u64;
        counts.1 += bytes as u64;
        // SAFETY: inside a writable region, which its maker promised to be mapped, and aligned.
        Ok(unsafe { raw::update(address, bytes, next) })
    }
}

impl Drop for GlobalPort<'_> {
    fn drop(&mut self) {
        for (region, (read, written)) in self.global.regions.iter().zip(&self.counts) {
            region.read.fetch_add(*read, Relaxed);
            region.written.fetch_add(*written, Relaxed);
        }
    }
}

/// Memory that belongs to one block, warp or launch, addressed from 0.
pub(super) struct Private<'a> {
    pub(super) space: &'static str,
    pub(super) bytes: &'a mut [u8],
}

impl Private<'_> {
    fn at(&self, access: &'static str, address: u64, bytes: usize) -> Result<usize, Cause> {
        if address & (bytes as u64 - 1) != 0 {
            return Err(Cause::Misaligned {
                access,
                bytes,
                space: self.space,
                address,
            });
        }
        match usize::try_from(address) {
            Ok(at) if at.checked_add(bytes).is_some_and(|end| end <= self.bytes.len()) => Ok(at),
            _ => Err(Cause::OutOfBounds {
                access,
                bytes,
                space: self.space,
                address,
                reason: format!("the space has {} bytes", self.bytes.len()),
            }),
        }
    }

    pub(super) fn read(&self, address: u64, bytes: usize) -> Result<u64, Cause> {
        let at = self.at("read", address, bytes)?;
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(&self.bytes[at..at + bytes]);
        Ok(u64::from_le_bytes(word))
    }

    pub(super) fn write(&mut self, address: u64, bytes: usize, value: u64) -> Result<(), Cause> {
        let at = self.at("write", address, bytes)?;
        self.bytes[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        Ok(())
    }

    /// Check that a whole vector lies inside, aligned to its size.
    pub(super) fn check(&self, access: &'static str, address: u64, bytes: usize) -> Result<(), Cause> {
        self.at(access, address, bytes).map(|_| ())
    }
}
