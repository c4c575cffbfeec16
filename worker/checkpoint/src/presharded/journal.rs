//! How far the files of a stage have come, so that whoever goes on does not begin at their beginning.

use std::fs;
use std::path::PathBuf;

use crate::io_error::IoError;
use crate::safetensors::OutputDir;

/// `stage-N.done` in the unfinished folder: how many tensors of the stage are on disk.
pub(super) struct Journal<'a> {
    output: &'a OutputDir,
    stage: u32,
}

impl<'a> Journal<'a> {
    pub(super) fn of(output: &'a OutputDir, stage: u32) -> Self {
        Self { output, stage }
    }

    fn name(&self) -> String {
        format!("stage-{}.done", self.stage)
    }

    fn path(&self) -> PathBuf {
        self.output.path().join(self.name())
    }

    /// How many tensors an earlier run has put on disk.
    pub(super) fn done(&self) -> usize {
        let text = fs::read_to_string(self.path()).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Note that `done` tensors are on disk.
    pub(super) fn note(&self, done: usize) -> crate::Result<()> {
        // Never seen half: another number could be read.
        let new = format!("{}.new", self.name());
        self.output.write(&new, done.to_string().as_bytes())?;
        let (from, to) = (self.output.path().join(new), self.path());
        Ok(fs::rename(&from, &to).map_err(IoError::at("rename into", &to))?)
    }

    /// The stage's files have their names: nothing is to be known any more.
    pub(super) fn remove(&self) -> crate::Result<()> {
        let path = self.path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(IoError::at("remove", &path)(error).into())
            }
            _ => Ok(()),
        }
    }
}
