//! One launch: a kernel's arguments and where it stands among the launches before it.

use std::ffi::c_void;

use cudarc::driver::sys::{
    CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig, cuLaunchKernelEx,
};
use cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DeviceRepr, DriverError,
    LaunchConfig,
};

use super::{ByValue, Parameters};

/// A kernel that is loaded.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    pub(super) function: CudaFunction,
    /// It waits by itself for the kernel before it (`wait_for_previous` of `common.cuh`) and may be started before that one has ended: what it does
    /// until then, and the launch itself, cost nothing (CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization").
    pub(super) waits_by_itself: bool,
}

/// A launch that is being put together.
pub(super) struct Launch<'a> {
    kernel: &'a Kernel,
    stream: &'a CudaStream,
    arguments: Vec<Argument>,
}

enum Argument {
    /// Where a value lies that outlives the launch's call.
    At(*const c_void),
    /// A buffer's address.
    Address(u64),
}

/// What a kernel takes.
pub(super) trait Push<'a, T> {
    fn arg(&mut self, value: T) -> &mut Self;
}

macro_rules! values {
    ($($ty:ty),*) => {
        $(impl<'a> Push<'a, &'a $ty> for Launch<'a> {
            fn arg(&mut self, value: &'a $ty) -> &mut Self {
                self.value(value)
            }
        })*
    };
}
values!(u32, u64, f32);

impl<'a, T: Parameters> Push<'a, &'a ByValue<T>> for Launch<'a> {
    fn arg(&mut self, value: &'a ByValue<T>) -> &mut Self {
        self.value(value)
    }
}

macro_rules! buffers {
    ($($ty:ty),*) => {
        $(impl<'a, T> Push<'a, $ty> for Launch<'a> {
            fn arg(&mut self, buffer: $ty) -> &mut Self {
                let address = buffer.device_ptr(self.stream).0;
                self.arguments.push(Argument::Address(address));
                self
            }
        })*
    };
}
buffers!(
    &'a CudaSlice<T>,
    &'a mut CudaSlice<T>,
    &'a CudaView<'a, T>,
    &'a CudaViewMut<'a, T>
);

impl<'a> Launch<'a> {
    pub(super) fn new(kernel: &'a Kernel, stream: &'a CudaStream) -> Self {
        Self {
            kernel,
            stream,
            arguments: Vec::new(),
        }
    }

    fn value<T: DeviceRepr>(&mut self, value: &'a T) -> &mut Self {
        self.arguments
            .push(Argument::At(std::ptr::from_ref(value).cast()));
        self
    }

    /// Enqueue it.
    ///
    /// # Safety
    /// The arguments are the kernel's, and it touches nothing outside of its buffers.
    ///
    /// # Errors
    /// The driver's.
    pub(super) unsafe fn launch(&mut self, shape: LaunchConfig) -> Result<(), DriverError> {
        self.stream.context().bind_to_thread()?;
        let mut places: Vec<*mut c_void> = self
            .arguments
            .iter()
            .map(|argument| match argument {
                Argument::At(place) => place.cast_mut(),
                Argument::Address(address) => std::ptr::from_ref(address).cast_mut().cast(),
            })
            .collect();
        let mut attribute = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: self.kernel.waits_by_itself.into(),
            },
        };
        let configuration = CUlaunchConfig {
            gridDimX: shape.grid_dim.0,
            gridDimY: shape.grid_dim.1,
            gridDimZ: shape.grid_dim.2,
            blockDimX: shape.block_dim.0,
            blockDimY: shape.block_dim.1,
            blockDimZ: shape.block_dim.2,
            sharedMemBytes: shape.shared_mem_bytes,
            hStream: self.stream.cu_stream(),
            attrs: &raw mut attribute,
            numAttrs: 1,
        };
        // SAFETY: the caller's promise; the driver copies arguments and attributes before it returns.
        unsafe {
            cuLaunchKernelEx(
                &raw const configuration,
                self.kernel.function.cu_function(),
                places.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
    }
}
