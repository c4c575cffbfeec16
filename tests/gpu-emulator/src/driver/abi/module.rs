//! Modules and functions.

use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;

use super::{Out, calls};
use crate::driver::device::occupancy;
use crate::driver::error::{Result, fail};
use crate::driver::module::{Function, Loaded};
use crate::driver::state::{Driver, driver};

/// First bytes of a cubin and of a fat binary.
const ELF: &[u8] = b"\x7fELF";
const FATBIN: &[u8] = &0xba55_ed50u32.to_le_bytes();

fn text<'a>(pointer: *const c_char) -> Result<&'a str> {
    if pointer.is_null() {
        fail!(InvalidValue, "a name or image is null");
    }
    // SAFETY: not null, and by the C interface ended by NUL; cubins and fat binaries begin with bytes other than NUL.
    let bytes = unsafe { CStr::from_ptr(pointer) };
    if bytes.to_bytes().starts_with(ELF) || bytes.to_bytes().starts_with(FATBIN) {
        fail!(
            NoBinaryForGpu,
            "the emulator runs PTX, not machine code: give it the PTX"
        );
    }
    match bytes.to_str() {
        Ok(text) => Ok(text),
        Err(_) => fail!(InvalidImage, "PTX and names are UTF-8"),
    }
}

fn load(image: *const c_void) -> Result<u64> {
    let driver = driver()?;
    let (_, device) = driver.current()?;
    let text = text(image.cast())?;
    let mut tables = driver.tables();
    let loaded = Loaded::new(text, device, &driver.config, &mut tables.memory)?;
    let handle = tables.handle();
    tables.modules.insert(handle, Arc::new(loaded));
    Ok(handle)
}

fn function(module: u64, name: *const c_char) -> Result<u64> {
    let driver = driver()?;
    let name = text(name)?;
    let mut tables = driver.tables();
    let Some(loaded) = tables.modules.get(&module).cloned() else {
        fail!(InvalidHandle, "{module:#x} is no module");
    };
    let Some(index) = loaded
        .module
        .kernels
        .iter()
        .position(|kernel| kernel.name == name)
    else {
        fail!(NotFound, "the module has no kernel `{name}`");
    };
    let handle = tables.handle();
    tables.functions.insert(handle, Function::new(loaded, index));
    Ok(handle)
}

impl Driver {
    /// A function by its handle.
    pub(super) fn function(&self, handle: u64) -> Result<Function> {
        match self.tables().functions.get(&handle) {
            Some(function) => Ok(function.clone()),
            None => fail!(InvalidHandle, "{handle:#x} is no function"),
        }
    }
}

fn blocks_per_multiprocessor(function: u64, threads: i32, dynamic: usize) -> Result<i32> {
    let driver = driver()?;
    let function = driver.function(function)?;
    let Some(threads) = u32::try_from(threads).ok().filter(|threads| *threads > 0) else {
        fail!(InvalidValue, "{threads} threads");
    };
    let shared = function.kernel().shared_bytes + dynamic;
    Ok(occupancy(&driver.config, threads, shared as u32) as i32)
}

calls! {
    fn cuModuleLoadData(module: Out<u64>, image: *const c_void) {
        module.set(load(image)?)
    }

    fn cuModuleLoadDataEx(module: Out<u64>, image: *const c_void, _count: u32, _options: *const u32, _values: *const *mut c_void) {
        module.set(load(image)?)
    }

    fn cuModuleUnload(module: u64) {
        let driver = driver()?;
        let (context, _) = driver.current()?;
        driver.synchronise_all(context)?;
        let mut tables = driver.tables();
        let Some(loaded) = tables.modules.remove(&module) else {
            fail!(InvalidHandle, "{module:#x} is no module");
        };
        tables.functions.retain(|_, function| !Arc::ptr_eq(&function.loaded, &loaded));
        loaded.unload(&mut tables.memory);
        Ok(())
    }

    fn cuModuleGetFunction(handle: Out<u64>, module: u64, name: *const c_char) {
        handle.set(function(module, name)?)
    }

    fn cuModuleGetGlobal_v2(address: Out<u64>, size: Out<usize>, module: u64, name: *const c_char) {
        let driver = driver()?;
        let name = text(name)?;
        let tables = driver.tables();
        let Some(loaded) = tables.modules.get(&module) else {
            fail!(InvalidHandle, "{module:#x} is no module");
        };
        let Some((_, found, bytes)) = loaded.variables.iter().find(|variable| variable.0 == name) else {
            fail!(NotFound, "the module has no variable `{name}`");
        };
        address.set_if_wanted(*found);
        size.set_if_wanted(*bytes as usize);
        Ok(())
    }

    fn cuFuncGetAttribute(value: Out<i32>, attribute: u32, function: u64) {
        let driver = driver()?;
        value.set(driver.function(function)?.attribute(attribute, &driver.config)?)
    }

    fn cuFuncSetAttribute(function: u64, attribute: u32, value: i32) {
        let driver = driver()?;
        match driver.tables().functions.get_mut(&function) {
            Some(function) => function.set_attribute(attribute, value, &driver.config),
            None => fail!(InvalidHandle, "{function:#x} is no function"),
        }
    }

    fn cuFuncSetCacheConfig(function: u64, _config: u32) {
        driver()?.function(function).map(|_| ())
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: Out<i32>, function: u64, threads: i32, dynamic: usize) {
        blocks.set(blocks_per_multiprocessor(function, threads, dynamic)?)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks: Out<i32>, function: u64, threads: i32, dynamic: usize, _flags: u32) {
        blocks.set(blocks_per_multiprocessor(function, threads, dynamic)?)
    }
}
