//! Sending on a plan link without waiting for its peer.
//!
//! A message goes out at once as far as the socket takes it. A thread writes what it does not take, so that a peer that
//! does not read holds up nobody else. Once such a peer has read nothing for too long, the owner is told.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::contract::MeshError;
use super::control_link::{ControlLink, Frames};

/// Bytes that may wait for one peer: twice the longest frame. Those of the steps in flight are far fewer.
const MOST_WAITING: usize = 128 << 20;

/// The sending side of a plan link. Nobody else may send on that link.
pub struct Outbox {
    shared: Arc<Sending>,
}

struct Sending {
    link: Arc<ControlLink>,
    /// A peer may read nothing for so long.
    patience: Duration,
    /// Hears why the link is lost.
    lost: Box<dyn Fn(MeshError) + Send + Sync>,
    backlog: Mutex<Backlog>,
    /// Nothing is written any more.
    rests: Condvar,
}

/// What the socket has not taken.
#[derive(Default)]
struct Backlog {
    /// Oldest first, without what is being written.
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether a thread writes.
    writing: bool,
    /// Why nothing can be sent any more.
    failed: Option<MeshError>,
}

impl Outbox {
    /// Send over `link`. `lost` hears of a peer that has read nothing for `patience`, or is gone, where [`Self::send`]
    /// could not say so.
    #[must_use]
    pub fn new(
        link: Arc<ControlLink>,
        patience: Duration,
        lost: impl Fn(MeshError) + Send + Sync + 'static,
    ) -> Self {
        let shared = Sending {
            link,
            patience,
            lost: Box::new(lost),
            backlog: Mutex::default(),
            rests: Condvar::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Send what [`ControlLink::encode`] made, behind all that was sent before. Does not wait.
    ///
    /// # Errors
    /// [`MeshError`]; the link is unusable then.
    pub fn send(&self, frames: &Frames) -> Result<(), MeshError> {
        let mut backlog = self.shared.lock();
        if let Some(error) = &backlog.failed {
            return Err(error.clone());
        }
        let bytes = self.shared.link.seal(frames)?;
        let sent = if backlog.writing {
            0
        } else {
            self.shared.link.try_send(&bytes)?
        };
        let rest = bytes.get(sent..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        if backlog.bytes + rest.len() > MOST_WAITING {
            return Err(MeshError::PeerLost {
                rank: self.shared.link.peer(),
                reason: format!("it does not read what it is sent: {} bytes wait", backlog.bytes),
            });
        }
        backlog.bytes += rest.len();
        backlog.waiting.push_back(rest.to_vec());
        if !backlog.writing {
            self.start()?;
            backlog.writing = true;
        }
        Ok(())
    }

    fn start(&self) -> Result<(), MeshError> {
        let shared = Arc::clone(&self.shared);
        let rank = shared.link.peer();
        let spawned = std::thread::Builder::new()
            .name(format!("rank-{rank}-plans"))
            .spawn(move || shared.write_all());
        spawned.map(drop).map_err(|error| MeshError::PeerLost {
            rank,
            reason: format!("no thread can be started to write to it: {error}"),
        })
    }

    /// Wait until everything is sent or cannot be, at most until `until`.
    pub fn flush(&self, until: Instant) {
        let wait = until.saturating_duration_since(Instant::now());
        let rests = &self.shared.rests;
        drop(rests.wait_timeout_while(self.shared.lock(), wait, |backlog| backlog.writing));
    }
}

impl Sending {
    fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Write until nothing waits any more.
    fn write_all(&self) {
        while let Some(bytes) = self.next() {
            if let Err(error) = self.write(&bytes) {
                {
                    let mut backlog = self.lock();
                    backlog.failed = Some(error.clone());
                    backlog.writing = false;
                    backlog.waiting.clear();
                }
                self.rests.notify_all();
                (self.lost)(error);
                return;
            }
        }
    }

    fn next(&self) -> Option<Vec<u8>> {
        let mut backlog = self.lock();
        let next = backlog.waiting.pop_front();
        match &next {
            Some(bytes) => backlog.bytes -= bytes.len(),
            None => {
                backlog.writing = false;
                self.rests.notify_all();
            }
        }
        next
    }

    fn write(&self, mut bytes: &[u8]) -> Result<(), MeshError> {
        while !bytes.is_empty() {
            match self.link.try_send(bytes)? {
                0 => self.link.wait_for_room(self.patience)?,
                sent => bytes = bytes.get(sent..).unwrap_or_default(),
            }
        }
        Ok(())
    }
}
