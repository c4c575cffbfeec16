//! Launches.

use std::ffi::c_void;
use std::sync::Arc;

use super::{In, calls};
use crate::driver::error::{Result, fail};
use crate::driver::module::Function;
use crate::driver::state::driver;
use crate::driver::work::{KernelLaunch, Work};

/// The parameters of a launch in the layout of the kernel.
fn parameters(function: &Function, values: &In<*const c_void>, extra: *const c_void) -> Result<Vec<u8>> {
    if !extra.is_null() {
        fail!(NotSupported, "parameters come one by one, not in a buffer");
    }
    let kernel = function.kernel();
    let mut block = vec![0u8; kernel.param_bytes()];
    if kernel.params.is_empty() {
        return Ok(block);
    }
    for (index, (offset, size)) in kernel.params.iter().enumerate() {
        let value = values.get(index)?;
        if value.is_null() {
            fail!(InvalidValue, "`{}`: parameter {index} is null", kernel.name);
        }
        // SAFETY: by the C interface each pointer leads to a value of the parameter's size.
        unsafe { std::ptr::copy_nonoverlapping(value.cast(), block[*offset..].as_mut_ptr(), *size) };
    }
    Ok(block)
}

fn launch(
    function: u64,
    [grid, block]: [[u32; 3]; 2],
    (shared, stream): (u32, u64),
    (values, extra): (&In<*const c_void>, *const c_void),
    cooperative: bool,
) -> Result<()> {
    let driver = driver()?;
    let stream = driver.stream(stream)?;
    let function = driver.function(function)?;
    if function.loaded.device != stream.device {
        fail!(
            InvalidHandle,
            "the function is on device {}, the stream on {}",
            function.loaded.device,
            stream.device
        );
    }
    let launch = KernelLaunch {
        params: parameters(&function, values, extra)?,
        function,
        grid,
        block,
        shared,
        cooperative,
    };
    launch.check(driver)?;
    driver.enqueue(&stream, Work::Launch(Arc::new(launch)))
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Configuration {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: u64,
    attributes: *const Attribute,
    count: u32,
}

/// `CUlaunchAttribute`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Attribute {
    id: u32,
    padding: u32,
    value: [u32; 16],
}

/// Whether the attributes ask for a cooperative launch; those that would change what a kernel sees are refused.
fn cooperative(configuration: &Configuration) -> Result<bool> {
    let attributes = In(configuration.attributes);
    let mut cooperative = false;
    for index in 0..configuration.count as usize {
        let attribute = attributes.get(index)?;
        match attribute.id {
            // Ignore; access policy; priority; programmatic order (grids run one after the other here); domain; carve-out.
            0 | 1 | 6 | 8 | 9 | 10 | 14 => {}
            2 => cooperative = attribute.value[0] != 0,
            4 if attribute.value[..3] == [1, 1, 1] => {}
            other => fail!(
                NotSupported,
                "the emulator does not know launch attribute {other} with {:?}",
                attribute.value
            ),
        }
    }
    Ok(cooperative)
}

calls! {
    fn cuLaunchKernel(
        function: u64,
        gx: u32, gy: u32, gz: u32,
        bx: u32, by: u32, bz: u32,
        shared: u32,
        stream: u64,
        values: In<*const c_void>,
        extra: *const c_void,
    ) {
        launch(function, [[gx, gy, gz], [bx, by, bz]], (shared, stream), (&values, extra), false)
    }

    fn cuLaunchCooperativeKernel(
        function: u64,
        gx: u32, gy: u32, gz: u32,
        bx: u32, by: u32, bz: u32,
        shared: u32,
        stream: u64,
        values: In<*const c_void>,
    ) {
        launch(function, [[gx, gy, gz], [bx, by, bz]], (shared, stream), (&values, std::ptr::null()), true)
    }

    fn cuLaunchKernelEx(configuration: In<Configuration>, function: u64, values: In<*const c_void>, extra: *const c_void) {
        let configuration = configuration.get(0)?;
        let shape = [configuration.grid, configuration.block];
        let cooperative = cooperative(&configuration)?;
        launch(function, shape, (configuration.shared, configuration.stream), (&values, extra), cooperative)
    }
}
