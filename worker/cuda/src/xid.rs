//! Errors of a GPU that the driver reports beside the calls that fail: "Xid" in the kernel's log.
//!
//! What they mean: NVIDIA, "XID Errors". They say what a failed call does not: "illegal address" may be a bug of ours or a memory
//! error, and a GPU that fell off the bus answers nothing at all.

use std::ffi::{c_uint, c_ulonglong, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llamero_engine::{DeviceBoard, DeviceReport};

use crate::device::Uuid;
use crate::management::{Device, ManagementError, Nvml, check};

/// `nvmlEventTypeXidCriticalError`.
const XID: c_ulonglong = 8;
/// `NVML_ERROR_TIMEOUT`.
const TIMEOUT: c_uint = 10;
/// `NVML_ERROR_GPU_IS_LOST`: what a wait gives as soon as a GPU is off the bus, often in place of its Xid.
const LOST: c_uint = 15;
/// The Xid of that.
const FALLEN_OFF: u32 = 79;
/// How long its begin is waited for.
const BEGIN: std::time::Duration = std::time::Duration::from_secs(5);
/// Before another try where the library itself fails.
const PAUSE: std::time::Duration = std::time::Duration::from_secs(10);
/// How long one wait lasts, in milliseconds; then the thread looks whether it is still wanted.
const PATIENCE: c_uint = 500;

const WAIT: &str = "nvmlEventSetWait_v2";

/// `nvmlEventData_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct EventData {
    device: Device,
    kind: c_ulonglong,
    number: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// A thread that writes what it hears to a board. It ends some time after this is dropped, and nobody waits for it: a wait for a GPU that is lost may
/// never end.
#[derive(Debug, Default)]
pub(crate) struct XidWatch {
    is_over: Arc<AtomicBool>,
}

impl XidWatch {
    /// Listen to the GPU with this UUID. Where nobody tells (a part of a GPU, an old driver), the log says so and nothing is heard.
    pub(crate) fn new(uuid: Uuid, board: Arc<DeviceBoard>) -> Self {
        let this = Self::default();
        let is_over = Arc::clone(&this.is_over);
        let thread = std::thread::Builder::new().name("xid-watch".into());
        let (begins, begun) = std::sync::mpsc::channel();
        let started = thread.spawn(move || {
            while let Err(error) = listen(uuid, &board, &is_over, &begins) {
                if !matches!(error, ManagementError::Call { call: WAIT, .. }) {
                    tracing::info!(%uuid, "errors that the driver reports (Xid) are not heard: {error}");
                    return;
                }
                tracing::warn!(%uuid, "errors that the driver reports (Xid) are not heard for a while: {error}");
                std::thread::park_timeout(PAUSE);
            }
        });
        if let Err(error) = started {
            tracing::warn!("errors that the driver reports (Xid) are not heard: {error}");
        }
        // Or the thread has ended.
        let _ = begun.recv_timeout(BEGIN);
        this
    }
}

impl Drop for XidWatch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Events that a GPU is asked for, until this is dropped.
struct EventSet<'a> {
    nvml: &'a Nvml,
    handle: *mut c_void,
}

impl<'a> EventSet<'a> {
    fn of(nvml: &'a Nvml, device: Device) -> Result<Self, ManagementError> {
        type Create = unsafe extern "C" fn(*mut *mut c_void) -> c_uint;
        type Register = unsafe extern "C" fn(Device, c_ulonglong, *mut c_void) -> c_uint;
        let name = "nvmlEventSetCreate";
        // SAFETY: the type is that of the function.
        let create = unsafe { nvml.function::<Create>(name) }?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a place for the handle.
        check(name, unsafe { create(&raw mut handle) })?;
        let set = Self { nvml, handle };
        let name = "nvmlDeviceRegisterEvents";
        // SAFETY: the type is that of the function.
        let register = unsafe { nvml.function::<Register>(name) }?;
        // SAFETY: handles that it gave.
        check(name, unsafe { register(device, XID, set.handle) })?;
        Ok(set)
    }

    /// The next Xid; none after [`PATIENCE`].
    fn next(&self) -> Result<Option<u32>, ManagementError> {
        type Wait = unsafe extern "C" fn(*mut c_void, *mut EventData, c_uint) -> c_uint;
        let name = WAIT;
        // SAFETY: the type is that of the function.
        let wait = unsafe { self.nvml.function::<Wait>(name) }?;
        let mut data = EventData {
            device: std::ptr::null_mut(),
            kind: 0,
            number: 0,
            gpu_instance: 0,
            compute_instance: 0,
        };
        // SAFETY: a set that it gave, and a place for the event.
        match unsafe { wait(self.handle, &raw mut data, PATIENCE) } {
            TIMEOUT => Ok(None),
            LOST => Ok(Some(FALLEN_OFF)),
            code => check(name, code).map(|()| u32::try_from(data.number).ok()),
        }
    }
}

impl Drop for EventSet<'_> {
    fn drop(&mut self) {
        type Free = unsafe extern "C" fn(*mut c_void) -> c_uint;
        // SAFETY: the type is that of the function, and the set is not used afterwards.
        if let Ok(free) = unsafe { self.nvml.function::<Free>("nvmlEventSetFree") } {
            // SAFETY: a set that it gave.
            unsafe { free(self.handle) };
        }
    }
}

fn listen(
    uuid: Uuid,
    board: &DeviceBoard,
    is_over: &AtomicBool,
    begins: &std::sync::mpsc::Sender<()>,
) -> Result<(), ManagementError> {
    let nvml = Nvml::open()?;
    let set = EventSet::of(&nvml, nvml.device(uuid)?)?;
    let _ = begins.send(());
    while !is_over.load(Ordering::Relaxed) {
        let Some(number) = set.next()? else { continue };
        tracing::error!(%uuid, xid = number, "{}", sentence(number));
        board.update(|report| tell(report, number));
        if number == FALLEN_OFF {
            // Nothing more is heard of it.
            break;
        }
    }
    Ok(())
}

fn tell(report: &mut DeviceReport, number: u32) {
    report.faults += 1;
    report.last_fault = Some(number);
    if OF_PROGRAMS.contains(&number) {
        return;
    }
    let sentence = sentence(number);
    if report.warning.contains(&sentence) {
        return;
    }
    if !report.warning.is_empty() {
        report.warning.push_str("; ");
    }
    report.warning.push_str(&sentence);
}

/// Errors that a program makes, perhaps another one that shares the GPU: NVIDIA's device plugin keeps a GPU in use after them, too.
const OF_PROGRAMS: [u32; 6] = [13, 31, 43, 45, 68, 109];

/// What an Xid says, and what to do.
fn sentence(number: u32) -> String {
    let meaning = match number {
        13 | 31 => {
            "a kernel reached for memory that it does not have: a bug of the program, or damaged memory if it comes on one GPU only"
        }
        43 | 45 => "a program on it was ended",
        48 | 95 => "its memory had an error that could not be corrected: drain the node and reset the GPU",
        63 => "rows of its memory had errors and are replaced at its next reset",
        64 => "rows of its memory had errors and cannot be replaced: drain the node and replace the GPU",
        74 => {
            "an NVLink of it has failed: `nvidia-smi nvlink --status` on the node tells which; drain the node if it comes again"
        }
        79 => "it has fallen off the bus: drain the node and restart it",
        92 => {
            "its memory had many errors that were corrected: run `nvidia-smi -q -d ECC`, and replace the GPU if they go on"
        }
        94 => {
            "its memory had an error that could not be corrected, which only the program that used it notices: it starts again"
        }
        119 | 120 => "its system processor does not answer: drain the node and restart it",
        _ => "see NVIDIA's list of Xid errors",
    };
    format!("the driver reports Xid {number} of this GPU: {meaning}")
}

#[cfg(test)]
mod tests {
    use llamero_engine::DeviceReport;

    use super::{sentence, tell};

    #[test]
    fn what_was_known_before_stays_and_programs_own_errors_are_only_counted() {
        let mut report = DeviceReport {
            warning: "heat slows it down".into(),
            ..DeviceReport::default()
        };
        tell(&mut report, 43);
        assert_eq!((report.faults, report.last_fault), (1, Some(43)));
        assert_eq!(report.warning, "heat slows it down");
        tell(&mut report, 94);
        assert_eq!((report.faults, report.last_fault), (2, Some(94)));
        assert!(
            report
                .warning
                .starts_with("heat slows it down; the driver reports Xid 94"),
            "{report:?}"
        );
    }

    #[test]
    fn every_error_says_what_to_do() {
        assert!(sentence(79).contains("fallen off the bus"));
        assert!(sentence(4711).contains("Xid 4711") && sentence(4711).contains("list"));
    }
}
