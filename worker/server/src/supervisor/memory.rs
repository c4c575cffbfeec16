//! Memory files that outlive the ranks: the weights of each, and what they note while they load together.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use llamero_cpu::PodMemory;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::cli::serve::LocalRanks;
use crate::link;

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

    /// What the rank of local index `index` gets: the notes and the weights of all ranks, which then load together, or, in
    /// a pod of so many ranks that their files would not fit, its weights alone.
    #[must_use]
    pub fn files(&self, index: usize) -> Vec<BorrowedFd<'_>> {
        if self.weights.len() >= link::MAX_FILES {
            return self.weights.get(index).map(AsFd::as_fd).into_iter().collect();
        }
        std::iter::once(&self.notes)
            .chain(&self.weights)
            .map(AsFd::as_fd)
            .collect()
    }
}
