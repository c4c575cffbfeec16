//! `libnvidia-ml.so.1`: what a preflight asks about devices. The same library answers under both names.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{In, Out};
use crate::driver::config::Config;
use crate::driver::device;
use crate::driver::error::{Code, Error, Result, fail};
use crate::driver::faults;
use crate::driver::log::complain;
use crate::driver::state::{driver, lock};

/// `nvmlEventTypeXidCriticalError`.
const XID: u64 = 8;
/// How often a wait for an event looks whether there is one.
const LOOK: Duration = Duration::from_millis(10);
/// The Xid of a GPU that is lost.
const FALLEN_OFF: u32 = 79;
/// Lines of the bus to the memory: one, so that a clock in MHz can say little.
const BUS: u32 = 1;

/// `nvmlReturn_t` of an error of the driver.
fn code_of(error: &Error) -> u32 {
    match error.code {
        Code::NotInitialized => 1,
        Code::NotSupported => 3,
        Code::NotFound | Code::InvalidDevice => 6,
        Code::NotReady => 10,
        Code::DeviceUnavailable => 15,
        _ => 2,
    }
}

fn answer(call: &str, body: impl FnOnce() -> Result<()>) -> u32 {
    match body() {
        Ok(()) => 0,
        Err(error) => {
            // Waiting in vain is no mistake.
            if !matches!(error.code, Code::NotReady) {
                complain(call, &error.reason);
            }
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

/// `nvmlEventData_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct EventData {
    device: u64,
    kind: u64,
    number: u64,
    gpu_instance: u32,
    compute_instance: u32,
}

/// Sets of events by their handles: for each device that is listened to, how many of its errors were told.
static EVENT_SETS: Mutex<BTreeMap<u64, BTreeMap<usize, usize>>> = Mutex::new(BTreeMap::new());
static NEXT_SET: AtomicU64 = AtomicU64::new(1);

/// The next error of a device of the set that was not told yet.
fn next_xid(config: &Config, set: u64) -> Result<Option<(usize, u32)>> {
    let mut sets = lock(&EVENT_SETS);
    let Some(devices) = sets.get_mut(&set) else {
        fail!(InvalidValue, "{set:#x} is no set of events");
    };
    let launches = launches();
    for (device, told) in devices {
        if let Some(number) = faults::xids(&config.faults, launches, *device).get(*told) {
            *told += 1;
            return Ok(Some((*device, *number)));
        }
    }
    Ok(None)
}

fn launches() -> u64 {
    driver().map_or(0, |driver| driver.launches.load(Ordering::Relaxed))
}

/// MHz of a clock; that of the memory gives its bandwidth over [`BUS`] lines, two bits a clock.
fn megahertz_of(config: &Config, kind: u32) -> u32 {
    match kind {
        2 => (config.bandwidth * 8 / u64::from(BUS) / 2 / 1_000_000).max(1) as u32,
        _ => 1980,
    }
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
        version.set(config()?.driver_version())
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
        // 1: uncorrected ones.
        errors.set(u64::from(kind == 1 && faults::ecc_happened(&config.faults, launches())))
    }

    // Rows with errors that no others can replace.
    fn nvmlDeviceGetRemappedRows(handle: u64, corrected: Out<u32>, uncorrected: Out<u32>, pending: Out<u32>, failed: Out<u32>) {
        let (config, _) = device_of(handle)?;
        let rows = u32::from(faults::ecc_happened(&config.faults, launches()));
        corrected.set(0)?;
        uncorrected.set(rows)?;
        pending.set(0)?;
        failed.set(rows)
    }

    fn nvmlDeviceGetClockInfo(handle: u64, kind: u32, megahertz: Out<u32>) {
        megahertz.set(megahertz_of(&device_of(handle)?.0, kind))
    }

    fn nvmlDeviceGetMaxClockInfo(handle: u64, kind: u32, megahertz: Out<u32>) {
        megahertz.set(megahertz_of(&device_of(handle)?.0, kind))
    }

    fn nvmlDeviceGetMemoryBusWidth(handle: u64, bits: Out<u32>) {
        device_of(handle)?;
        bits.set(BUS)
    }

    fn nvmlDeviceGetCurrentClocksThrottleReasons(handle: u64, reasons: Out<u64>) {
        device_of(handle)?;
        reasons.set(0)
    }

    fn nvmlEventSetCreate(set: Out<u64>) {
        let handle = NEXT_SET.fetch_add(1, Ordering::Relaxed);
        set.set(handle)?;
        lock(&EVENT_SETS).insert(handle, BTreeMap::new());
        Ok(())
    }

    fn nvmlDeviceRegisterEvents(handle: u64, kinds: u64, set: u64) {
        let (config, device) = device_of(handle)?;
        if kinds != XID {
            fail!(NotSupported, "events {kinds:#x}; only errors ({XID}) are told");
        }
        match lock(&EVENT_SETS).get_mut(&set) {
            // What happened before is not told.
            Some(devices) => devices.insert(device, faults::xids(&config.faults, launches(), device).len()),
            None => fail!(InvalidValue, "{set:#x} is no set of events"),
        };
        Ok(())
    }

    // Of a GPU that has fallen off the bus nothing is heard any more; the code for that comes in place of its error.
    fn nvmlEventSetWait_v2(set: u64, data: Out<EventData>, milliseconds: u32) {
        let config = config()?;
        let until = Instant::now() + Duration::from_millis(milliseconds.into());
        loop {
            if let Some((device, number)) = next_xid(&config, set)? {
                if number == FALLEN_OFF {
                    fail!(DeviceUnavailable, "device {device} has fallen off the bus");
                }
                return data.set(EventData {
                    device: device as u64 + 1,
                    kind: XID,
                    number: number.into(),
                    gpu_instance: u32::MAX,
                    compute_instance: u32::MAX,
                });
            }
            if Instant::now() >= until {
                fail!(NotReady, "no event within {milliseconds} ms");
            }
            std::thread::park_timeout(LOOK);
        }
    }

    fn nvmlEventSetFree(set: u64) {
        lock(&EVENT_SETS).remove(&set);
        Ok(())
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
        10 => c"Timeout",
        15 => c"GPU is lost",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}
