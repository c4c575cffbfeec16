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
        if !load_together(ranks.count as usize) {
            tracing::warn!(
                "{} ranks in one pod read their weights each for itself, which reads parts of the checkpoint several times; \
                 {} ranks a pod or fewer read them together",
                ranks.count,
                link::MAX_FILES - 1
            );
        }
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
        if !load_together(self.weights.len()) {
            return self.weights.get(index).map(AsFd::as_fd).into_iter().collect();
        }
        std::iter::once(&self.notes)
            .chain(&self.weights)
            .map(AsFd::as_fd)
            .collect()
    }
}

/// Whether the files of so many ranks, and their notes, fit a link.
fn load_together(ranks: usize) -> bool {
    ranks < link::MAX_FILES
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::fs::fstat;

    use super::*;

    /// What a rank of local index `index` receives, by the numbers of the files.
    fn received(memory: &Memory, index: usize) -> Vec<u64> {
        let (here, there) = UnixStream::pair().unwrap();
        link::send_files(&here, &memory.files(index)).unwrap();
        let files = link::receive_files(&there).unwrap();
        files.iter().map(|file| fstat(file).unwrap().st_ino).collect()
    }

    #[test]
    fn as_many_ranks_load_together_as_files_fit_a_link() {
        for (count, together) in [(1, true), (24, true), (25, false), (256, false)] {
            let ranks = LocalRanks {
                first: 256,
                count,
                world: 512,
            };
            let memory = Memory::new(ranks).unwrap();
            let weights: Vec<u64> = memory
                .weights
                .iter()
                .map(|file| fstat(file).unwrap().st_ino)
                .collect();
            let last = count as usize - 1;
            let received = received(&memory, last);
            if together {
                assert_eq!(received[0], fstat(&memory.notes).unwrap().st_ino);
                assert_eq!(received[1..], weights, "{count} ranks");
            } else {
                assert_eq!(received, [weights[last]], "{count} ranks");
            }
        }
    }
}
