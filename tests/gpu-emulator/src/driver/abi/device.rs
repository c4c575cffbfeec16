//! Start, devices, errors.

use std::ffi::{c_char, c_void};

use super::{Out, calls};
use crate::driver::config::Config;
use crate::driver::device;
use crate::driver::error::{describe, fail};
use crate::driver::state::{driver, initialise};

calls! {
    fn cuInit(flags: u32) {
        if flags != 0 {
            fail!(InvalidValue, "flags must be 0");
        }
        initialise()
    }

    fn cuDriverGetVersion(version: Out<i32>) {
        match Config::from_environment() {
            Ok(config) => version.set(config.driver_version()),
            Err(reason) => fail!(InvalidValue, "{reason}"),
        }
    }

    fn cuDeviceGetCount(count: Out<i32>) {
        count.set(driver()?.config.devices as i32)
    }

    fn cuDeviceGet(device: Out<i32>, ordinal: i32) {
        device.set(driver()?.device(ordinal)? as i32)
    }

    fn cuDeviceGetName(name: Out<u8>, room: i32, device: i32) {
        let driver = driver()?;
        driver.device(device)?;
        name.set_text(&device::name(&driver.config), room)
    }

    fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: i32) {
        uuid.set(device::uuid(driver()?.device(device)?))
    }

    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: i32) {
        uuid.set(device::uuid(driver()?.device(device)?))
    }

    fn cuDeviceGetPCIBusId(id: Out<u8>, room: i32, device: i32) {
        let bus = driver()?.device(device)? + 1;
        id.set_text(&format!("0000:{bus:02x}:00.0"), room)
    }

    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) {
        let driver = driver()?;
        driver.device(device)?;
        bytes.set(driver.config.memory as usize)
    }

    fn cuDeviceGetAttribute(value: Out<i32>, attribute: u32, device: i32) {
        let driver = driver()?;
        let device = driver.device(device)?;
        value.set(device::attribute(&driver.config, device, attribute)?)
    }

    fn cuDeviceCanAccessPeer(can: Out<i32>, device: i32, peer: i32) {
        let driver = driver()?;
        let reach = driver.device(device)? != driver.device(peer)? && driver.config.peers;
        can.set(i32::from(reach))
    }

    fn cuGetErrorString(code: u32, text: Out<*const c_char>) {
        match describe(code) {
            Some((_, found)) => text.set(found.as_ptr()),
            None => fail!(InvalidValue, "{code} is no result of the emulator"),
        }
    }

    fn cuGetErrorName(code: u32, text: Out<*const c_char>) {
        match describe(code) {
            Some((found, _)) => text.set(found.as_ptr()),
            None => fail!(InvalidValue, "{code} is no result of the emulator"),
        }
    }

    // NVRTC asks for it and ends the process where the symbol is missing.
    fn cuGetExportTable(_table: Out<*const c_void>, _id: *const c_void) {
        fail!(NotFound, "there are no export tables")
    }

    fn cuGetProcAddress_v2(_symbol: *const c_char, function: Out<*mut c_void>, _version: i32, _flags: u64, status: Out<u32>) {
        function.set_if_wanted(std::ptr::null_mut());
        // 1: the symbol is not found.
        status.set_if_wanted(1);
        fail!(NotFound, "functions are found by their symbols only")
    }
}
