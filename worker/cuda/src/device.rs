//! Devices.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use cudarc::driver::sys::{CUdevice_attribute, CUresult};
use cudarc::driver::{CudaContext, DriverError, result, sys};

use crate::probe::{Driver, describe};

/// `CUcomputemode`: the modes that keep processes out.
const PROHIBITED: i32 = 2;
const EXCLUSIVE_PROCESS: i32 = 3;

/// Number of a device that stays the same when devices are hidden or reordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uuid(pub [u8; 16]);

impl fmt::Display for Uuid {
    /// As `nvidia-smi -L` and Kubernetes' device plugin write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GPU")?;
        for (i, byte) in self.0.iter().enumerate() {
            let dash = if matches!(i, 0 | 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Uuid {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let wrong = || DeviceError::Uuid(text.to_owned());
        let digits: String = text.strip_prefix("GPU-").ok_or_else(wrong)?.split('-').collect();
        if digits.len() != 32 || !digits.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 16];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

/// A device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No text of this form.
    #[error("`{0}` is no UUID of a GPU; it looks like GPU-01234567-89ab-cdef-0123-456789abcdef")]
    Uuid(String),
    /// The device is not visible.
    #[error("{wanted} is not among the GPUs that this process sees ({seen}): is it given to the pod?")]
    NotSeen {
        /// The wanted one.
        wanted: Uuid,
        /// Those that are there.
        seen: String,
    },
    /// Older than what the kernels need.
    #[error(
        "{name} has compute capability {major}.{minor}; 8.0 (Ampere) or later is needed for bf16 products"
    )]
    TooOld {
        /// Name of the device.
        name: String,
        /// Compute capability.
        major: i32,
        /// Its second part.
        minor: i32,
    },
    /// Nobody may compute on it.
    #[error(
        "{name} is in the compute mode PROHIBITED, in which no process may use it: `nvidia-smi --compute-mode=DEFAULT` on the node \
         lets them"
    )]
    Prohibited {
        /// Name of the device.
        name: String,
    },
    /// One process may compute on it, and another one does.
    #[error(
        "{name} is in the compute mode EXCLUSIVE_PROCESS, and another process has it: end that one (`nvidia-smi` on the node \
         names it), or let several use it by `nvidia-smi --compute-mode=DEFAULT`"
    )]
    Taken {
        /// Name of the device.
        name: String,
    },
    /// The driver refuses.
    #[error("the NVIDIA driver refuses: {}", describe(*.0))]
    Driver(#[from] DriverError),
}

/// A device that can be used.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its primary context, kept by this process.
    pub context: Arc<CudaContext>,
    /// Number that stays.
    pub uuid: Uuid,
    /// Name of the product.
    pub name: String,
    /// Compute capability, such as (9, 0).
    pub capability: (i32, i32),
    /// Bytes in all.
    pub memory: usize,
    /// Bytes of shared memory that a block may ask for.
    pub shared_memory: u32,
}

/// All devices that this process sees.
///
/// # Errors
/// [`DeviceError::TooOld`] when one of them cannot run the kernels; [`DeviceError::Driver`].
pub fn devices(driver: Driver) -> Result<Vec<Device>, DeviceError> {
    (0..count(driver)?).map(open).collect()
}

/// The device with this number among those that this process sees, in the order of their buses, without touching the others;
/// none where there is none.
///
/// # Errors
/// As [`devices`].
pub fn at(driver: Driver, number: usize) -> Result<Option<Device>, DeviceError> {
    let ordinal = in_order_of_buses(driver)?.get(number).copied();
    ordinal.map(open).transpose()
}

/// Numbers of all devices in the order of their buses. The driver's own order, the fastest first, is that of one process and
/// its settings.
fn in_order_of_buses(driver: Driver) -> Result<Vec<usize>, DeviceError> {
    let mut all = Vec::new();
    for ordinal in 0..count(driver)? {
        let device = result::device::get(i32::try_from(ordinal).unwrap_or(0))?;
        // Parts of one GPU have one bus.
        let uuid = of_driver(result::device::get_uuid(device)?);
        all.push((bus(device)?, uuid, ordinal));
    }
    all.sort_unstable();
    Ok(all.into_iter().map(|(.., ordinal)| ordinal).collect())
}

/// Where a device is: `0000:1b:00.0`, which sorts as its numbers do.
fn bus(device: sys::CUdevice) -> Result<String, DriverError> {
    let mut text = [0; 32];
    let room = i32::try_from(text.len()).unwrap_or(0);
    // SAFETY: the driver writes at most so many bytes.
    unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), room, device) }.result()?;
    let bytes = text.iter().map(|byte| byte.cast_unsigned());
    let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    Ok(String::from_utf8_lossy(&bytes).to_ascii_lowercase())
}

/// How many devices this process sees.
///
/// # Errors
/// [`DeviceError::Driver`].
pub fn count(_driver: Driver) -> Result<usize, DeviceError> {
    Ok(usize::try_from(CudaContext::device_count()?).unwrap_or(0))
}

/// The device with this UUID, without touching the others.
///
/// # Errors
/// [`DeviceError::NotSeen`], and those of [`devices`].
pub fn find(_driver: Driver, wanted: Uuid) -> Result<Device, DeviceError> {
    if let Some(number) = number(wanted)? {
        return open(usize::try_from(number).unwrap_or(0));
    }
    let seen: Vec<String> = uuids()?.iter().map(Uuid::to_string).collect();
    Err(DeviceError::NotSeen {
        wanted,
        seen: seen.join(", "),
    })
}

/// The number of the device with this UUID among those that this process sees.
pub(crate) fn number(wanted: Uuid) -> Result<Option<i32>, DriverError> {
    let all = uuids()?;
    Ok((0..)
        .zip(all)
        .find(|(_, uuid)| *uuid == wanted)
        .map(|(number, _)| number))
}

/// The UUIDs of all devices, for which none of them needs a context.
fn uuids() -> Result<Vec<Uuid>, DriverError> {
    let uuid = |number| {
        result::device::get(number)
            .and_then(result::device::get_uuid)
            .map(of_driver)
    };
    (0..result::device::get_count()?).map(uuid).collect()
}

fn of_driver(uuid: sys::CUuuid) -> Uuid {
    Uuid(uuid.bytes.map(|byte| byte as u8))
}

fn open(ordinal: usize) -> Result<Device, DeviceError> {
    let device = result::device::get(i32::try_from(ordinal).unwrap_or(0))?;
    let mode = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE;
    // SAFETY: the driver gave the device.
    let mode = unsafe { result::device::get_attribute(device, mode) }?;
    if mode == PROHIBITED {
        let name = result::device::get_name(device)?;
        return Err(DeviceError::Prohibited { name });
    }
    let context = match CudaContext::new(ordinal) {
        Err(error) if mode == EXCLUSIVE_PROCESS && error.0 == CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            let name = result::device::get_name(device)?;
            return Err(DeviceError::Taken { name });
        }
        context => context?,
    };
    // SAFETY: each rank orders its work by one stream for kernels and events of its own; tracking every buffer would
    // cost thousands of waits a step.
    unsafe { context.disable_event_tracking() };
    let (major, minor) = context.compute_capability()?;
    let name = context.name()?;
    if major < 8 {
        return Err(DeviceError::TooOld { name, major, minor });
    }
    let shared_memory =
        context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    Ok(Device {
        shared_memory: u32::try_from(shared_memory).unwrap_or(0),
        uuid: of_driver(context.uuid()?),
        name,
        capability: (major, minor),
        memory: context.total_mem()?,
        context,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_written_as_the_tools_do() {
        let text = "GPU-01234567-89ab-cdef-0123-456789abcdef";
        assert_eq!(text.parse::<Uuid>().unwrap().to_string(), text);
        for wrong in [
            "",
            "GPU-",
            "01234567-89ab-cdef-0123-456789abcdef",
            "GPU-0123456789abcdef0123456789abcdeg",
        ] {
            assert!(
                wrong
                    .parse::<Uuid>()
                    .unwrap_err()
                    .to_string()
                    .contains("GPU-0123"),
                "{wrong}"
            );
        }
    }
}
