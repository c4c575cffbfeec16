//! The collective of a rank that has no peers.

use std::sync::Arc;

use llamero_engine::{Abort, Collective, CollectiveError, Era, LeafLayout};

/// A group of one rank.
#[derive(Debug, Clone, Copy, Default)]
pub struct Solo {
    era: Era,
}

impl Solo {
    /// The only rank of `era`.
    #[must_use]
    pub fn new(era: Era) -> Self {
        Self { era }
    }
}

/// There is nothing to wait for.
struct NeverWaits;

impl Abort for NeverWaits {
    fn abort(&self) {}
}

fn no_peer(rank: u32) -> CollectiveError {
    CollectiveError::PeerLost {
        rank,
        reason: "this rank is alone in its group".to_owned(),
    }
}

impl Collective for Solo {
    type Buffer = [f32];

    fn world(&self) -> u32 {
        1
    }

    fn rank(&self) -> u32 {
        0
    }

    fn era(&self) -> Era {
        self.era
    }

    fn begin_step(&mut self, _step: u64) {}

    fn reduce_tree(
        &mut self,
        _layout: &LeafLayout,
        rows: usize,
        width: usize,
        roots: &[f32],
        out: &mut [f32],
    ) -> Result<(), CollectiveError> {
        out[..rows * width].copy_from_slice(&roots[..rows * width]);
        Ok(())
    }

    fn all_gather(&mut self, counts: &[usize], mine: &[f32], out: &mut [f32]) -> Result<(), CollectiveError> {
        let count = counts.first().copied().unwrap_or(0);
        out[..count].copy_from_slice(&mine[..count]);
        Ok(())
    }

    fn send(&mut self, to: u32, _data: &[f32]) -> Result<(), CollectiveError> {
        Err(no_peer(to))
    }

    fn recv(&mut self, from: u32, _data: &mut [f32]) -> Result<(), CollectiveError> {
        Err(no_peer(from))
    }

    fn abort_handle(&self) -> Arc<dyn Abort> {
        Arc::new(NeverWaits)
    }
}
