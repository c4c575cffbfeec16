//! From the driver's words to what the engine does next.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use llamero_engine::BackendError;

use crate::device::DeviceError;
use crate::ops::OpError;
use crate::probe::{Absent, describe};

pub(crate) fn unusable(why: String) -> BackendError {
    BackendError::Unusable(why)
}

pub(crate) fn bug(why: impl Into<String>) -> BackendError {
    BackendError::Bug(why.into())
}

/// What an error of the driver means. After most of them the context is lost, and with it this process.
pub(crate) fn refused(error: DriverError) -> BackendError {
    let said = describe(error);
    match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => unusable(format!(
            "the GPU's memory is full: {said}. Lower the KV memory, the tokens in a step or the longest context, or end what \
             else uses this GPU"
        )),
        // Nothing of the configuration is wrong: another start, or another node, can help.
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE => BackendError::Unavailable(format!(
            "the GPU's memory is damaged: {said}. If it comes again, drain the node, and reset or replace the GPU"
        )),
        CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE => BackendError::Unavailable(format!(
            "an NVLink of the GPU has failed: {said}. `nvidia-smi nvlink --status` on the node tells which; if it comes again, \
             drain the node"
        )),
        CUresult::CUDA_ERROR_SYSTEM_NOT_READY => BackendError::Unavailable(format!(
            "the node's GPUs are not ready: {said}. Where NVSwitches connect them, `nvidia-fabricmanager` must run on the node"
        )),
        CUresult::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED
        | CUresult::CUDA_ERROR_PEER_ACCESS_NOT_ENABLED
        | CUresult::CUDA_ERROR_TOO_MANY_PEERS => unusable(format!(
            "the GPUs of the group cannot reach each other's memory: {said}. Use GPUs of one NVLink or PCIe switch, or fewer ranks"
        )),
        CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            BackendError::Unavailable(format!(
                "the GPU is gone: {said}. `nvidia-smi` on the node tells more"
            ))
        }
        _ => bug(format!("the NVIDIA driver says {said}")),
    }
}

impl From<DeviceError> for BackendError {
    fn from(error: DeviceError) -> Self {
        match error {
            // Whoever has it may end.
            DeviceError::Taken { .. } => Self::Unavailable(error.to_string()),
            // What passes, or is mended by another node, is tried again.
            DeviceError::Driver(refusal) => match refused(refusal) {
                passing @ Self::Unavailable(_) => passing,
                _ => unusable(error.to_string()),
            },
            other => unusable(other.to_string()),
        }
    }
}

impl From<Absent> for BackendError {
    fn from(absent: Absent) -> Self {
        match absent {
            // A node that has just started.
            Absent::NotReady(_) => Self::Unavailable(absent.to_string()),
            other => unusable(other.to_string()),
        }
    }
}

impl From<OpError> for BackendError {
    fn from(error: OpError) -> Self {
        match error {
            OpError::Driver(error) => refused(error),
            OpError::Kernel(error) => unusable(error.to_string()),
            OpError::Shape(why) => bug(why),
        }
    }
}
