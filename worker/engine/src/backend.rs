//! The contract between the engine and one rank's compute.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

pub use llamero_checkpoint::load::LoadProgress;

use crate::adapters::{AdapterStore, NoAdapters};
use crate::device::DeviceBoard;
#[cfg(doc)]
use crate::form::FormLimits;
use crate::form::FormSpec;
use crate::mesh::{Failure, Members, Mesh, MeshError};
use crate::step::{Era, Late, LogitShard, Plan, StepOutput};

/// Number of a step that was submitted and not yet released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What forming takes of this rank's memory, in bytes. The figures are those that `form` allocates by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights, packed.
    pub weights: u64,
    /// Activations, scratch space and exchange buffers.
    pub workspace: u64,
    /// Logits of the positions that are sampled, of every step in flight.
    pub logits: u64,
    /// Tables of rotary angles.
    pub rope: u64,
    /// Adapters, as many and as large as may be loaded.
    pub adapters: u64,
    /// One KV block, padding included.
    pub kv_block: u64,
}

impl MemoryPlan {
    /// Bytes of everything but KV blocks.
    #[must_use]
    pub fn fixed(&self) -> u64 {
        [
            self.weights,
            self.workspace,
            self.logits,
            self.rope,
            self.adapters,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }

    /// KV blocks that `bytes` hold.
    #[must_use]
    pub fn blocks(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.checked_div(self.kv_block).unwrap_or(0)).unwrap_or(u32::MAX)
    }
}

/// What the rank can hold after forming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCapacity {
    /// KV blocks of [`FormLimits::block_size`] tokens. The leader uses the smallest number of any rank.
    pub blocks: u32,
    /// The era in which steps were last submitted, when all blocks still hold what they held when it ended: those that no
    /// unfinished step of it was to write can be read. None when they hold nothing.
    pub kept: Option<Era>,
}

/// Watches and ends a load from outside.
pub trait LoadWatch {
    /// Hear of progress.
    fn progress(&self, progress: LoadProgress);
    /// Whether to stop; asked at least once a chunk. `load` then fails with [`BackendError::Cancelled`].
    fn is_cancelled(&self) -> bool;
}

/// Nobody watches: a load that goes on to its end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl LoadWatch for Unwatched {
    fn progress(&self, _: LoadProgress) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Why a rank could not do what was asked. The kind decides what happens next.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A peer was lost, stalled or spoke garbage, or the wait was ended: the group forms again.
    #[error(transparent)]
    Lost(#[from] MeshError),
    /// It can never work as configured: checkpoint, shape, memory, device. The process exits, and the sentence says what to
    /// change.
    #[error("{0}")]
    Unusable(String),
    /// What it needs cannot be had now: a network or a disk does not answer. The process exits and is started again.
    #[error("{0}")]
    Unavailable(String),
    /// The contract was broken or an invariant does not hold. The process exits.
    #[error("this is a bug: {0}")]
    Bug(String),
    /// [`LoadWatch::is_cancelled`].
    #[error("loading was cancelled")]
    Cancelled,
}

impl From<llamero_checkpoint::Error> for BackendError {
    fn from(error: llamero_checkpoint::Error) -> Self {
        match error.is_passing() {
            true => Self::Unavailable(error.to_string()),
            false => Self::Unusable(error.to_string()),
        }
    }
}

impl From<&BackendError> for Failure {
    fn from(error: &BackendError) -> Self {
        match error {
            BackendError::Lost(lost) => Self::Lost(lost.clone()),
            error => Self::Exits(error.to_string()),
        }
    }
}

/// What waiting for a step gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Waited {
    /// The step is computed.
    Done(StepOutput),
    /// The step needs [`Late::Sampling`] before it can go on.
    NeedsSampling,
    /// Not yet: the time is over.
    Pending,
}

/// Counts what a rank computes, so that a slow step is told from a hang. Shared with who watches the rank.
#[derive(Debug, Default)]
pub struct StepProgress {
    layers: AtomicU64,
    stop: AtomicBool,
}

impl StepProgress {
    /// One more layer was computed. Only grows, over all steps and eras.
    pub fn layer(&self) {
        self.layers.fetch_add(1, Ordering::Relaxed);
    }

    /// Layers computed so far.
    #[must_use]
    pub fn layers(&self) -> u64 {
        self.layers.load(Ordering::Relaxed)
    }

    /// Ask the step under way to end with [`MeshError::Aborted`] at its next layer.
    pub fn stop(&self, stop: bool) {
        self.stop.store(stop, Ordering::Release);
    }

    /// Whether the step under way is to end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// One rank on one thread. Weights outlive epochs: `load` once, then `form` … `dissolve` as often as peers come and go.
///
/// Calls per step: `submit`, `late` where the plan says that values follow, `wait` until it gives the output, optionally
/// `fetch`, `release`. Steps are computed in the order in which they were submitted; up to [`FormLimits::steps_in_flight`] are
/// submitted and not released.
pub trait Backend: Send {
    /// Read this rank's shard. Returns at once when the weights are there already.
    ///
    /// # Errors
    /// [`BackendError::Unusable`], [`BackendError::Unavailable`], [`BackendError::Cancelled`].
    fn load(&mut self, watch: &dyn LoadWatch) -> Result<(), BackendError>;

    /// Drop the weights, the era and the KV blocks. `load` brings the weights back.
    fn unload(&mut self);

    /// What forming by `spec` would take. Needs no weights; reads nothing.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] for what is not built (KV type, adapters) or cannot be.
    fn memory(&self, spec: &FormSpec) -> Result<MemoryPlan, BackendError>;

    /// Whether this rank can take another share of the model than the one it began with, so that its group can do without some
    /// ranks.
    ///
    /// # Errors
    /// Why not.
    fn can_reshape(&self) -> Result<(), &'static str> {
        Err("this backend keeps the share of the model that it began with")
    }

    /// What forming by `spec` would take of this rank's memory among `members`. Needs no weights; reads nothing.
    ///
    /// # Errors
    /// As [`Self::memory`], and where the model cannot be split so.
    fn memory_among(&self, _members: &Members, spec: &FormSpec) -> Result<MemoryPlan, BackendError> {
        self.memory(spec)
    }

    /// Take the share that this rank has among `members`, once the weights are there. What it has of it stays in memory, and
    /// what lacks is read; KV blocks and adapters are dropped. Returns at once when it has that share.
    ///
    /// # Errors
    /// As [`Self::load`]; the weights are gone then.
    fn reshape(&mut self, _members: &Members, _watch: &dyn LoadWatch) -> Result<(), BackendError> {
        Err(BackendError::Bug(
            "a rank that keeps its share was told to take another".into(),
        ))
    }

    /// Allocate KV blocks and workspace for one era, build communicators over the mesh and warm up. `report` hears what
    /// is being done.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] when not even one full-length sequence fits; [`BackendError::Lost`] when a peer is;
    /// [`BackendError::Bug`] before `load`.
    fn form(
        &mut self,
        spec: &FormSpec,
        mesh: Box<dyn Mesh>,
        report: &mut dyn FnMut(&str),
    ) -> Result<KvCapacity, BackendError>;

    /// Enqueue a step. Applies block deltas; does not wait.
    ///
    /// # Errors
    /// [`BackendError::Bug`] when the plan is not executable, with nothing changed.
    fn submit(&mut self, plan: &Plan) -> Result<Ticket, BackendError>;

    /// Give a submitted step what its plan left open, or cancel rows of it.
    ///
    /// # Errors
    /// [`BackendError::Bug`] when an index is out of range, or the step was computed already.
    fn late(&mut self, ticket: Ticket, late: &Late) -> Result<(), BackendError>;

    /// Wait for the step's output, at most until `until`. The CPU backend computes inside this call and may overrun it.
    ///
    /// # Errors
    /// [`BackendError::Lost`] when a peer is lost; the era is over then.
    fn wait(&mut self, ticket: Ticket, until: Instant) -> Result<Waited, BackendError>;

    /// This rank's part of the logits of a sampled position, for the rare case where candidates do not suffice.
    ///
    /// # Errors
    /// [`BackendError::Bug`] when the position was not sampled or the ticket is released.
    fn fetch(&mut self, ticket: Ticket, row: u32, offset: u32) -> Result<LogitShard, BackendError>;

    /// Copy a KV block out of the cache, as bytes that [`Self::restore`] of the same numerics class and shard takes.
    ///
    /// # Errors
    /// [`BackendError::Bug`] when there is no such block or steps that write it are not done.
    fn save(&mut self, block: u32) -> Result<Vec<u8>, BackendError>;

    /// Put saved bytes into a KV block.
    ///
    /// # Errors
    /// [`BackendError::Bug`] when the size differs or there is no such block.
    fn restore(&mut self, block: u32, bytes: &[u8]) -> Result<(), BackendError>;

    /// Drop what is kept for a step.
    fn release(&mut self, ticket: Ticket);

    /// Leave the era: drop workspace and communicators, keep the weights. The KV blocks may be kept, too, for a
    /// [`Self::form`] that wants as many of the same kind: see [`KvCapacity::kept`].
    fn dissolve(&mut self);

    /// The counter of layers.
    fn progress(&self) -> Arc<StepProgress>;

    /// The adapters that this rank has in memory, for other threads to fill. They outlive eras, as weights do.
    fn adapters(&self) -> Arc<dyn AdapterStore> {
        Arc::new(NoAdapters("this backend"))
    }

    /// What is known of the device, for other threads to read while this one computes.
    fn device_board(&self) -> Arc<DeviceBoard> {
        Arc::default()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use llamero_checkpoint::{Error, IoError};

    use super::BackendError;

    #[test]
    fn a_read_that_failed_once_is_not_unusable() {
        let failed = |number| {
            BackendError::from(Error::Io(IoError {
                action: "read",
                path: PathBuf::from("model.safetensors"),
                source: std::io::Error::from_raw_os_error(number),
            }))
        };
        // EIO, ESTALE, ENOENT and EACCES of errno(3).
        for (number, passes) in [(5, true), (116, true), (2, false), (13, false)] {
            let error = failed(number);
            assert_eq!(matches!(error, BackendError::Unavailable(_)), passes, "{error}");
            assert_eq!(matches!(error, BackendError::Unusable(_)), !passes, "{error}");
        }
    }
}
