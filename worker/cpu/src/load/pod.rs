//! Loading together with the other ranks of the pod.
//!
//! The supervisor gives every rank the memory files of all ranks, and one more, the notes. A rank that reads rows for a peer
//! packs them straight into the peer's file; then it notes that the chunk is done. Notes and files live as long as the
//! supervisor, so a rank that starts again finds what was put there before, and a rank that dies leaves nothing
//! half-done that counts as done.
//!
//! Notes start with a u64, the fingerprint of the weights of all ranks; from byte 64 on there is a byte for each chunk, 1 when
//! it is done. A rank that would have another fingerprint, because the checkpoint was changed meanwhile, loads alone.

use std::hash::{Hash, Hasher};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use llamero_checkpoint::load::{Member, PodNotes, Together, load_together};
use llamero_checkpoint::pod::shared_reads;
use llamero_checkpoint::{Checkpoint, Members, ModelLayout, RankShard, ShardPlan};
use llamero_engine::{BackendError, LoadWatch};
use llamero_settings::hash::Fnv1a;

use super::{MAX_THREADS, Packer, fingerprint, finish, layout, tell};
use crate::layout::Layout;
use crate::region::Region;
use crate::shape::Shape;
use crate::weights::{Store, Weights, state_of_file};

/// A rank waits so long without news of its peers before it reads what they have not. A chunk takes milliseconds, from a
/// slow disk some hundred, and a rank that died needs seconds to come back.
const PATIENCE: Duration = Duration::from_secs(3);
/// First byte of the marks of chunks: the fingerprint has a cache line of its own.
const MARKS: usize = 64;

/// The memory of all ranks of a pod.
#[derive(Debug)]
pub struct PodMemory {
    /// The pod's first rank.
    pub first: u32,
    /// The memory files of the weights, in rank order; the one of this rank is among them.
    pub weights: Vec<OwnedFd>,
    /// The notes, a memory file of [`Self::NOTES_BYTES`] zeros at first.
    pub notes: OwnedFd,
}

impl PodMemory {
    /// Length of the notes: room for a million chunks, four times what a 405B in bf16 has. Only what is used takes memory.
    pub const NOTES_BYTES: usize = 1 << 20;
}

/// The ranks of the pod, ready to load together.
pub(crate) struct Pod<'a> {
    shards: Vec<RankShard>,
    own: usize,
    layouts: Vec<Layout>,
    fingerprints: Vec<u64>,
    files: &'a [OwnedFd],
    notes: Region,
}

impl<'a> Pod<'a> {
    /// Join the ranks whose memory `pod` is, of the group `members`; `shard` is this rank's. None when they cannot load together.
    pub(crate) fn join(
        checkpoint: &Checkpoint,
        model: &ModelLayout,
        members: &Members,
        shard: &RankShard,
        pod: &'a PodMemory,
    ) -> Result<Option<Self>, BackendError> {
        // The files are those of all ranks of the pod in order; a group that does without some loads rank by rank.
        if !members.lost().is_empty() {
            return Ok(None);
        }
        // Each rank has a file of its own, of which the others need nothing.
        if checkpoint.presharded().is_some() {
            return Ok(None);
        }
        let plan = ShardPlan::of(checkpoint.config(), members).map_err(llamero_checkpoint::Error::from)?;
        let of_pod = (pod.first..).take(pod.weights.len());
        let shards: Vec<RankShard> = of_pod
            .filter_map(|rank| plan.member(rank).ok().cloned())
            .collect();
        let Some(own) = shards.iter().position(|one| one.rank == shard.rank) else {
            return Ok(None);
        };
        let same_stage = shards.iter().all(|one| one.stage() == shard.stage());
        let chunks = shared_reads(model, &shards).count();
        if shards.len() < 2 || !same_stage || MARKS + chunks > PodMemory::NOTES_BYTES {
            return Ok(None);
        }
        let layouts: Vec<Layout> = shards
            .iter()
            .map(|shard| layout(&Shape::new(checkpoint.config(), &plan, shard), model))
            .collect();
        let fingerprints: Vec<u64> = shards
            .iter()
            .zip(&layouts)
            .map(|(shard, layout)| fingerprint(checkpoint, shard, layout))
            .collect();
        let mut notes = Region::of_file(&pod.notes, PodMemory::NOTES_BYTES)
            .map_err(|error| BackendError::Unusable(format!("cannot map the notes of the pod: {error}")))?;
        if !agrees(notes.atomic_word(), &fingerprints) {
            tracing::info!(
                "the checkpoint was changed since another rank of this pod read it: loading alone"
            );
            return Ok(None);
        }
        Ok(Some(Self {
            shards,
            own,
            layouts,
            fingerprints,
            files: &pod.weights,
            notes,
        }))
    }

    /// Fill `weights`, this rank's.
    pub(crate) fn load(
        mut self,
        checkpoint: &Checkpoint,
        model: &ModelLayout,
        weights: &mut Weights,
        threads: usize,
        watch: &dyn LoadWatch,
    ) -> Result<(), BackendError> {
        let packers: Vec<Packer<'_>> = self
            .layouts
            .iter()
            .zip(&self.shards)
            .zip(self.files)
            .map(|((layout, shard), file)| Packer {
                layout,
                first_layer: shard.layers.start as usize,
                store: Store::File(file),
            })
            .collect();
        let notes = Notes {
            marks: self.notes.atomic_bytes().get(MARKS..).unwrap_or_default(),
            layouts: &self.layouts,
            fingerprints: &self.fingerprints,
            files: self.files,
        };
        let together = Together {
            members: &self.shards,
            own: self.own,
            sinks: &packers,
            notes: &notes,
            patience: PATIENCE,
        };
        let threads = threads.clamp(1, MAX_THREADS);
        let loaded = load_together(checkpoint, model, &together, threads, &mut |now| tell(watch, now));
        finish(loaded, weights)
    }
}

/// Whether the notes belong to these weights; who comes first says to which.
fn agrees(noted: &AtomicU64, fingerprints: &[u64]) -> bool {
    let mut hash = Fnv1a::default();
    fingerprints.hash(&mut hash);
    // Zero means that nobody came yet.
    let own = hash.finish().max(1);
    match noted.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => true,
        Err(other) => other == own,
    }
}

struct Notes<'a> {
    marks: &'a [AtomicU8],
    layouts: &'a [Layout],
    fingerprints: &'a [u64],
    files: &'a [OwnedFd],
}

impl PodNotes for Notes<'_> {
    fn member(&self, member: usize) -> Member {
        let (file, layout) = (self.files.get(member), self.layouts.get(member));
        match (file, layout, self.fingerprints.get(member)) {
            (Some(file), Some(layout), Some(fingerprint)) => state_of_file(file, layout, *fingerprint),
            _ => Member::Foreign,
        }
    }

    fn is_done(&self, chunk: usize) -> bool {
        let mark = self.marks.get(chunk);
        mark.is_some_and(|mark| mark.load(Ordering::Acquire) == 1)
    }

    fn set_done(&self, chunk: usize) {
        if let Some(mark) = self.marks.get(chunk) {
            mark.store(1, Ordering::Release);
        }
    }
}
