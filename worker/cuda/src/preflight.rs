//! What is looked at before weights are read: a GPU that cannot be trusted is refused with the reason, and what it is like is
//! told.

use std::fmt;

use llamero_engine::{BackendError, DeviceReport};

use crate::device::{Device, Uuid};
use crate::error::{refused, unusable};
use crate::management::{Management, Remapping};
use crate::probe::Driver;

/// The oldest version of CUDA whose driver takes the kernels' machine code, and the oldest such driver: drivers take that of their own major version and
/// of those before (NVIDIA, "CUDA Compatibility", "Minor Version Compatibility").
const CUDA: u32 = 13;
const DRIVER: &str = "580";
/// Below this share of what its clock and bus promise, memory is slow: other GPUs of the group wait for this one in every step.
pub(crate) const SLOW: f64 = 0.7;
/// And below this one something is broken, or others use the GPU so much that a group would wait for them in every step.
const BROKEN: f64 = 0.1;

/// A GPU before its use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preflight {
    /// Name of the product.
    pub name: String,
    /// Number that stays.
    pub uuid: Uuid,
    /// Version of the driver; empty where nobody tells.
    pub driver: String,
    /// The latest version of CUDA that the driver knows.
    pub cuda: String,
    /// Bytes of memory in all.
    pub memory: u64,
    /// Bytes that nobody uses.
    pub free: u64,
    /// Clock of the multiprocessors now and at most, MHz, where it is known.
    pub clock: Option<(u32, u32)>,
    /// Memory errors that could not be corrected since the driver was loaded, where they are counted.
    pub uncorrected: Option<u64>,
    /// Rows of its memory had errors and are replaced at its next reset. Until then the driver leaves them out.
    pub is_reset_due: bool,
    /// Heat or power slows it down.
    pub is_slowed_down: bool,
    /// Bytes a second that its memory gives at its highest clock, where it is known.
    pub nominal_bandwidth: Option<u64>,
    /// Bytes a second that reading its memory gave; none before it was measured.
    pub read_bandwidth: Option<u64>,
}

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        write!(
            f,
            "{} {}, {:.1} of {:.1} GiB free, CUDA {}",
            self.name,
            self.uuid,
            gib(self.free),
            gib(self.memory),
            self.cuda
        )?;
        if !self.driver.is_empty() {
            write!(f, ", driver {}", self.driver)?;
        }
        if let Some((now, most)) = self.clock {
            write!(f, ", {now} of {most} MHz")?;
        }
        match (self.read_bandwidth, self.nominal_bandwidth) {
            (Some(read), Some(nominal)) => {
                write!(f, ", reads {:.0} of {:.0} GB/s", giga(read), giga(nominal))?
            }
            (Some(read), None) => write!(f, ", reads {:.0} GB/s", giga(read))?,
            (None, _) => {}
        }
        if let Some(errors) = self.uncorrected.filter(|errors| *errors > 0) {
            write!(f, ", {errors} uncorrectable memory errors")?;
        }
        if self.is_reset_due {
            f.write_str(", a reset is due to replace rows of its memory that had errors (`nvidia-smi --gpu-reset`, once its node is drained)")?;
        }
        if self.is_slowed_down {
            f.write_str(", slowed down by heat or power")?;
        }
        Ok(())
    }
}

impl Preflight {
    /// Look at a GPU.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] for one whose memory is damaged, [`BackendError::Unusable`] for a driver that is too old.
    pub(crate) fn of(driver: Driver, device: &Device) -> Result<Self, BackendError> {
        let cuda = driver.cuda_version()?;
        check_version(&cuda)?;
        let (free, total) = device.context.mem_get_info().map_err(refused)?;
        let known = Management::of(device.uuid).unwrap_or_else(|error| {
            tracing::warn!("{error}");
            Management::default()
        });
        let seen = Self {
            name: device.name.clone(),
            uuid: device.uuid,
            driver: known.driver.clone(),
            cuda,
            memory: total as u64,
            free: free as u64,
            clock: known.clock,
            uncorrected: known.uncorrected,
            is_reset_due: known.remapping.is_some_and(|rows| rows.is_pending),
            is_slowed_down: known.is_slowed_down,
            nominal_bandwidth: known.bandwidth,
            read_bandwidth: None,
        };
        if let Some(damage) = damage(&known) {
            return Err(BackendError::Unavailable(format!(
                "{} {} is refused: {damage}. Drain the node and reset the GPU (`nvidia-smi --gpu-reset -i {}`); if it comes again, replace it",
                seen.name, seen.uuid, seen.uuid
            )));
        }
        Ok(seen)
    }

    /// Take what reading its memory gave, and say what it is like.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] for memory that is far too slow.
    pub(crate) fn measured(self, read_bandwidth: Option<u64>) -> Result<Self, BackendError> {
        let seen = Self {
            read_bandwidth,
            ..self
        };
        if let Some(share) = seen.share().filter(|share| *share < BROKEN) {
            return Err(BackendError::Unavailable(format!(
                "{seen}: its memory gives {:.0} % of what it should. Another program may use this GPU (`nvidia-smi` on the node tells); \
                 if none does, drain the node and reset the GPU, and if it comes again, replace it",
                share * 100.0
            )));
        }
        if seen.is_slowed_down || seen.is_reset_due || seen.is_slow() {
            tracing::warn!("{seen}");
        } else {
            tracing::info!("{seen}");
        }
        Ok(seen)
    }

    /// What was read of what its memory should give.
    fn share(&self) -> Option<f64> {
        Some(self.read_bandwidth? as f64 / self.nominal_bandwidth? as f64)
    }

    fn is_slow(&self) -> bool {
        self.share().is_some_and(|share| share < SLOW)
    }

    /// The same for everybody.
    pub(crate) fn report(&self) -> DeviceReport {
        let mut warnings = Vec::new();
        if self.is_slow() {
            warnings.push(format!(
                "its memory gives {:.0} % of what it should, and the group waits for it",
                self.share().unwrap_or(0.0) * 100.0
            ));
        }
        if self.is_slowed_down {
            warnings.push("heat or power slows it down".to_owned());
        }
        if self.is_reset_due {
            warnings.push("a reset is due, to replace rows of its memory that had errors".to_owned());
        }
        DeviceReport {
            name: self.name.clone(),
            id: self.uuid.to_string(),
            driver: self.driver.clone(),
            memory: self.memory,
            read_bandwidth: self.read_bandwidth,
            nominal_bandwidth: self.nominal_bandwidth,
            uncorrected_errors: self.uncorrected,
            warning: warnings.join("; "),
            ..DeviceReport::default()
        }
    }
}

fn giga(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn check_version(cuda: &str) -> Result<(), BackendError> {
    let major = cuda.split('.').next().and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(major) if major >= CUDA => Ok(()),
        _ => Err(unusable(format!(
            "the NVIDIA driver of this node knows CUDA {cuda}, and the kernels need CUDA {CUDA}: install driver {DRIVER} or later on the node"
        ))),
    }
}

/// What is wrong with the GPU's memory. Since Ampere, rows with errors are replaced at the next reset, until which the driver leaves
/// their pages out, so that the GPU stays usable; before, any error that could not be corrected asks for a reset (NVIDIA, "GPU
/// Memory Error Management").
fn damage(known: &Management) -> Option<String> {
    match (known.remapping, known.uncorrected) {
        (Some(Remapping { has_failed: true, .. }), _) => {
            Some("rows of its memory have errors, and it has no others to replace them".into())
        }
        (None, Some(errors)) if errors > 0 => Some(format!(
            "its memory had {errors} errors that could not be corrected since the driver was loaded"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_does_not_take_the_kernels_is_told_by_its_version() {
        for taken in ["13.0", "13.5", "14.1"] {
            check_version(taken).unwrap();
        }
        for refused in ["12.9", "11.8", ""] {
            let error = check_version(refused).unwrap_err().to_string();
            assert!(error.contains(refused) && error.contains("driver 580"), "{error}");
        }
    }

    #[test]
    fn damage_is_what_leaves_no_memory_to_count_on() {
        let known = |remapping, uncorrected| {
            damage(&Management {
                remapping,
                uncorrected,
                ..Management::default()
            })
        };
        let rows = |is_pending, has_failed| {
            Some(Remapping {
                is_pending,
                has_failed,
            })
        };
        assert_eq!(known(None, None), None);
        assert_eq!(known(None, Some(0)), None);
        assert!(known(None, Some(2)).unwrap().contains("2 errors"));
        // Contained and replaced.
        assert_eq!(known(rows(false, false), Some(2)), None);
        assert_eq!(known(rows(true, false), Some(2)), None);
        assert!(known(rows(true, true), None).unwrap().contains("no others"));
    }
}
