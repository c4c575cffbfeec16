//! One rank's memory: its bell, and a ring from each rank of the pod to it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::thread::{Timespec, futex};

use super::ring::{Bell, DATUM, Datum, Ring, Word};
use crate::region::Region;

/// Words that different ranks write lie so many bytes apart: two cache lines, which processors fetch in pairs.
const APART: usize = 128;
/// Bytes of a ring's data: a decode step's frames many times over, and what the second-level cache holds of a large one.
const RING: usize = 256 << 10;
/// Count and flag of the bell.
const BELL: usize = 2 * APART;
/// Written, read, and the wish for room.
const COUNTERS: usize = 3 * APART;
const SLOT: usize = COUNTERS + RING;
/// Nobody changes the size of the memory, which would end whoever touches what is gone.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// A mapping that several processes write to.
pub(super) struct SharedRegion {
    region: Region,
    ranks: usize,
}

impl SharedRegion {
    /// Fresh memory into which `ranks` ranks write, and its descriptor.
    pub(super) fn create(ranks: usize) -> io::Result<(Self, OwnedFd)> {
        let file = memfd_create("llamero-links", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, Self::len(ranks) as u64)?;
        fcntl_add_seals(&file, SEALS)?;
        Ok((Self::open(&file, ranks)?, file))
    }

    /// The memory of another rank.
    pub(super) fn open(file: &OwnedFd, ranks: usize) -> io::Result<Self> {
        let len = Self::len(ranks);
        let size = usize::try_from(fstat(file)?.st_size).ok();
        if size != Some(len) || !fcntl_get_seals(file)?.contains(SEALS) {
            let sentence = format!("a file of {size:?} bytes that is not sealed is no memory of {len} bytes");
            return Err(io::Error::other(sentence));
        }
        let region = Region::of_file(file, len)?;
        Ok(Self { region, ranks })
    }

    fn len(ranks: usize) -> usize {
        BELL + ranks * SLOT
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        self.region.shared_word(at)
    }

    /// The bell of the rank whose memory it is.
    pub(super) fn bell(&self) -> Bell<'_, AtomicU32> {
        Bell {
            count: self.word(0),
            asleep: self.word(APART),
        }
    }

    /// The ring from the `index`-th rank of the pod.
    pub(super) fn ring(&self, index: usize) -> Ring<'_, AtomicU32, AtomicU64> {
        let at = BELL + index.min(self.ranks.saturating_sub(1)) * SLOT;
        Ring {
            written: self.word(at),
            read: self.word(at + APART),
            wants_room: self.word(at + 2 * APART),
            data: self.region.shared_data(at + COUNTERS, RING / DATUM),
        }
    }
}

impl Word for AtomicU32 {
    fn load(&self, order: Ordering) -> u32 {
        self.load(order)
    }

    fn store(&self, value: u32, order: Ordering) {
        self.store(value, order);
    }

    fn increment(&self, order: Ordering) {
        self.fetch_add(1, order);
    }

    fn sleep(&self, value: u32, limit: Duration) {
        let limit = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        // Woken, too late to sleep, interrupted or out of time: the caller looks again in every case.
        let _ = futex::wait(self, futex::Flags::empty(), value, Some(&limit));
    }

    fn wake(&self) {
        // It fails for addresses that are no futex only.
        let _ = futex::wake(self, futex::Flags::empty(), 1);
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }
}

impl Datum for AtomicU64 {
    fn get(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }

    fn set(&self, value: u64) {
        self.store(value, Ordering::Relaxed);
    }
}
