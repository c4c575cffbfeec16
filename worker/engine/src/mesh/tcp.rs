//! The mesh over TCP links.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::abort_frame;
use super::contract::{Abort, Label, Mesh, MeshError, Transfer, Wait};
use super::data_link::DataLink;
use super::exchange::{Context, exchange};
use super::socket::EraAbort;
use super::{Members, Topology, files};
use crate::step::Era;

/// One link to each other rank. See [`Mesh`].
#[derive(Debug)]
pub struct TcpMesh {
    rank: u32,
    members: Members,
    era: Era,
    /// In rank order, without this rank.
    links: Vec<DataLink>,
    abort: Arc<EraAbort>,
    failed: Option<MeshError>,
}

impl TcpMesh {
    /// A mesh over one link to each other member, in any order.
    ///
    /// # Errors
    /// [`MeshError::Protocol`] when the links are not exactly one to each other member.
    pub fn new(
        rank: u32,
        members: Members,
        era: Era,
        mut links: Vec<DataLink>,
        abort: Arc<EraAbort>,
    ) -> Result<Self, MeshError> {
        links.sort_by_key(DataLink::peer);
        let peers = links.iter().map(DataLink::peer);
        let others = members.ranks().iter().copied().filter(|peer| *peer != rank);
        if members.index(rank).is_none() || !peers.clone().eq(others) {
            let reason = format!(
                "rank {rank} of {members} has links to {:?}",
                peers.collect::<Vec<_>>()
            );
            return Err(MeshError::Protocol { rank, reason });
        }
        Ok(Self {
            rank,
            members,
            era,
            links,
            abort,
            failed: None,
        })
    }

    /// The mesh of a rank that is alone in its group.
    #[must_use]
    pub fn alone(era: Era) -> Self {
        Self {
            rank: 0,
            members: Topology::tensor(1).into(),
            era,
            links: Vec::new(),
            abort: Arc::default(),
            failed: None,
        }
    }

    /// After an error every later call fails the same way, and the peers are told whom to blame.
    fn ended<T>(&mut self, step: u64, done: Result<T, MeshError>) -> Result<T, MeshError> {
        if let Err(error) = &done {
            self.fail(step, error);
        }
        done
    }

    fn local(&self, peer: u32) -> Result<(), MeshError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if !self.is_local(peer) => Err(MeshError::NotLocal { rank: peer }),
            None => Ok(()),
        }
    }
}

impl Mesh for TcpMesh {
    fn members(&self) -> &Members {
        &self.members
    }

    fn rank(&self) -> u32 {
        self.rank
    }

    fn era(&self) -> Era {
        self.era
    }

    fn is_local(&self, peer: u32) -> bool {
        self.links
            .iter()
            .any(|link| link.peer() == peer && link.is_local())
    }

    fn exchange(&mut self, label: Label, frames: &mut [Transfer<'_>], wait: Wait) -> Result<(), MeshError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let context = Context {
            label,
            era: self.era,
            wait,
            start: Instant::now(),
            abort: &self.abort,
        };
        let done = exchange(context, &mut self.links, frames);
        self.ended(label.step, done)
    }

    fn listen(&mut self, owed: &[u32]) -> Result<(), MeshError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None => abort_frame::listen(&mut self.links, &self.abort, owed),
        }
    }

    fn has_begun(&mut self, peer: u32) -> Result<bool, MeshError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None => {
                let begun = abort_frame::has_begun(&mut self.links, &self.abort, peer);
                self.ended(0, begun)
            }
        }
    }

    fn fail(&mut self, step: u64, error: &MeshError) {
        if self.failed.is_none() {
            abort_frame::send(&mut self.links, self.era, step, error);
            self.failed = Some(error.clone());
        }
    }

    fn send_files(&mut self, peer: u32, files: &[BorrowedFd<'_>], until: Instant) -> Result<(), MeshError> {
        self.local(peer)?;
        let abort = Arc::clone(&self.abort);
        let done = files::send(self, &abort, peer, files, until);
        self.ended(0, done)
    }

    fn receive_files(&mut self, peer: u32, count: usize, until: Instant) -> Result<Vec<OwnedFd>, MeshError> {
        self.local(peer)?;
        let abort = Arc::clone(&self.abort);
        let done = files::receive(self, &abort, peer, count, until);
        self.ended(0, done)
    }

    fn abort_handle(&self) -> Arc<dyn Abort> {
        self.abort.clone()
    }
}
