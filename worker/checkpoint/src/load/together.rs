//! Loading by the ranks of one pod together: each row of a column-split tensor is read once, by the member that
//! [`crate::pod`] names, who gives every member its part. A member whose peers are dead or late loses only time: after some
//! patience it reads its own part of what is missing.
#![expect(
    clippy::indexing_slicing,
    reason = "numbers of chunks, members and columns come from the plan that made these lists"
)]

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::announced::announced;
use super::{Load, LoadProgress, Room, Rows, Sink, on_threads};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::layout::ModelLayout;
use crate::narrow::to_usize;
use crate::piece::{Piece, pieces, read_rows, read_scales};
use crate::pod::{SharedRead, is_split_by_columns, shared_reads};
use crate::remote::Announced;
use crate::shard::RankShard;

/// How often a member that has read all of its own looks whether its peers have come further.
const LOOK: Duration = Duration::from_millis(10);
/// Before that it looks after so many chunks, which keeps its progress fresh.
const CHUNKS_PER_LOOK: usize = 64;

/// What one member knows of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// It loads the same weights, or has not started yet: it takes rows, and reads for others.
    Loading,
    /// All of its weights are in place: it takes nothing, and reads for nobody.
    Complete,
    /// Its memory is of another checkpoint: as complete, but what was not given to it does not count as done.
    Foreign,
}

/// What the members of a pod know of each other while they load. Outlives each of them.
pub trait PodNotes: Sync {
    /// What is known of `member`.
    fn member(&self, member: usize) -> Member;

    /// Whether every member has its part of shared read `chunk`.
    fn is_done(&self, chunk: usize) -> bool;

    /// Say so. Who sees it sees what the sinks took before, too.
    fn set_done(&self, chunk: usize);
}

/// The ranks of a pod, and one of them.
pub struct Together<'a, S> {
    /// All ranks of the pod, in rank order; all of one stage.
    pub members: &'a [RankShard],
    /// Which of them loads here.
    pub own: usize,
    /// Takes the rows of each member. Those of column-split tensors may be handed over more than once, by several
    /// processes, but always with the same bytes.
    pub sinks: &'a [S],
    /// What the members know of each other.
    pub notes: &'a dyn PodNotes,
    /// After so long without news of its peers a member reads its own part of what they have not read.
    pub patience: Duration,
}

/// As [`load_rank`](super::load_rank), together with the other ranks of the pod.
///
/// # Errors
/// As there.
pub fn load_together<S: Sink>(
    checkpoint: &Checkpoint,
    layout: &ModelLayout,
    together: &Together<'_, S>,
    threads: usize,
    watch: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
) -> Result<()> {
    let own = together.own;
    if checkpoint.presharded().is_some() {
        // Each has its own file, and nothing in common with the others.
        let sink = &together.sinks[own];
        return super::load_rank(checkpoint, layout, &together.members[own], threads, sink, watch);
    }
    let (columns, rest): (Vec<_>, Vec<_>) = pieces(layout, &together.members[own])
        .into_iter()
        .partition(|piece| is_split_by_columns(piece.tensor));
    let mut load = Load::new(checkpoint, rest, None, &together.sinks[own]);
    load.total += columns.iter().map(Piece::loaded_bytes).sum::<u64>();
    let reads: Vec<_> = shared_reads(layout, together.members).collect();
    let shared = PodLoad {
        together,
        load: &load,
        reads: &reads,
    };
    let mut missing: Vec<usize> = (0..reads.len()).collect();
    shared.look(&mut missing);
    let reading: Vec<bool> = (0..together.members.len())
        .map(|member| member != own && together.notes.member(member) == Member::Loading)
        .collect();
    // Who has completed will not read its chunks any more.
    let (mine, mut others): (Vec<usize>, Vec<usize>) = missing
        .into_iter()
        .partition(|chunk: &usize| !reading[reads[*chunk].reader]);
    load.tell(watch);
    checkpoint.announce(|| {
        let mut ranges = shared.announced(&mine, |read| read.piece.clone());
        ranges.extend(load.announced());
        ranges
    });
    shared.read_mine(threads, &mine, &mut others, watch);
    shared.wait(threads, &mut others, watch);
    load.finish();
    load.tell(watch);
    load.outcome()
}

struct PodLoad<'a, S> {
    together: &'a Together<'a, S>,
    load: &'a Load<'a, S>,
    reads: &'a [SharedRead<'a>],
}

impl<'a, S: Sink> PodLoad<'a, S> {
    /// What reading these chunks reads, each as `part` of it.
    fn announced(&self, chunks: &[usize], part: impl Fn(&SharedRead<'a>) -> Piece<'a>) -> Vec<Announced> {
        let of_chunk = |chunk: &usize| announced(self.load.checkpoint, &part(&self.reads[*chunk]));
        chunks.iter().flat_map(of_chunk).collect()
    }

    /// Drop the chunks that are done from the list `missing`, and count their bytes as loaded.
    fn look(&self, missing: &mut Vec<usize>) {
        missing.retain(|chunk| {
            let is_done = self.together.notes.is_done(*chunk);
            if is_done {
                let bytes = self.own_piece(&self.reads[*chunk]).loaded_bytes();
                self.load.loaded.fetch_add(bytes, Ordering::Relaxed);
            }
            !is_done
        });
    }

    /// Read the shared chunks that are this member's, for everybody, then the pieces that are its alone. The shared ones
    /// come first, so that nobody waits for them in the end.
    fn read_mine(
        &self,
        threads: usize,
        mine: &[usize],
        others: &mut Vec<usize>,
        watch: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) {
        let next = AtomicUsize::new(0);
        let work = |after_each: &mut dyn FnMut()| {
            let mut room = Room::default();
            self.take(mine, &next, after_each, |chunk| self.give(chunk, &mut room));
            self.load.run(&mut room, after_each);
        };
        let mut chunks: usize = 0;
        on_threads(threads, &work, &mut || {
            chunks += 1;
            if chunks.is_multiple_of(CHUNKS_PER_LOOK) {
                self.look(others);
            }
            self.load.tell(watch);
        });
    }

    /// Wait until the peers have read the chunks `others`. What they do not read in time is read here, for this member.
    fn wait(
        &self,
        threads: usize,
        others: &mut Vec<usize>,
        watch: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) {
        let mut news = Instant::now();
        while !others.is_empty() && !self.load.is_stopped() {
            let before = others.len();
            self.look(others);
            if others.len() < before {
                news = Instant::now();
            }
            let is_reading =
                |chunk: &usize| self.together.notes.member(self.reads[*chunk].reader) == Member::Loading;
            if news.elapsed() >= self.together.patience || !others.iter().any(is_reading) {
                return self.read_own_part(threads, others, watch);
            }
            self.load.tell(watch);
            std::thread::park_timeout(LOOK);
        }
    }

    fn read_own_part(
        &self,
        threads: usize,
        chunks: &[usize],
        watch: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) {
        if chunks.is_empty() {
            return;
        }
        tracing::info!(
            chunks = chunks.len(),
            "other ranks of this pod have not read their part: reading what this rank needs of it"
        );
        self.load
            .checkpoint
            .announce(|| self.announced(chunks, |read| self.own_piece(read)));
        let next = AtomicUsize::new(0);
        let work = |after_each: &mut dyn FnMut()| {
            let mut room = Room::default();
            self.take(chunks, &next, after_each, |chunk| {
                if self.together.notes.is_done(chunk) {
                    return Ok(());
                }
                self.keep(&self.reads[chunk], &mut room)
            });
        };
        on_threads(threads, &work, &mut || self.load.tell(watch));
    }

    /// Do `work` for the chunks that no other thread has taken, and count their bytes as loaded.
    fn take(
        &self,
        chunks: &[usize],
        next: &AtomicUsize,
        after_each: &mut dyn FnMut(),
        mut work: impl FnMut(usize) -> Result<()>,
    ) {
        while !self.load.is_stopped() {
            let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) else {
                return;
            };
            if let Err(error) = work(*chunk) {
                return self.load.fail(error);
            }
            let bytes = self.own_piece(&self.reads[*chunk]).loaded_bytes();
            self.load.loaded.fetch_add(bytes, Ordering::Relaxed);
            after_each();
        }
    }

    /// Read a chunk for all members that still load.
    fn give(&self, chunk: usize, room: &mut Room<S::Scratch>) -> Result<()> {
        let read = &self.reads[chunk];
        let Together { own, notes, .. } = *self.together;
        let members: Vec<Member> = (0..self.together.members.len())
            .map(|member| {
                if member == own {
                    Member::Loading
                } else {
                    notes.member(member)
                }
            })
            .collect();
        if members
            .iter()
            .filter(|member| **member == Member::Loading)
            .count()
            == 1
        {
            self.keep(read, room)?;
        } else {
            read_rows(
                self.load.checkpoint,
                &read.piece,
                0..read.piece.rows(),
                &mut room.bytes,
            )?;
            read_scales(
                self.load.checkpoint,
                &read.piece,
                0..read.piece.rows(),
                &mut room.scales,
            )?;
            for (member, state) in members.iter().enumerate() {
                if *state == Member::Loading {
                    self.hand_over(read, member, room)?;
                }
            }
        }
        if !members.contains(&Member::Foreign) {
            notes.set_done(chunk);
        }
        Ok(())
    }

    /// Give `member` its columns of the rows in `room`.
    fn hand_over(&self, read: &SharedRead<'_>, member: usize, room: &mut Room<S::Scratch>) -> Result<()> {
        let share = read.share(&self.together.members[member]);
        let size = to_usize(read.piece.tensor.dtype.size());
        room.part.clear();
        for row in room.bytes.chunks_exact(to_usize(read.piece.row_bytes().max(1))) {
            for run in share.as_slice() {
                room.part
                    .extend_from_slice(&row[run.start as usize * size..run.end as usize * size]);
            }
        }
        if share.is_empty() {
            return Ok(());
        }
        self.put(read, member, &room.part, &room.scales, &mut room.scratch)
    }

    /// Read a chunk for this member alone.
    fn keep(&self, read: &SharedRead<'_>, room: &mut Room<S::Scratch>) -> Result<()> {
        let piece = self.own_piece(read);
        read_rows(self.load.checkpoint, &piece, 0..piece.rows(), &mut room.bytes)?;
        read_scales(self.load.checkpoint, &piece, 0..piece.rows(), &mut room.scales)?;
        self.put(
            read,
            self.together.own,
            &room.bytes,
            &room.scales,
            &mut room.scratch,
        )
    }

    fn put(
        &self,
        read: &SharedRead<'_>,
        member: usize,
        bytes: &[u8],
        scales: &[f32],
        scratch: &mut S::Scratch,
    ) -> Result<()> {
        let tensor = read.piece.tensor;
        let piece = Piece {
            tensor,
            slice: self.together.members[member].slice(tensor.id),
        };
        let rows = Rows {
            piece: &piece,
            first: read.first,
            count: read.piece.rows(),
            bytes,
            scales,
        };
        self.together.sinks[member]
            .put(&rows, scratch)
            .map_err(Error::Sink)
    }

    /// The rows of a chunk, and this member's columns.
    fn own_piece<'b>(&self, read: &SharedRead<'b>) -> Piece<'b> {
        let mut piece = read.piece.clone();
        piece.slice.cols = self.together.members[self.together.own]
            .slice(piece.tensor.id)
            .cols;
        piece
    }
}
