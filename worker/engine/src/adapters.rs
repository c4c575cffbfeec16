//! Adapters (LoRA) that a rank has in memory beside the model.
//!
//! The leader numbers them; a number is never given twice by one leader. A row of a plan names its adapter by number, and a rank
//! that does not have it refuses the plan: it never computes without.

use std::path::Path;

use llamero_checkpoint::ContentIdentity;
use serde::{Deserialize, Serialize};

use crate::backend::BackendError;

/// Longest name of an adapter, in bytes.
pub const MAX_NAME: usize = 128;
/// Longest path of an adapter, in bytes.
pub const MAX_PATH: usize = 1024;

/// Which adapter, and where it lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterSource {
    /// The leader's number.
    pub number: u32,
    /// The name that clients ask for.
    pub name: String,
    /// Its folder, below the one that every rank has for adapters.
    pub path: String,
    /// What it is; none while nobody has read it yet.
    pub identity: Option<ContentIdentity>,
}

/// One reading of an adapter, told from all others of the same store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading(
    /// Counted by the store.
    pub u64,
);

/// The adapters of one rank. Reading one takes its time, so this is for other threads than the one that computes.
pub trait AdapterStore: Send + Sync {
    /// Make room for an adapter that is going to be read, which takes no time. What is there already under that number with that
    /// identity is kept as it is. To be called where [`Self::unload`] and [`Self::retain`] are, so that none of them is overtaken.
    fn begin(&self, source: &AdapterSource) -> Reading;

    /// Read an adapter with ranks up to `max_rank` from `folder` and keep it under its number. Gives what it is.
    ///
    /// # Errors
    /// It cannot be read or used, is not what `source` says, or was forgotten or begun anew since `reading` began.
    fn load(
        &self,
        reading: Reading,
        source: &AdapterSource,
        folder: &Path,
        max_rank: u32,
    ) -> Result<ContentIdentity, BackendError>;

    /// Forget an adapter; steps that were submitted with it keep it until they are released. An unfinished [`Self::load`] of it
    /// fails.
    fn unload(&self, number: u32);

    /// Forget all adapters but these, and all that are being read. The identity counts too: another leader gives the same numbers to others.
    fn retain(&self, kept: &[AdapterSource]);
}

/// Has none, and says so.
#[derive(Debug, Clone, Copy)]
pub struct NoAdapters(
    /// What has none, as in "adapters are not built for …".
    pub &'static str,
);

impl AdapterStore for NoAdapters {
    fn begin(&self, _: &AdapterSource) -> Reading {
        Reading(0)
    }

    fn load(
        &self,
        _: Reading,
        source: &AdapterSource,
        _: &Path,
        _: u32,
    ) -> Result<ContentIdentity, BackendError> {
        Err(BackendError::Unusable(format!(
            "adapters are not built for {}, so {} cannot be loaded: serve the model without",
            self.0, source.name
        )))
    }

    fn unload(&self, _: u32) {}

    fn retain(&self, _: &[AdapterSource]) {}
}
