//! What a rank computes on: as it was found before weights were read, and as it was measured.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// A device, for people and for metrics. What is not known is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Name of the product.
    pub name: String,
    /// Identifier that stays, such as `GPU-…`.
    pub id: String,
    /// Version of the driver; empty where nobody tells.
    pub driver: String,
    /// Bytes of memory in all.
    pub memory: u64,
    /// Bytes a second that reading its memory gives, measured before weights are read.
    pub read_bandwidth: Option<u64>,
    /// Bytes a second that reading its memory should give: clock times width of the bus.
    pub nominal_bandwidth: Option<u64>,
    /// Bytes a second that this rank gives its peers in the largest exchange of a step, measured while the group forms.
    pub exchange_bandwidth: Option<u64>,
    /// Nanoseconds of the exchange of one row of a step.
    pub exchange_nanos: Option<u64>,
    /// Memory errors that could not be corrected, since the driver was loaded.
    pub uncorrected_errors: Option<u64>,
    /// Errors of the device that the driver reported since this process began ("Xid" in the kernel's log).
    pub faults: u64,
    /// Number of the last of them.
    pub last_fault: Option<u32>,
    /// What somebody should look at, in words; empty while all is well.
    pub warning: String,
}

/// Where a backend writes its report, and others read it at any time.
#[derive(Debug, Default)]
pub struct DeviceBoard(Mutex<Option<DeviceReport>>);

impl DeviceBoard {
    /// The present report; none of a rank that computes on nothing but CPUs.
    #[must_use]
    pub fn get(&self) -> Option<DeviceReport> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Change the report, which begins empty.
    pub fn update(&self, change: impl FnOnce(&mut DeviceReport)) {
        let mut report = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(report.get_or_insert_default());
    }
}
