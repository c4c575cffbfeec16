//! Shows that what ranks write to each other's memory arrives, before a group counts as formed.
//!
//! The driver says that GPUs reach each other also where an IOMMU translates their addresses, or where a PCIe switch's access
//! control (ACS) sends them a way on which they are lost (NCCL's documentation, "Troubleshooting", "PCI Access Control
//! Services"). Nothing tells of it then: a step would wait for its deadline, or read what nobody wrote.

use std::time::{Duration, Instant};

use cudarc::driver::{CudaStream, result};
use llamero_engine::mesh::local::all_to_all_among;
use llamero_engine::{BackendError, Label, Mesh};

use super::share::{Area, stage_peers};
use crate::device::Uuid;
use crate::error::{refused, unusable};
use crate::ops::Ops;
use crate::ops::exchange::Areas;
use crate::probe::describe;

/// Tags of the two messages: that all is written, and what has arrived.
const WRITTEN: Label = Label { step: 0, tag: 1 };
const ARRIVED: Label = Label { step: 0, tag: 2 };

/// Between two looks at the GPU.
const NAP: Duration = Duration::from_micros(200);
const WAY_OUT: &str = "turn off PCIe access control (ACS) on the switches between them and set the IOMMU to pass-through, use GPUs that NVLink connects, or one rank";

/// What one GPU writes does not arrive in the memory of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "what {from} of rank {from_rank} writes to the memory of {to} of rank {to_rank} is lost, though the driver says that they reach \
     each other: {WAY_OUT}"
)]
struct WritesLost {
    from: Uuid,
    from_rank: u32,
    to: Uuid,
    to_rank: u32,
}

/// Wait for what was enqueued. Writes on a wrong way may also fault, or never end: then this process does, since no call of the driver takes them back.
fn ended(stream: &CudaStream, patience: Duration) -> Result<(), BackendError> {
    let end = stream.record_event(None).map_err(refused)?;
    let until = Instant::now() + patience;
    loop {
        match end.try_is_complete() {
            Ok(true) => return Ok(()),
            Ok(false) if Instant::now() < until => std::thread::park_timeout(NAP),
            Ok(false) => {
                tracing::error!(
                    "writing to the memory of the group's other GPUs has not ended after {patience:?}: {WAY_OUT}. This process ends, for another one to have the GPU"
                );
                std::process::abort();
            }
            Err(error) => {
                return Err(unusable(format!(
                    "writing to the memory of the group's other GPUs fails: {}. {WAY_OUT}",
                    describe(error)
                )));
            }
        }
    }
}

/// Write to all ranks of the stage, which do the same, and see that what they write arrives. All ranks find the same.
///
/// # Errors
/// [`BackendError::Unusable`], which names the two GPUs; [`BackendError::Lost`].
pub(super) fn run(
    mesh: &mut dyn Mesh,
    ops: &mut Ops,
    at: &Areas,
    shared: &[Area],
    patience: Duration,
) -> Result<(), BackendError> {
    let (stream, peers) = (ops.stream().clone(), stage_peers(mesh));
    ops.try_writes(at)?;
    ended(&stream, patience)?;
    all_to_all_among(mesh, &peers, WRITTEN, &[1], patience)?;
    let (address, count) = at.tried();
    let mut words = vec![0u32; count];
    // SAFETY: the area has these words, and they are read after the stream was waited for.
    unsafe { result::memcpy_dtoh_async(&mut words, address, stream.cu_stream()) }.map_err(refused)?;
    ended(&stream, patience)?;
    let arrived: Vec<u8> = (0..shared.len())
        .map(|from| u8::from(at.arrived(from, &words)))
        .collect();
    // Nobody begins an exchange, which writes to the same place, before everybody has read.
    let mut all = all_to_all_among(mesh, &peers, ARRIVED, &arrived, patience)?;
    let index = shared.iter().take_while(|area| area.rank < mesh.rank()).count();
    all.insert(index, arrived);
    for (to, arrived) in shared.iter().zip(&all) {
        if let Some((from, _)) = shared.iter().zip(arrived).find(|(_, arrived)| **arrived == 0) {
            let lost = WritesLost {
                from: from.gpu,
                from_rank: from.rank,
                to: to.gpu,
                to_rank: to.rank,
            };
            return Err(unusable(lost.to_string()));
        }
    }
    Ok(())
}
