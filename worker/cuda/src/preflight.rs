//! What is looked at before weights are read: a GPU that cannot be trusted is refused with the reason, and what it is like is
//! told.

use std::fmt;

use llamero_engine::BackendError;

use crate::device::{Device, Uuid};
use crate::error::refused;
use crate::management::{Management, Remapping};
use crate::probe::Driver;

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
    /// [`BackendError::Unavailable`] for one whose memory is damaged.
    pub(crate) fn of(driver: Driver, device: &Device) -> Result<Self, BackendError> {
        let (free, total) = device.context.mem_get_info().map_err(refused)?;
        let known = Management::of(device.uuid).unwrap_or_else(|error| {
            tracing::warn!("{error}");
            Management::default()
        });
        let seen = Self {
            name: device.name.clone(),
            uuid: device.uuid,
            driver: known.driver.clone(),
            cuda: driver.cuda_version().unwrap_or_default(),
            memory: total as u64,
            free: free as u64,
            clock: known.clock,
            uncorrected: known.uncorrected,
            is_reset_due: known.remapping.is_some_and(|rows| rows.is_pending),
            is_slowed_down: known.is_slowed_down,
        };
        if let Some(damage) = damage(&known) {
            return Err(BackendError::Unavailable(format!(
                "{} {} is refused: {damage}. Drain the node and reset the GPU (`nvidia-smi --gpu-reset -i {}`); if it comes again, replace it",
                seen.name, seen.uuid, seen.uuid
            )));
        }
        if seen.is_slowed_down || seen.is_reset_due {
            tracing::warn!("{seen}");
        } else {
            tracing::info!("{seen}");
        }
        Ok(seen)
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
