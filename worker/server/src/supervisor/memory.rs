//! Memory files that outlive the ranks: the weights of each, and what they note while they load together.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use llamero_cpu::PodMemory;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::cli::serve::LocalRanks;

/// The memory files of a pod. Empty until its ranks fill them.
#[derive(Debug)]
pub struct Memory {
    notes: OwnedFd,
    /// In rank order.
    weights: Vec<OwnedFd>,
}

impl Memory {
    /// Files for these ranks.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(ranks: LocalRanks) -> io::Result<Self> {
        let notes = memfd_create("llamero-notes", MemfdFlags::CLOEXEC)?;
        ftruncate(&notes, PodMemory::NOTES_BYTES as u64)?;
        let weights = (ranks.first..ranks.first + ranks.count)
            .map(|rank| memfd_create(format!("llamero-weights-{rank}"), MemfdFlags::CLOEXEC))
            .collect::<Result<_, _>>()?;
        Ok(Self { notes, weights })
    }

    /// All files in the order in which a rank expects them: the notes, then the weights of each rank.
    #[must_use]
    pub fn files(&self) -> Vec<BorrowedFd<'_>> {
        std::iter::once(&self.notes)
            .chain(&self.weights)
            .map(AsFd::as_fd)
            .collect()
    }
}
