//! One change of the cluster at a time, whichever program makes it.

use std::fs::File;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use crate::paths;

/// Held while the cluster starts, stops, or gains or loses a node.
pub(super) struct Lock(#[expect(dead_code, reason = "the lock lasts as long as the file is open")] File);

impl Lock {
    /// Waits for other holders to finish.
    pub(super) fn take() -> Result<Self> {
        let folder = paths::local();
        std::fs::create_dir_all(&folder)?;
        let file = File::create(folder.join("cluster.lock"))?;
        flock(&file, FlockOperation::LockExclusive).context("cannot lock the cluster")?;
        Ok(Self(file))
    }
}
