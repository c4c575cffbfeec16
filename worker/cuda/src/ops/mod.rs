//! One safe function for each kernel.
//!
//! Lengths are checked against shapes before a launch, so that a wrong shape is an error here and no fault on the device.
//! Everything is enqueued on the stream of [`Ops`]; nothing waits.

mod attention;
mod candidates;
pub(crate) mod exchange;
mod launch;
mod layer;
mod measure;
mod product;

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, LaunchConfig, result, sys};

pub(crate) use attention::MAX_GROUP;
pub use attention::{AttentionShape, Cache, Places};
pub use candidates::{NOTHING, SEGMENT, TILE, TOP, mask_words};
pub use layer::{Added, LayerCount, Received, RootValues, Roots, RopeShape};
pub use product::{Element, Leaves, MAX_ROWS, Weights};

use crate::compile::{KernelError, Modules};
use crate::device::Device;
use crate::probe::describe;
use crate::source::Source;
use launch::Kernel;

/// A launch was refused.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// A buffer does not have what the shape needs, or the shape is one that no kernel was written for.
    #[error("{0}")]
    Shape(String),
    /// The kernel cannot be had.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The driver refuses or reports an earlier fault.
    #[error("the NVIDIA driver: {}", describe(*.0))]
    Driver(DriverError),
}

impl From<DriverError> for OpError {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

/// Kernels of one device on one stream.
#[derive(Debug)]
pub struct Ops {
    modules: Modules,
    kernels: HashMap<&'static str, Kernel>,
    stream: Arc<CudaStream>,
}

impl Ops {
    /// Load kernels as they are used.
    ///
    /// # Errors
    /// [`OpError::Driver`] when there is no stream.
    pub fn new(modules: Modules) -> Result<Self, OpError> {
        let stream = modules.device().context.new_stream()?;
        Ok(Self {
            modules,
            kernels: HashMap::new(),
            stream,
        })
    }

    /// The stream that orders all work.
    #[must_use]
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    fn kernel(&mut self, source: Source, name: &'static str) -> Result<Kernel, OpError> {
        if let Some(kernel) = self.kernels.get(name) {
            return Ok(kernel.clone());
        }
        let kernel = Kernel {
            function: self.modules.kernel(source, name)?,
            waits_by_itself: self.device().capability >= (9, 0) && !WAITED_FOR.contains(&name),
        };
        self.kernels.insert(name, kernel.clone());
        Ok(kernel)
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.modules.device()
    }

    /// A buffer's address, for a struct of parameters. All work is on one stream, so no event has to guard it.
    pub(crate) fn address<T>(&self, buffer: &impl DevicePtr<T>) -> u64 {
        buffer.device_ptr(&self.stream).0
    }

    /// Copy words to the device: to `address` in a buffer that has room for as many. `from` is pinned memory that lives until the step is done.
    ///
    /// # Errors
    /// [`OpError::Driver`].
    pub(crate) fn upload(&self, from: &[u32], address: u64) -> Result<(), OpError> {
        // SAFETY: as the caller says of both ends.
        unsafe { result::memcpy_htod_async(address, from, self.stream.cu_stream()) }.map_err(OpError::Driver)
    }

    /// Set the first `count` values of a buffer to these bits.
    ///
    /// # Errors
    /// [`OpError`].
    pub(crate) fn fill_words(&self, to: &mut CudaSlice<f32>, count: usize, bits: u32) -> Result<(), OpError> {
        at_least("what is filled", to, count)?;
        let address = self.address(to);
        // SAFETY: the buffer has as many words.
        unsafe { sys::cuMemsetD32Async(address, bits, count, self.stream.cu_stream()) }.result()?;
        Ok(())
    }

    /// Load every kernel, so that none is compiled while somebody waits for an answer.
    ///
    /// # Errors
    /// [`OpError::Kernel`].
    pub fn load_all(&mut self) -> Result<(), OpError> {
        for (source, names) in KERNELS {
            for name in names {
                self.kernel(source, name)?;
            }
        }
        Ok(())
    }
}

/// Kernels that do not wait by themselves for the one before them. All others do, from Hopper on (`tests/compile.rs`).
pub const WAITED_FOR: [&str; 3] = ["try_writes", "fill_random", "read_all"];

/// All kernels of a serving rank.
const KERNELS: [(Source, &[&str]); 5] = [
    (Source::Product, &product::VARIANTS),
    (Source::Layer, &layer::KERNELS),
    (Source::Attention, &attention::KERNELS),
    (Source::Candidates, &candidates::KERNELS),
    (Source::Exchange, &exchange::KERNELS),
];

/// An error when a buffer is shorter than the kernel will reach.
fn at_least<T>(what: &str, buffer: &impl DevicePtr<T>, needed: usize) -> Result<(), OpError> {
    if buffer.len() >= needed {
        return Ok(());
    }
    Err(OpError::Shape(format!(
        "{what} has {} elements, {needed} are needed",
        buffer.len()
    )))
}

/// A size as a kernel takes it.
fn word(what: &str, value: usize) -> Result<u32, OpError> {
    u32::try_from(value).map_err(|_| OpError::Shape(format!("{what} of {value} is too large")))
}

fn shape(grid: (u32, u32, u32), threads: u32, shared: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: grid,
        block_dim: (threads, 1, 1),
        shared_mem_bytes: shared,
    }
}

/// Parameters that a kernel takes as one struct.
///
/// # Safety
/// `repr(C)`, with the layout that the kernel declares.
unsafe trait Parameters: Copy {}

/// Lets a struct of parameters be an argument.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct ByValue<T>(T);

// SAFETY: `Parameters` promises the layout, and `ByValue` adds nothing to it.
unsafe impl<T: Parameters> DeviceRepr for ByValue<T> {}
