//! A mesh over shared memory inside a pod, and over another mesh beyond it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use llamero_engine::mesh::files::swap_files;
use llamero_engine::{Abort, BackendError, Era, Label, Members, Mesh, MeshError, Transfer, Wait};

use super::peer::{Here, Peer, Progress};
use super::region::SharedRegion;

/// A rank that waits looks this often whether the era has ended: a peer that died, or left it, says so over its TCP link.
const LOOK: Duration = Duration::from_millis(5);

/// Links to the ranks of this pod in shared memory. All other links, and files, are those of the mesh below. See [`Mesh`].
pub struct SharedMesh {
    mesh: Box<dyn Mesh>,
    own: SharedRegion,
    /// This rank's number among those of its pod.
    index: usize,
    peers: BTreeMap<u32, Peer>,
    failed: Option<MeshError>,
}

impl SharedMesh {
    /// Exchange memory with all ranks of this pod, which call this too. The mesh as it is when there are none.
    ///
    /// # Errors
    /// [`BackendError::Lost`]; [`BackendError::Unusable`] when the system gives no shared memory.
    pub fn over(mut mesh: Box<dyn Mesh>, until: Instant) -> Result<Box<dyn Mesh>, BackendError> {
        let rank = mesh.rank();
        let all = mesh.members().ranks().iter().copied();
        let pod: Vec<u32> = all.filter(|peer| *peer == rank || mesh.is_local(*peer)).collect();
        if pod.len() < 2 {
            return Ok(mesh);
        }
        let unusable = |error: std::io::Error| {
            BackendError::Unusable(format!(
                "no memory can be shared with other ranks of the pod: {error}; give the pod more memory, or turn \
                 --shared-memory off"
            ))
        };
        let (own, file) = SharedRegion::create(pod.len()).map_err(unusable)?;
        let number = pod.iter().take_while(|peer| **peer < rank).count();
        let peers: Vec<u32> = pod.iter().copied().filter(|peer| *peer != rank).collect();
        let files = swap_files(&mut *mesh, &peers, file.as_fd(), until)?;
        let mut shared = BTreeMap::new();
        for (peer, file) in peers.into_iter().zip(files) {
            let index = pod.iter().take_while(|other| **other < peer).count();
            let region = SharedRegion::open(&file, pod.len()).map_err(unusable)?;
            shared.insert(peer, Peer::new(peer, index, region));
        }
        Ok(Box::new(Self {
            mesh,
            own,
            index: number,
            peers: shared,
            failed: None,
        }))
    }

    fn exchange_inside(
        &mut self,
        label: Label,
        (inside, beyond): (&mut [Transfer<'_>], &mut [Transfer<'_>]),
        wait: Wait,
    ) -> Result<(), MeshError> {
        let (start, era) = (Instant::now(), self.mesh.era());
        let here = Here {
            region: &self.own,
            index: self.index,
        };
        let mut all = Vec::with_capacity(inside.len());
        let mut peers = self.peers.values_mut();
        for transfer in inside {
            let Some(peer) = peers.find(|peer| peer.rank == transfer.peer) else {
                let (rank, reason) = (
                    transfer.peer,
                    "transfers are not in ascending order of peers".to_owned(),
                );
                return Err(MeshError::Protocol { rank, reason });
            };
            let mut progress = Progress::new(peer, label, era, transfer)?;
            progress.advance(here)?;
            all.push(progress);
        }
        // Every rank does these first, so that nobody waits here for somebody who waits below.
        if !beyond.is_empty() {
            self.mesh.exchange(label, beyond, wait)?;
        }
        let mut idle_since = Instant::now();
        loop {
            let rung = here.region.bell().rung();
            if advance(&mut all, here)? {
                idle_since = Instant::now();
                continue;
            }
            if all.iter().all(Progress::is_done) {
                return Ok(());
            }
            let now = Instant::now();
            if now.duration_since(idle_since) < wait.spin {
                std::hint::spin_loop();
                continue;
            }
            let owed: Vec<u32> = all
                .iter()
                .filter(|one| !one.is_done())
                .map(Progress::rank)
                .collect();
            let heard = self.mesh.listen(&owed);
            // What a peer wrote before it left counts.
            if heard.is_err() && advance(&mut all, here)? {
                continue;
            }
            heard?;
            if now >= wait.until {
                return Err(late(&all, wait.until.saturating_duration_since(start)));
            }
            here.region.bell().sleep(rung, LOOK.min(wait.until - now));
        }
    }
}

fn advance(all: &mut [Progress<'_>], here: Here<'_>) -> Result<bool, MeshError> {
    let mut moved = false;
    for progress in all.iter_mut().filter(|progress| !progress.is_done()) {
        moved |= progress.advance(here)?;
    }
    Ok(moved)
}

/// Blames the first peer that owes something.
fn late(all: &[Progress<'_>], wait: Duration) -> MeshError {
    let millis = u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
    let late = all
        .iter()
        .find(|progress| !progress.is_received())
        .or_else(|| all.iter().find(|progress| !progress.is_done()));
    match late {
        Some(progress) => MeshError::Deadline {
            rank: progress.rank(),
            millis,
        },
        None => MeshError::Aborted,
    }
}

impl Mesh for SharedMesh {
    fn members(&self) -> &Members {
        self.mesh.members()
    }

    fn rank(&self) -> u32 {
        self.mesh.rank()
    }

    fn era(&self) -> Era {
        self.mesh.era()
    }

    fn is_local(&self, peer: u32) -> bool {
        self.mesh.is_local(peer)
    }

    fn exchange(&mut self, label: Label, frames: &mut [Transfer<'_>], wait: Wait) -> Result<(), MeshError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let taken = frames.iter_mut().map(|frame| Transfer {
            peer: frame.peer,
            out: frame.out,
            into: frame.into.take(),
        });
        let (mut inside, mut beyond): (Vec<_>, Vec<_>) =
            taken.partition(|frame| self.peers.contains_key(&frame.peer));
        let done = if inside.is_empty() {
            self.mesh.exchange(label, &mut beyond, wait)
        } else {
            self.exchange_inside(label, (&mut inside, &mut beyond), wait)
        };
        if let Err(error) = &done {
            self.fail(label.step, error);
        }
        done
    }

    fn listen(&mut self, owed: &[u32]) -> Result<(), MeshError> {
        self.mesh.listen(owed)
    }

    fn fail(&mut self, step: u64, error: &MeshError) {
        self.mesh.fail(step, error);
        self.failed.get_or_insert_with(|| error.clone());
    }

    fn send_files(&mut self, peer: u32, files: &[BorrowedFd<'_>], until: Instant) -> Result<(), MeshError> {
        self.mesh.send_files(peer, files, until)
    }

    fn receive_files(&mut self, peer: u32, count: usize, until: Instant) -> Result<Vec<OwnedFd>, MeshError> {
        self.mesh.receive_files(peer, count, until)
    }

    fn abort_handle(&self) -> Arc<dyn Abort> {
        self.mesh.abort_handle()
    }
}
