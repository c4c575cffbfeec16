//! Hears, beside the thread that computes, whether the era goes on, and ends the device's waits when it does not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, DriverError};
use llamero_engine::{BackendError, Label, Mesh, MeshError, StepProgress, Transfer, Wait};

use crate::error::unusable;
use crate::ops::exchange::{ABORT, AWAITED, CONTROL_WORDS, ENDED, LIMIT, TOO_LATE};
use crate::pinned::Pinned;

/// How often it listens.
const LOOK: Duration = Duration::from_millis(5);

/// The control block of a rank's exchanges, in memory of the host: see `exchange.cu`.
#[derive(Debug)]
pub(super) struct Control(Pinned<u32>);

/// What has ended a wait on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The host said so.
    ByHost,
    /// The rank with this index did not come in time.
    TooLate(usize),
}

impl Control {
    /// Waits last `limit` at most.
    pub(super) fn new(context: &Arc<CudaContext>, limit: Duration) -> Result<Self, DriverError> {
        let control = Pinned::new(context, CONTROL_WORDS)?;
        let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1);
        control.word(LIMIT).store(millis, Ordering::Release);
        Ok(Self(control))
    }

    pub(super) fn address(&self) -> u64 {
        self.0.address()
    }

    fn abort(&self) {
        self.0.word(ABORT).store(1, Ordering::Release);
    }

    fn ended(&self) -> Option<Ended> {
        match self.0.word(ENDED).load(Ordering::Acquire) {
            0 => None,
            TOO_LATE => Some(Ended::TooLate(
                self.0.word(AWAITED).load(Ordering::Acquire) as usize
            )),
            _ => Some(Ended::ByHost),
        }
    }

    fn millis(&self) -> u64 {
        self.0.word(LIMIT).load(Ordering::Acquire).into()
    }
}

struct Shared {
    control: Control,
    mesh: Mutex<Box<dyn Mesh>>,
    /// Ranks of the stage in order of their indices.
    stage: Vec<u32>,
    progress: Arc<StepProgress>,
    /// Steps are under way, for which the ranks of the stage have to be there. Frames of other stages count also when those have
    /// gone since.
    is_busy: AtomicBool,
    is_over: AtomicBool,
    /// Why the era is over.
    lost: Mutex<Option<MeshError>>,
}

/// The thread that listens. Ended when this is dropped.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    /// Listen to `mesh`, of which only [`Self::exchange`] is used from here on.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] when the system gives no thread.
    pub(super) fn new(
        mesh: Box<dyn Mesh>,
        control: Control,
        progress: Arc<StepProgress>,
    ) -> Result<Self, BackendError> {
        let members = mesh.members();
        let shared = Arc::new(Shared {
            stage: members.stage(members.topology().stage(mesh.rank())).to_vec(),
            mesh: Mutex::new(mesh),
            control,
            progress,
            is_busy: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            lost: Mutex::new(None),
        });
        let listening = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("exchange-watch".into());
        let thread = thread.spawn(move || listening.run());
        let thread = thread.map_err(|error| unusable(format!("no thread can be started: {error}")))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Whether steps are under way.
    pub(crate) fn set_busy(&self, is_busy: bool) {
        self.shared.is_busy.store(is_busy, Ordering::Release);
    }

    /// Why the era is over, where that is known.
    pub(crate) fn lost(&self) -> Option<MeshError> {
        lock(&self.shared.lost).clone()
    }

    /// The era is over for `error`, which this rank has found; its peers are told.
    pub(crate) fn fail(&self, step: u64, error: &MeshError) {
        lock(&self.shared.mesh).fail(step, error);
        self.shared.lose(error.clone());
    }

    /// Whether a peer's next frame has begun to come.
    pub(super) fn has_begun(&self, peer: u32) -> Result<bool, MeshError> {
        let begun = lock(&self.shared.mesh).has_begun(peer);
        self.known(begun)
    }

    /// Move a frame to or from one peer. Nothing is heard from the others meanwhile, of whom that peer hears.
    pub(super) fn exchange(
        &self,
        label: Label,
        transfer: Transfer<'_>,
        patience: Duration,
    ) -> Result<(), MeshError> {
        let wait = Wait {
            until: Instant::now() + patience,
            spin: Duration::ZERO,
        };
        let done = lock(&self.shared.mesh).exchange(label, &mut [transfer], wait);
        self.known(done)
    }

    fn known<T>(&self, done: Result<T, MeshError>) -> Result<T, MeshError> {
        if let Err(error) = &done {
            self.shared.lose(error.clone());
        }
        done
    }

    /// End what waits on the device, and whatever would.
    pub(crate) fn abort(&self) {
        self.shared.control.abort();
    }

    /// An error when a wait on the device has failed. What a lost peer wrote before counts, so it is none while no wait needs
    /// more of it. Of a peer that did not come in time the others are told.
    pub(crate) fn check(&self, step: u64) -> Result<(), MeshError> {
        let Some(ended) = self.shared.control.ended() else {
            return Ok(());
        };
        let known = lock(&self.shared.lost).clone();
        let error = match (known, ended) {
            (Some(error), _) => error,
            (None, Ended::ByHost) => MeshError::Aborted,
            (None, Ended::TooLate(index)) => {
                let error = MeshError::Deadline {
                    rank: self.shared.stage.get(index).copied().unwrap_or(0),
                    millis: self.shared.control.millis(),
                };
                lock(&self.shared.mesh).fail(step, &error);
                self.shared.lose(error.clone());
                error
            }
        };
        Err(error)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let peers: Vec<u32> = {
            let mesh = lock(&self.mesh);
            let all = self.stage.iter().copied();
            all.filter(|rank| *rank != mesh.rank()).collect()
        };
        while !self.is_over.load(Ordering::Acquire) {
            if self.progress.is_stopped() {
                self.control.abort();
            }
            let owed = if self.is_busy.load(Ordering::Acquire) {
                &peers[..]
            } else {
                &[]
            };
            let heard = lock(&self.mesh).listen(owed);
            if let Err(error) = heard {
                // Whoever is not told by the same one hears of it here.
                lock(&self.mesh).fail(0, &error);
                return self.lose(error);
            }
            std::thread::park_timeout(LOOK);
        }
    }

    fn lose(&self, error: MeshError) {
        lock(&self.lost).get_or_insert(error);
        self.control.abort();
    }
}
