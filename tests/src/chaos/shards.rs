//! The weights of the suite's deployment: one file a rank, made by `llamero-worker shard`, so that a byte of them can be wrong.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::output;
use crate::paths;

/// Folder of whole weights on the claim.
const WHOLE: &str = "SmolLM2-135M-Instruct-FP8";
/// Folder of the suite's weights on the claim.
pub(super) const FOLDER: &str = "chaos-shards";

fn models() -> PathBuf {
    paths::local().join("models")
}

/// Cuts the weights for groups of so many ranks.
pub(super) fn make(ranks: u32) -> Result<()> {
    remove()?;
    let this = std::env::current_exe().context("where this program is")?;
    let worker = this.with_file_name("llamero-worker");
    let mut shard = Command::new(worker);
    shard.args(["shard", "--tensor", &ranks.to_string()]);
    output(shard.arg(models().join(WHOLE)).arg(models().join(FOLDER)))?;
    Ok(())
}

/// Removes them; none is fine.
pub(super) fn remove() -> Result<()> {
    match std::fs::remove_dir_all(models().join(FOLDER)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("cannot remove the weights of the suite")
        }
        _ => Ok(()),
    }
}

/// A byte of a rank's file that is another one.
#[derive(Debug)]
pub(super) struct WrongByte {
    file: File,
    /// Name of the file.
    pub(super) name: String,
    at: u64,
    right: u8,
}

impl WrongByte {
    /// In the file of that rank, somewhere behind its first quarter, which has the header and the digests.
    pub(super) fn put(rank: u32, ranks: u32, pick: u64) -> Result<Self> {
        let name = format!("rank-{rank:05}-of-{ranks:05}.safetensors");
        let path = models().join(FOLDER).join(&name);
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let bytes = file.metadata()?.len();
        let first = bytes / 4;
        let at = first + pick.checked_rem(bytes - first).context("an empty file")?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        let [right] = byte;
        file.write_all_at(&[!right], at)?;
        Ok(Self {
            file,
            name,
            at,
            right,
        })
    }

    /// Puts the right byte back.
    pub(super) fn take_back(&self) -> Result<()> {
        self.file
            .write_all_at(&[self.right], self.at)
            .with_context(|| format!("cannot put the byte of {} right", self.name))
    }
}
