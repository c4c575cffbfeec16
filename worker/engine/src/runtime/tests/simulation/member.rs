//! A member of a simulated group.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use crate::mesh::{Abort, Label, Members, Mesh, MeshError, Message, Transfer, Wait};
use crate::runtime::member::link::Incoming;
use crate::runtime::member::steps::{MemberSteps, Taken};
use crate::runtime::tests::fake::Fake;
use crate::step::Era;

/// A mesh on which nothing travels.
pub(super) struct Silent {
    pub(super) members: Members,
    pub(super) rank: u32,
    pub(super) era: Era,
}

struct NoAbort;

impl Abort for NoAbort {
    fn abort(&self) {}
}

impl Mesh for Silent {
    fn members(&self) -> &Members {
        &self.members
    }
    fn rank(&self) -> u32 {
        self.rank
    }
    fn era(&self) -> Era {
        self.era
    }
    fn is_local(&self, _peer: u32) -> bool {
        false
    }
    fn exchange(&mut self, _: Label, _: &mut [Transfer<'_>], _: Wait) -> Result<(), MeshError> {
        Err(MeshError::Aborted)
    }
    fn listen(&mut self, _: &[u32]) -> Result<(), MeshError> {
        Err(MeshError::Aborted)
    }
    fn fail(&mut self, _: u64, _: &MeshError) {}
    fn send_files(&mut self, peer: u32, _: &[BorrowedFd<'_>], _: Instant) -> Result<(), MeshError> {
        Err(MeshError::NotLocal { rank: peer })
    }
    fn receive_files(&mut self, peer: u32, _: usize, _: Instant) -> Result<Vec<OwnedFd>, MeshError> {
        Err(MeshError::NotLocal { rank: peer })
    }
    fn abort_handle(&self) -> Arc<dyn Abort> {
        Arc::new(NoAbort)
    }
}

pub(super) struct Member {
    pub(super) backend: Fake,
    pub(super) steps: MemberSteps,
    pub(super) incoming: Receiver<Incoming>,
    pub(super) outgoing: VecDeque<(u64, Message)>,
}

impl Member {
    /// Take one message, or compute when there is none. False when there is nothing to do.
    pub(super) fn act(&mut self, now: Instant) -> bool {
        match self.incoming.try_recv() {
            Ok(incoming) => {
                let (step, message) = incoming.unwrap();
                match self.steps.take(&mut self.backend, step, message).unwrap() {
                    Taken::Nothing => {}
                    Taken::LoadAdapter(_) => panic!("nobody loads an adapter here"),
                    Taken::Answer(answer) => self.outgoing.push_back((step, answer)),
                    Taken::Leave => panic!("nobody leaves here"),
                }
                true
            }
            Err(_) => self.compute(now),
        }
    }

    /// Compute without looking for messages, as one does while they travel.
    pub(super) fn compute(&mut self, now: Instant) -> bool {
        let can = self.steps.can_advance();
        if let Some((step, output)) = self.steps.advance(&mut self.backend, now).unwrap() {
            self.outgoing.push_back((step, Message::Output(output)));
        }
        can
    }
}
