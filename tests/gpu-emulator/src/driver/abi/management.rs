//! `libnvidia-ml.so.1`: what a preflight asks about devices. The same library answers under both names.

use std::ffi::{CStr, c_char};

use super::{In, Out};
use crate::driver::config::Config;
use crate::driver::device;
use crate::driver::error::{Code, Error, Result, fail};
use crate::driver::faults;
use crate::driver::log::complain;
use crate::driver::state::driver;

/// `nvmlReturn_t` of an error of the driver.
fn code_of(error: &Error) -> u32 {
    match error.code {
        Code::NotInitialized => 1,
        Code::NotSupported => 3,
        Code::NotFound | Code::InvalidDevice => 6,
        _ => 2,
    }
}

fn answer(call: &str, body: impl FnOnce() -> Result<()>) -> u32 {
    match body() {
        Ok(()) => 0,
        Err(error) => {
            complain(call, &error.reason);
            code_of(&error)
        }
    }
}

/// Define exported functions whose bodies give a [`Result`].
macro_rules! calls {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "the names of NVIDIA's management library")]
            extern "C" fn $name($($arg: $ty),*) -> u32 {
                answer(stringify!($name), move || $body)
            }
        )*
    };
}

/// `nvmlMemory_t`.
#[repr(C)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// The machine. The library may be used without the driver, in another process.
fn config() -> Result<Config> {
    match Config::from_environment() {
        Ok(config) => Ok(config),
        Err(reason) => fail!(InvalidValue, "{reason}"),
    }
}

/// Handles are numbers of devices, from 1.
fn device_of(handle: u64) -> Result<(Config, usize)> {
    let config = config()?;
    match usize::try_from(handle)
        .ok()
        .and_then(|handle| handle.checked_sub(1))
    {
        Some(device) if device < config.devices => Ok((config, device)),
        _ => fail!(InvalidDevice, "{handle:#x} is no device"),
    }
}

fn uuid_text(device: usize) -> String {
    let hex: Vec<String> = device::uuid(device)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let part = |range: std::ops::Range<usize>| hex[range].concat();
    format!(
        "GPU-{}-{}-{}-{}-{}",
        part(0..4),
        part(4..6),
        part(6..8),
        part(8..10),
        part(10..16)
    )
}

calls! {
    fn nvmlInit_v2() {
        config().map(|_| ())
    }

    fn nvmlShutdown() {
        Ok(())
    }

    fn nvmlSystemGetDriverVersion(text: Out<u8>, room: u32) {
        text.set_text("999.0.0-emulated", room as i32)
    }

    fn nvmlSystemGetCudaDriverVersion_v2(version: Out<i32>) {
        version.set(super::device::VERSION)
    }

    fn nvmlDeviceGetCount_v2(count: Out<u32>) {
        count.set(config()?.devices as u32)
    }

    fn nvmlDeviceGetHandleByIndex_v2(index: u32, handle: Out<u64>) {
        let (_, device) = device_of(u64::from(index) + 1)?;
        handle.set(device as u64 + 1)
    }

    fn nvmlDeviceGetHandleByUUID(uuid: In<c_char>, handle: Out<u64>) {
        uuid.get(0)?;
        // SAFETY: not null, and by the C interface ended by NUL.
        let wanted = unsafe { CStr::from_ptr(uuid.0) }.to_string_lossy();
        match (0..config()?.devices).find(|device| uuid_text(*device) == wanted) {
            Some(device) => handle.set(device as u64 + 1),
            None => fail!(NotFound, "there is no device {wanted}"),
        }
    }

    fn nvmlDeviceGetUUID(handle: u64, text: Out<u8>, room: u32) {
        text.set_text(&uuid_text(device_of(handle)?.1), room as i32)
    }

    fn nvmlDeviceGetName(handle: u64, text: Out<u8>, room: u32) {
        text.set_text(&device::name(&device_of(handle)?.0), room as i32)
    }

    fn nvmlDeviceGetCudaComputeCapability(handle: u64, major: Out<i32>, minor: Out<i32>) {
        let (config, _) = device_of(handle)?;
        major.set(config.capability.0 as i32)?;
        minor.set(config.capability.1 as i32)
    }

    // Of what other processes use nothing is known.
    fn nvmlDeviceGetMemoryInfo(handle: u64, memory: Out<Memory>) {
        let (config, device) = device_of(handle)?;
        let used = driver().map_or(0, |driver| driver.tables().memory.used(device));
        memory.set(Memory { total: config.memory, free: config.memory - used, used })
    }

    fn nvmlDeviceGetEccMode(handle: u64, current: Out<u32>, pending: Out<u32>) {
        device_of(handle)?;
        current.set(1)?;
        pending.set(1)
    }

    fn nvmlDeviceGetTotalEccErrors(handle: u64, kind: u32, _counter: u32, errors: Out<u64>) {
        let (config, _) = device_of(handle)?;
        let launches = driver().map_or(0, |driver| driver.launches.load(std::sync::atomic::Ordering::Relaxed));
        // 1: uncorrected ones.
        errors.set(u64::from(kind == 1 && faults::ecc_happened(&config.faults, launches)))
    }

    // Rows with errors that no others can replace.
    fn nvmlDeviceGetRemappedRows(handle: u64, corrected: Out<u32>, uncorrected: Out<u32>, pending: Out<u32>, failed: Out<u32>) {
        let (config, _) = device_of(handle)?;
        let launches = driver().map_or(0, |driver| driver.launches.load(std::sync::atomic::Ordering::Relaxed));
        let rows = u32::from(faults::ecc_happened(&config.faults, launches));
        corrected.set(0)?;
        uncorrected.set(rows)?;
        pending.set(0)?;
        failed.set(rows)
    }

    fn nvmlDeviceGetClockInfo(handle: u64, kind: u32, megahertz: Out<u32>) {
        device_of(handle)?;
        megahertz.set(if kind == 2 { 2619 } else { 1980 })
    }

    fn nvmlDeviceGetMaxClockInfo(handle: u64, kind: u32, megahertz: Out<u32>) {
        device_of(handle)?;
        megahertz.set(if kind == 2 { 2619 } else { 1980 })
    }

    fn nvmlDeviceGetCurrentClocksThrottleReasons(handle: u64, reasons: Out<u64>) {
        device_of(handle)?;
        reasons.set(0)
    }
}

/// Texts for `nvmlReturn_t`.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the names of NVIDIA's management library")]
extern "C" fn nvmlErrorString(code: u32) -> *const c_char {
    let text = match code {
        0 => c"Success",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        6 => c"Not Found",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}
