//! A mesh whose other ranks are not there: everybody sends zeros at once, and what this rank sends is counted.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use llamero_engine::mesh::EraAbort;
use llamero_engine::{Abort, Era, Label, Members, Mesh, MeshError, Transfer, Wait};

/// What one rank has sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    /// Exchanges, each one hop.
    pub(super) hops: u64,
    /// Bytes to all peers together.
    pub(super) bytes: u64,
}

/// See the module's description.
pub(super) struct LonelyMesh {
    members: Members,
    rank: u32,
    traffic: Arc<Mutex<Traffic>>,
    abort: Arc<EraAbort>,
}

impl LonelyMesh {
    /// Of that rank, counting into `traffic`.
    pub(super) fn new(members: Members, rank: u32, traffic: Arc<Mutex<Traffic>>) -> Self {
        Self {
            members,
            rank,
            traffic,
            abort: Arc::default(),
        }
    }
}

/// Take what was counted, and begin again.
pub(super) fn take(traffic: &Mutex<Traffic>) -> Traffic {
    std::mem::take(&mut traffic.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Mesh for LonelyMesh {
    fn members(&self) -> &Members {
        &self.members
    }

    fn rank(&self) -> u32 {
        self.rank
    }

    fn era(&self) -> Era {
        Era::default()
    }

    fn is_local(&self, _: u32) -> bool {
        false
    }

    fn exchange(&mut self, _: Label, frames: &mut [Transfer<'_>], _: Wait) -> Result<(), MeshError> {
        if frames.is_empty() {
            return Ok(());
        }
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        traffic.hops += 1;
        for frame in frames {
            traffic.bytes += frame.out.map_or(0, |out| out.len() as u64);
            if let Some(into) = &mut frame.into {
                into.fill(0);
            }
        }
        Ok(())
    }

    fn listen(&mut self, _: &[u32]) -> Result<(), MeshError> {
        Ok(())
    }

    fn fail(&mut self, _: u64, _: &MeshError) {}

    fn send_files(&mut self, rank: u32, _: &[BorrowedFd<'_>], _: Instant) -> Result<(), MeshError> {
        Err(MeshError::NotLocal { rank })
    }

    fn receive_files(&mut self, rank: u32, _: usize, _: Instant) -> Result<Vec<OwnedFd>, MeshError> {
        Err(MeshError::NotLocal { rank })
    }

    fn abort_handle(&self) -> Arc<dyn Abort> {
        self.abort.clone()
    }
}
