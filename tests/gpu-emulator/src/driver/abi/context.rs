//! Contexts.

use super::{Out, calls};
use crate::driver::config::Mode;
use crate::driver::error::fail;
use crate::driver::state::{current, driver, pop, push, set_current};

calls! {
    fn cuDevicePrimaryCtxRetain(context: Out<u64>, device: i32) {
        let driver = driver()?;
        let device = driver.device(device)?;
        if driver.config.mode != Mode::Default {
            fail!(DeviceUnavailable, "the compute mode of device {device} keeps this process out");
        }
        context.set(driver.primary(device, true)?)
    }

    fn cuDevicePrimaryCtxRelease_v2(device: i32) {
        let driver = driver()?;
        let device = driver.device(device)?;
        let handle = driver.primary(device, false)?;
        driver.release_context(handle, false)
    }

    fn cuDevicePrimaryCtxReset_v2(device: i32) {
        let driver = driver()?;
        let device = driver.device(device)?;
        let handle = driver.primary(device, false)?;
        driver.release_context(handle, true)
    }

    fn cuDevicePrimaryCtxSetFlags_v2(device: i32, _flags: u32) {
        driver()?.device(device).map(|_| ())
    }

    fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) {
        let driver = driver()?;
        let device = driver.device(device)?;
        flags.set(0)?;
        active.set(i32::from(driver.primary(device, false).is_ok()))
    }

    fn cuCtxGetCurrent(context: Out<u64>) {
        driver()?;
        context.set(current().unwrap_or(0))
    }

    fn cuCtxSetCurrent(context: u64) {
        let driver = driver()?;
        if context != 0 && !driver.tables().contexts.contains_key(&context) {
            fail!(InvalidContext, "{context:#x} is no context");
        }
        set_current(context);
        Ok(())
    }

    fn cuCtxPushCurrent_v2(context: u64) {
        driver()?;
        push(context)
    }

    fn cuCtxPopCurrent_v2(context: Out<u64>) {
        driver()?;
        context.set_if_wanted(pop()?);
        Ok(())
    }

    fn cuCtxGetDevice(device: Out<i32>) {
        device.set(driver()?.current()?.1 as i32)
    }

    fn cuCtxSynchronize() {
        let driver = driver()?;
        let (context, _) = driver.current()?;
        driver.synchronise_all(context)
    }

    fn cuCtxSetFlags(_flags: u32) {
        driver()?.current().map(|_| ())
    }

    fn cuCtxSetLimit(_limit: u32, _value: usize) {
        driver()?.current().map(|_| ())
    }

    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        driver()?.current()?;
        least.set_if_wanted(0);
        greatest.set_if_wanted(-5);
        Ok(())
    }

    fn cuCtxEnablePeerAccess(peer: u64, _flags: u32) {
        let driver = driver()?;
        let (context, device) = driver.current()?;
        let other = driver.healthy(peer)?;
        if other == device || !driver.config.peers {
            fail!(PeerAccessUnsupported, "device {device} does not reach device {other}");
        }
        let mut tables = driver.tables();
        if let Some(context) = tables.contexts.get_mut(&context) {
            if context.peers >> other & 1 != 0 {
                fail!(PeerAccessAlreadyEnabled, "device {other}");
            }
            context.peers |= 1 << other;
        }
        Ok(())
    }
}
