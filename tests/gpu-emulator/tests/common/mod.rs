//! A compiled kernel on an emulated device.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError, LaunchArgs, LaunchConfig};
use cudarc::nvrtc::{CompileOptions, Ptx, compile_ptx_with_opts};

/// One kernel, ready to launch.
pub(crate) struct Gpu {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) function: CudaFunction,
}

impl Gpu {
    /// Compile `source` for any device from 8.0 on, and load `name` of it on device 0.
    pub(crate) fn new(source: &str, name: &str) -> Self {
        Self::on(0, source, name)
    }

    pub(crate) fn on(device: usize, source: &str, name: &str) -> Self {
        Self::load(device, compile(source), name)
    }

    /// Load `name` of PTX text.
    pub(crate) fn load(device: usize, ptx: Ptx, name: &str) -> Self {
        let context = CudaContext::new(device).unwrap();
        // SAFETY: everything here happens on one stream.
        unsafe { context.disable_event_tracking() };
        let module = context.load_module(ptx).unwrap();
        Self {
            stream: context.new_stream().unwrap(),
            function: module.load_function(name).unwrap(),
            context,
        }
    }
}

/// PTX for any device from 8.0 on.
pub(crate) fn compile(source: &str) -> Ptx {
    let options = CompileOptions {
        arch: Some("compute_80"),
        ..CompileOptions::default()
    };
    compile_ptx_with_opts(source, options).unwrap()
}

pub(crate) fn shape(blocks: u32, threads: u32, shared: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (blocks, 1, 1),
        block_dim: (threads, 1, 1),
        shared_mem_bytes: shared,
    }
}

/// Launch with the arguments that `add` pushes.
pub(crate) fn launch<'a>(
    gpu: &'a Gpu,
    blocks: u32,
    threads: u32,
    shared: u32,
    add: impl FnOnce(&mut LaunchArgs<'a>),
) -> Result<(), DriverError> {
    let mut args = gpu.stream.launch_builder(&gpu.function);
    add(&mut args);
    // SAFETY: the arguments are those of the kernel; the emulator checks every access.
    unsafe { args.launch(shape(blocks, threads, shared)) }.map(|_| ())
}
