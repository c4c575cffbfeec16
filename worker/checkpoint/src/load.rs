//! Loading a rank's shard: only its own byte ranges, in chunks of whole rows, by several threads.
//!
//! ```no_run
//! # use std::ops::ControlFlow;
//! # use llamero_checkpoint::{Checkpoint, ModelLayout, ShardPlan, Topology, load::{self, Rows, Sink, SinkError}};
//! struct Pack;
//! impl Sink for Pack {
//!     type Scratch = Vec<u8>;
//!     fn put(&self, rows: &Rows<'_>, scratch: &mut Vec<u8>) -> Result<(), SinkError> {
//!         // rows.piece says which tensor; rows.first .. rows.first + rows.count are rows of the piece
//!         let _ = (rows.piece.tensor.id, rows.piece.tensor.dtype, rows.first, rows.bytes, rows.scales, scratch);
//!         Ok(())
//!     }
//! }
//! # fn main() -> llamero_checkpoint::Result<()> {
//! let checkpoint = Checkpoint::open("model".as_ref())?;
//! let layout = ModelLayout::check(&checkpoint)?;
//! let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(2))?;
//! load::load_rank(&checkpoint, &layout, plan.member(0)?, 2, &Pack, &mut |progress| {
//!     println!("{progress:?}");
//!     ControlFlow::Continue(())
//! })?;
//! # Ok(()) }
//! ```

mod announced;
mod elements;
mod together;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::layout::ModelLayout;
use crate::narrow::to_usize;
use crate::piece::{Piece, pieces, pieces_beyond, read_rows, read_scales};
use crate::presharded::RankFile;
use crate::remote::Announced;
use crate::shard::RankShard;

use announced::announced;

pub use crate::piece::ROW_MULTIPLE;
pub use together::{Member, PodNotes, Together, load_together};

/// A chunk and its packed form together fit a core's second-level cache, so that packing reads what the kernel has just
/// copied there; larger reads were not faster from the page cache.
pub(crate) const CHUNK_BYTES: u64 = 256 << 10;

/// What a sink may fail with; any error stops the load.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// How far a load has come, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoadProgress {
    /// Of the rank's shard, in memory, whoever read it.
    pub loaded: u64,
    /// The whole shard.
    pub total: u64,
    /// Read from the checkpoint by this rank, gaps between strips and what it gave to others included.
    pub read: u64,
}

/// Some rows of a piece.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The piece they belong to.
    pub piece: &'a Piece<'a>,
    /// The first row, counted from the start of the piece; a multiple of [`ROW_MULTIPLE`].
    pub first: u64,
    /// How many rows; a multiple of [`ROW_MULTIPLE`] except at the end of the piece.
    pub count: u64,
    /// `count · piece.row_bytes()` bytes, little-endian, row by row.
    pub bytes: &'a [u8],
    /// One scale for each of these rows; empty where the tensor is not quantised. Scalar scales are repeated.
    pub scales: &'a [f32],
}

/// Takes the rows of a shard, each exactly once, from several threads at a time.
pub trait Sink: Sync {
    /// What a thread keeps between calls.
    type Scratch: Default;

    /// Take some rows.
    ///
    /// # Errors
    /// Whatever goes wrong ends the load.
    fn put(&self, rows: &Rows<'_>, scratch: &mut Self::Scratch) -> Result<(), SinkError>;
}

/// Hand all rows of the rank's shard to `sink`, by `threads` threads, the caller's included. Each has room for one chunk.
/// `watch` hears of progress on the caller's thread, at the start, after each chunk of its own and at the end, and
/// answers whether to go on.
///
/// # Errors
/// A read fails, the sink does ([`Error::Sink`]), or `watch` said to stop ([`Error::Cancelled`]).
pub fn load_rank<S: Sink>(
    checkpoint: &Checkpoint,
    layout: &ModelLayout,
    shard: &RankShard,
    threads: usize,
    sink: &S,
    watch: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
) -> Result<()> {
    let pieces = pieces(layout, shard);
    let file = match checkpoint.presharded() {
        Some(made) => Some(RankFile::open(checkpoint, made, shard, &pieces)?),
        None => None,
    };
    load_pieces(checkpoint, pieces, file, threads, sink, watch)
}

/// Hand all rows of the rank's shard to `sink` that `held`, another share of the same rank, has not; else as [`load_rank`].
/// Rows are counted from the start of the pieces of [`pieces_beyond`].
///
/// # Errors
/// As [`load_rank`].
pub fn load_beyond<S: Sink>(
    checkpoint: &Checkpoint,
    layout: &ModelLayout,
    (shard, held): (&RankShard, &RankShard),
    threads: usize,
    sink: &S,
    watch: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
) -> Result<()> {
    checkpoint.check_whole()?;
    let pieces = pieces_beyond(layout, shard, held);
    if pieces.is_empty() {
        return Ok(());
    }
    load_pieces(checkpoint, pieces, None, threads, sink, watch)
}

fn load_pieces<S: Sink>(
    checkpoint: &Checkpoint,
    pieces: Vec<Piece<'_>>,
    file: Option<RankFile>,
    threads: usize,
    sink: &S,
    watch: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
) -> Result<()> {
    let load = Load::new(checkpoint, pieces, file, sink);
    load.tell(watch);
    checkpoint.announce(|| load.announced());
    let run = |after_each: &mut dyn FnMut()| load.run(&mut Room::default(), after_each);
    on_threads(threads, &run, &mut || load.tell(watch));
    load.finish();
    load.tell(watch);
    load.outcome()
}

/// Run `work` on so many threads, the caller's included, where it calls `after_each` after each chunk.
fn on_threads(threads: usize, work: &(dyn Fn(&mut dyn FnMut()) + Sync), after_each: &mut dyn FnMut()) {
    std::thread::scope(|scope| {
        for number in 1..threads {
            let helper = std::thread::Builder::new().name(format!("load-{number}"));
            if let Err(error) = helper.spawn_scoped(scope, || work(&mut || {})) {
                tracing::warn!(%error, "loading with {number} of {threads} threads");
                break;
            }
        }
        work(after_each);
    });
}

/// A load under way, shared by its threads.
struct Load<'a, S> {
    checkpoint: &'a Checkpoint,
    sink: &'a S,
    pieces: Vec<Piece<'a>>,
    /// The rank's own file, where the folder has one file a rank.
    file: Option<RankFile>,
    /// Number of the first chunk of each piece, and of all chunks.
    starts: Vec<usize>,
    total: u64,
    read_before: u64,
    next: AtomicUsize,
    loaded: AtomicU64,
    stop: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl<'a, S: Sink> Load<'a, S> {
    fn new(
        checkpoint: &'a Checkpoint,
        mut pieces: Vec<Piece<'a>>,
        file: Option<RankFile>,
        sink: &'a S,
    ) -> Self {
        if checkpoint.is_remote() && file.is_none() {
            // Each file from its beginning to its end: what comes first is needed first.
            pieces.sort_by_key(|piece| checkpoint.position(&piece.tensor.name));
        }
        let mut starts = vec![0];
        let mut chunks = 0;
        for piece in &pieces {
            chunks += to_usize(piece.rows().div_ceil(step(&file, piece)));
            starts.push(chunks);
        }
        Self {
            checkpoint,
            sink,
            total: pieces.iter().map(Piece::loaded_bytes).sum(),
            pieces,
            file,
            starts,
            read_before: checkpoint.bytes_read(),
            next: AtomicUsize::new(0),
            loaded: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    /// What its pieces read.
    fn announced(&self) -> Vec<Announced> {
        let of_piece = |piece| match &self.file {
            Some(file) => file.announced(self.checkpoint, piece),
            None => announced(self.checkpoint, piece),
        };
        self.pieces.iter().flat_map(of_piece).collect()
    }

    /// All was read: hear whether it was right.
    fn finish(&self) {
        if !self.is_stopped()
            && let Err(error) = self.checkpoint.finish_reading()
        {
            self.fail(error);
        }
    }

    /// Take chunks until there are no more, or something fails.
    fn run(&self, room: &mut Room<S::Scratch>, after_each: &mut dyn FnMut()) {
        while !self.is_stopped() {
            let chunk = self.next.fetch_add(1, Ordering::Relaxed);
            if self.starts.last().is_none_or(|chunks| chunk >= *chunks) {
                return;
            }
            match self.chunk(chunk, room) {
                Ok(bytes) => self.loaded.fetch_add(bytes, Ordering::Relaxed),
                Err(error) => return self.fail(error),
            };
            after_each();
        }
    }

    /// Read a chunk and hand it over; its bytes in memory.
    #[expect(
        clippy::indexing_slicing,
        reason = "the first piece starts at chunk 0, and there is a start for every piece"
    )]
    fn chunk(&self, chunk: usize, room: &mut Room<S::Scratch>) -> Result<u64> {
        let number = self.starts.partition_point(|start| *start <= chunk) - 1;
        let piece = &self.pieces[number];
        let step = step(&self.file, piece);
        let first = (chunk - self.starts[number]) as u64 * step;
        let count = step.min(piece.rows() - first);
        let part = first..first + count;
        let (bytes, scales) = (&mut room.bytes, &mut room.scales);
        if let Some(file) = &self.file {
            file.read(self.checkpoint, number, piece, part, bytes, scales)?;
        } else {
            read_rows(self.checkpoint, piece, part.clone(), bytes)?;
            read_scales(self.checkpoint, piece, part, scales)?;
        }
        let rows = Rows {
            piece,
            first,
            count,
            bytes: &room.bytes,
            scales: &room.scales,
        };
        self.sink.put(&rows, &mut room.scratch).map_err(Error::Sink)?;
        Ok(room.bytes.len() as u64 + 4 * room.scales.len() as u64)
    }

    fn tell(&self, watch: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>) {
        let progress = LoadProgress {
            loaded: self.loaded.load(Ordering::Relaxed),
            total: self.total,
            read: self.checkpoint.bytes_read() - self.read_before,
        };
        if watch(progress).is_break() && progress.loaded < self.total {
            self.fail(Error::Cancelled);
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn outcome(self) -> Result<()> {
        match self.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Stop all threads; the first reason counts.
    fn fail(&self, error: Error) {
        self.stop.store(true, Ordering::Relaxed);
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
    }
}

/// What one thread works with.
#[derive(Default)]
struct Room<T> {
    bytes: Vec<u8>,
    /// One member's part of them.
    part: Vec<u8>,
    scales: Vec<f32>,
    scratch: T,
}

/// Rows of `piece` in a chunk: a block of the rank's own file, if it has one.
fn step(file: &Option<RankFile>, piece: &Piece<'_>) -> u64 {
    match file {
        Some(file) => file.step(piece),
        None => chunk_rows(piece, CHUNK_BYTES),
    }
}

/// Rows of `piece` in a chunk of about `bytes`.
pub(crate) fn chunk_rows(piece: &Piece<'_>, bytes: u64) -> u64 {
    let rows = bytes / piece.row_bytes().max(1);
    (rows - rows % ROW_MULTIPLE).max(ROW_MULTIPLE)
}
