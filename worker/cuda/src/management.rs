//! NVIDIA's management library, `libnvidia-ml.so.1`: the state of a GPU beside what computes on it.
//!
//! NVML API Reference Guide, "Device Queries". The container toolkit gives it to a container whose driver capabilities name
//! `utility`.

use std::ffi::{CString, c_char, c_int, c_uint, c_ulonglong, c_void};

use libloading::{Library, Symbol};

use crate::device::Uuid;

/// Its name.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// `nvmlReturn_t`.
const SUCCESS: c_uint = 0;
/// Room for a version: `NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE`.
const VERSION: usize = 80;
/// `NVML_CLOCK_SM` and `NVML_CLOCK_MEM`.
const SM_CLOCK: c_uint = 1;
const MEMORY_CLOCK: c_uint = 2;
/// Bits that memory moves in a clock, for each line of its bus: all kinds of memory of these GPUs move two.
const PER_CLOCK: u64 = 2;
/// `NVML_MEMORY_ERROR_TYPE_UNCORRECTED`, and those since the driver was loaded: `NVML_VOLATILE_ECC`.
const UNCORRECTED: c_uint = 1;
const SINCE_LOADED: c_uint = 0;
/// `nvmlClocksThrottleReasonHwSlowdown`, `…HwThermalSlowdown` and `…HwPowerBrakeSlowdown`.
const SLOWED_DOWN: c_ulonglong = 0x8 | 0x40 | 0x80;

/// A state that cannot be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ManagementError {
    /// It is not there.
    #[error(
        "{LIBRARY} was not found, so that errors and clocks of GPUs are not known: let NVIDIA's container toolkit give it to \
         the container (NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
    )]
    Absent,
    /// It refuses.
    #[error("{LIBRARY}: {call} gives error {code}")]
    Call {
        /// The function.
        call: &'static str,
        /// `nvmlReturn_t`.
        code: u32,
    },
    /// It has no such function.
    #[error("{LIBRARY} has no {0}: the driver is too old")]
    Function(&'static str),
}

/// What is known of a GPU. What it has no counters for is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Management {
    /// Version of the driver, such as `570.124.06`.
    pub(crate) driver: String,
    /// Memory errors that could not be corrected, since the driver was loaded.
    pub(crate) uncorrected: Option<u64>,
    /// Rows of memory wait for a reset to be replaced; some cannot be.
    pub(crate) remapping: Option<Remapping>,
    /// Clock of the multiprocessors now and at most, MHz.
    pub(crate) clock: Option<(u32, u32)>,
    /// Heat or power slows it down.
    pub(crate) is_slowed_down: bool,
    /// Bytes a second that its memory gives at its highest clock.
    pub(crate) bandwidth: Option<u64>,
}

/// Rows of memory that are replaced because of errors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Remapping {
    pub(crate) is_pending: bool,
    pub(crate) has_failed: bool,
}

pub(crate) type Device = *mut c_void;

pub(crate) struct Nvml(Library);

impl Nvml {
    pub(crate) fn open() -> Result<Self, ManagementError> {
        // SAFETY: loading a library runs its initialisers; NVIDIA's are made for it.
        let library = unsafe { Library::new(LIBRARY) }.map_err(|_| ManagementError::Absent)?;
        let nvml = Self(library);
        // SAFETY: the type is that of the function.
        let init = unsafe { nvml.function::<unsafe extern "C" fn() -> c_uint>("nvmlInit_v2") }?;
        // SAFETY: it takes nothing.
        check("nvmlInit_v2", unsafe { init() })?;
        Ok(nvml)
    }

    /// # Safety
    /// `F` must be the function's type.
    pub(crate) unsafe fn function<F>(&self, name: &'static str) -> Result<Symbol<'_, F>, ManagementError> {
        // SAFETY: the caller's promise.
        unsafe { self.0.get(name.as_bytes()) }.map_err(|_| ManagementError::Function(name))
    }

    fn driver_version(&self) -> Result<String, ManagementError> {
        type Call = unsafe extern "C" fn(*mut c_char, c_uint) -> c_uint;
        let name = "nvmlSystemGetDriverVersion";
        // SAFETY: the type is that of the function.
        let call = unsafe { self.function::<Call>(name) }?;
        let mut text = [0 as c_char; VERSION];
        // SAFETY: it writes at most so many bytes.
        check(name, unsafe { call(text.as_mut_ptr(), VERSION as c_uint) })?;
        let bytes = text.iter().map(|byte| byte.cast_unsigned());
        let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) fn device(&self, uuid: Uuid) -> Result<Device, ManagementError> {
        type Call = unsafe extern "C" fn(*const c_char, *mut Device) -> c_uint;
        let name = "nvmlDeviceGetHandleByUUID";
        // SAFETY: the type is that of the function.
        let call = unsafe { self.function::<Call>(name) }?;
        let text = CString::new(uuid.to_string()).unwrap_or_default();
        let mut device = std::ptr::null_mut();
        // SAFETY: a text that ends, and a place for the handle.
        check(name, unsafe { call(text.as_ptr(), &raw mut device) })?;
        Ok(device)
    }

    fn uncorrected(&self, device: Device) -> Result<u64, ManagementError> {
        type Call = unsafe extern "C" fn(Device, c_uint, c_uint, *mut c_ulonglong) -> c_uint;
        let name = "nvmlDeviceGetTotalEccErrors";
        // SAFETY: the type is that of the function.
        let call = unsafe { self.function::<Call>(name) }?;
        let mut count = 0;
        // SAFETY: a handle that it gave, and a place for the number.
        check(name, unsafe {
            call(device, UNCORRECTED, SINCE_LOADED, &raw mut count)
        })?;
        Ok(count)
    }

    fn remapping(&self, device: Device) -> Result<Remapping, ManagementError> {
        type Call =
            unsafe extern "C" fn(Device, *mut c_uint, *mut c_uint, *mut c_uint, *mut c_uint) -> c_uint;
        let name = "nvmlDeviceGetRemappedRows";
        // SAFETY: the type is that of the function.
        let call = unsafe { self.function::<Call>(name) }?;
        let (mut corrected, mut uncorrected, mut pending, mut failed) = (0, 0, 0, 0);
        let code = {
            let (corrected, uncorrected) = (&raw mut corrected, &raw mut uncorrected);
            // SAFETY: a handle that it gave, and places for the numbers.
            unsafe { call(device, corrected, uncorrected, &raw mut pending, &raw mut failed) }
        };
        check(name, code)?;
        Ok(Remapping {
            is_pending: pending != 0,
            has_failed: failed != 0,
        })
    }

    fn clock(&self, device: Device, name: &'static str, of: c_uint) -> Result<u32, ManagementError> {
        type Call = unsafe extern "C" fn(Device, c_uint, *mut c_uint) -> c_uint;
        // SAFETY: the type is that of both functions that it is called for.
        let call = unsafe { self.function::<Call>(name) }?;
        let mut megahertz = 0;
        // SAFETY: a handle that it gave, and a place for the number.
        check(name, unsafe { call(device, of, &raw mut megahertz) })?;
        Ok(megahertz)
    }

    fn bandwidth(&self, device: Device) -> Result<u64, ManagementError> {
        type Call = unsafe extern "C" fn(Device, *mut c_uint) -> c_uint;
        let megahertz = self.clock(device, "nvmlDeviceGetMaxClockInfo", MEMORY_CLOCK)?;
        let name = "nvmlDeviceGetMemoryBusWidth";
        // SAFETY: the type is that of the function.
        let call = unsafe { self.function::<Call>(name) }?;
        let mut bits = 0;
        // SAFETY: a handle that it gave, and a place for the number.
        check(name, unsafe { call(device, &raw mut bits) })?;
        Ok(u64::from(megahertz) * 1_000_000 * PER_CLOCK * u64::from(bits) / 8)
    }

    fn slowdown(&self, device: Device) -> Result<bool, ManagementError> {
        type Call = unsafe extern "C" fn(Device, *mut c_ulonglong) -> c_uint;
        let name = "nvmlDeviceGetCurrentClocksThrottleReasons";
        // SAFETY: the type is that of the function.
        let call = unsafe { self.function::<Call>(name) }?;
        let mut reasons = 0;
        // SAFETY: a handle that it gave, and a place for the number.
        check(name, unsafe { call(device, &raw mut reasons) })?;
        Ok(reasons & SLOWED_DOWN != 0)
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        // SAFETY: the type is that of the function, and nothing of the library is used afterwards.
        if let Ok(shutdown) = unsafe { self.function::<unsafe extern "C" fn() -> c_int>("nvmlShutdown") } {
            // SAFETY: it takes nothing.
            unsafe { shutdown() };
        }
    }
}

pub(crate) fn check(call: &'static str, code: c_uint) -> Result<(), ManagementError> {
    match code {
        SUCCESS => Ok(()),
        code => Err(ManagementError::Call { call, code }),
    }
}

impl Management {
    /// Of the GPU with this UUID. Not every GPU has every counter.
    ///
    /// # Errors
    /// [`ManagementError`]: there is no library, or it does not know the GPU.
    pub(crate) fn of(uuid: Uuid) -> Result<Self, ManagementError> {
        let nvml = Nvml::open()?;
        let device = nvml.device(uuid)?;
        let clocks = ["nvmlDeviceGetClockInfo", "nvmlDeviceGetMaxClockInfo"]
            .map(|name| nvml.clock(device, name, SM_CLOCK));
        let [now, most] = clocks;
        Ok(Self {
            driver: nvml.driver_version()?,
            uncorrected: nvml.uncorrected(device).ok(),
            remapping: nvml.remapping(device).ok(),
            clock: now.ok().zip(most.ok()),
            is_slowed_down: nvml.slowdown(device).unwrap_or(false),
            bandwidth: nvml.bandwidth(device).ok().filter(|bandwidth| *bandwidth > 0),
        })
    }
}
