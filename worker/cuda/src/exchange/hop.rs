//! Hidden rows from one pipeline stage to the next: by pinned memory of the host and the mesh, whose links are authenticated.
//!
//! Rows are f32 as the residual stream is, so that the bits do not depend on where the model is cut. All ranks of a stage have
//! the same rows behind their last layer. Each gives its part of every chunk to the rank with its index in the next stage, whose
//! ranks bring the parts together over memory of their GPUs: so every row crosses the network once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaSlice, result};
use llamero_engine::{BackendError, Label, Mesh, MeshError, Transfer};

use super::{Exchange, Watch};
use crate::error::{refused, unusable};
use crate::forward::Chunk;
use crate::ops::exchange::part;
use crate::ops::{MAX_ROWS, OpError, Ops};
use crate::pinned::Pinned;
use crate::shape::Shape;

/// The tag of these frames; 0 to 2 are those of forming.
const TAG: u16 = 3;
/// Bytes of a step without rows: they only show that the stages reach each other.
const HEARTBEAT: usize = 4;

/// To the same rank of the stages before and behind this rank's.
#[derive(Debug)]
pub(crate) struct Hop {
    /// None for the first stage, and for the last.
    before: Option<u32>,
    behind: Option<u32>,
    patience: Duration,
    /// How long a frame may take to go: a stage behind that works takes it while it computes.
    limit: Duration,
    /// The step that is waited for, and since when.
    awaited: Option<(u64, Instant)>,
}

impl Hop {
    /// Of a rank of `mesh`; none in a group of one stage.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] where stages have unequally many ranks.
    pub(super) fn over(
        mesh: &dyn Mesh,
        (limit, patience): (Duration, Duration),
    ) -> Result<Option<Self>, BackendError> {
        let members = mesh.members();
        let stage = members.topology().stage(mesh.rank());
        let own = members.stage(stage);
        let index = own.iter().position(|rank| *rank == mesh.rank()).unwrap_or(0);
        let same_of = |stage: u32| match members.stage(stage) {
            [] => Ok(None),
            ranks if ranks.len() == own.len() => Ok(ranks.get(index).copied()),
            ranks => Err(unusable(format!(
                "stage {stage} has {} ranks and its neighbour {}: stages on GPUs need equally many, so a group that lost a rank \
                 waits for another one",
                ranks.len(),
                own.len()
            ))),
        };
        let hop = Self {
            before: stage.checked_sub(1).map(same_of).transpose()?.flatten(),
            behind: same_of(stage + 1)?,
            patience,
            limit,
            awaited: None,
        };
        Ok((hop.before.is_some() || hop.behind.is_some()).then_some(hop))
    }

    /// Of a rank without its peers: whatever it waits for is there, and what it gives goes nowhere.
    pub(super) fn looped_back() -> Self {
        Self {
            before: None,
            behind: None,
            patience: Duration::ZERO,
            limit: Duration::ZERO,
            awaited: None,
        }
    }

    /// Take a step's frame from the stage before, if it has begun to come. Whether it is here.
    ///
    /// # Errors
    /// [`MeshError`], also when it has been waited for too long.
    pub(crate) fn take(
        &mut self,
        watch: Option<&Watch>,
        step: u64,
        into: &mut [u8],
    ) -> Result<bool, MeshError> {
        let (Some(rank), Some(watch)) = (self.before, watch) else {
            return Ok(true);
        };
        if let Some(error) = watch.lost() {
            return Err(error);
        }
        if !watch.has_begun(rank)? {
            return self.is_late(watch, step, rank).map(|()| false);
        }
        self.awaited = None;
        let transfer = Transfer {
            peer: rank,
            out: None,
            into: Some(into),
        };
        watch.exchange(Label { step, tag: TAG }, transfer, self.patience)?;
        Ok(true)
    }

    /// An error when the frame of a step has not come in time.
    fn is_late(&mut self, watch: &Watch, step: u64, rank: u32) -> Result<(), MeshError> {
        let now = Instant::now();
        match self.awaited {
            Some((awaited, since)) if awaited == step => {
                if now.duration_since(since) < self.patience {
                    return Ok(());
                }
                let millis = u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX);
                let error = MeshError::Deadline { rank, millis };
                watch.fail(step, &error);
                Err(error)
            }
            _ => {
                self.awaited = Some((step, now));
                Ok(())
            }
        }
    }

    /// Give a step's frame to the stage behind, which takes it.
    ///
    /// # Errors
    /// [`MeshError`].
    pub(crate) fn give(&self, watch: Option<&Watch>, step: u64, frame: &[u8]) -> Result<(), MeshError> {
        let (Some(peer), Some(watch)) = (self.behind, watch) else {
            return Ok(());
        };
        let transfer = Transfer {
            peer,
            out: Some(frame),
            into: None,
        };
        watch.exchange(Label { step, tag: TAG }, transfer, self.limit)
    }
}

/// Bytes of a rank's part of so many rows.
fn part_bytes(shape: &Shape, rows: usize) -> usize {
    4 * part(rows * shape.hidden, shape.world.max(1))
}

/// Bytes of a rank's frame of a step whose chunks have so many rows in all.
pub(crate) fn frame_bytes(shape: &Shape, rows: usize) -> usize {
    let (whole, rest) = (rows / MAX_ROWS, rows % MAX_ROWS);
    (whole * part_bytes(shape, MAX_ROWS) + part_bytes(shape, rest)).max(HEARTBEAT)
}

/// What a step takes from the stage before and gives to the one behind, chunk by chunk, in pinned memory.
#[derive(Debug)]
pub(crate) struct Edge {
    /// None for the first stage, and for the last.
    pub(crate) incoming: Option<Pinned<u8>>,
    pub(crate) outgoing: Option<Pinned<u8>>,
}

impl Edge {
    /// Room for steps of `rows` rows.
    pub(crate) fn new(context: &Arc<CudaContext>, shape: &Shape, rows: usize) -> Result<Self, BackendError> {
        let room = |is_needed: bool| {
            let bytes = frame_bytes(shape, rows);
            let pinned = is_needed.then(|| Pinned::new(context, bytes));
            pinned.transpose().map_err(refused)
        };
        Ok(Self {
            incoming: room(!shape.has_embedding)?,
            outgoing: room(!shape.has_head)?,
        })
    }

    /// Enqueue that a chunk's hidden rows become those that have come. `parts` is free until they are there.
    ///
    /// # Errors
    /// [`OpError`].
    pub(crate) fn enqueue_take(
        &self,
        ops: &mut Ops,
        (exchange, shape): (Option<&Exchange>, &Shape),
        chunk: &Chunk,
        (hidden, parts): (&mut CudaSlice<f32>, &CudaSlice<f32>),
    ) -> Result<(), OpError> {
        let (first, bytes) = place(shape, chunk);
        let from = self
            .incoming
            .as_ref()
            .and_then(|all| all.as_slice().get(first..first + bytes));
        let Some(from) = from else {
            return Err(OpError::Shape(format!(
                "{bytes} bytes at {first} of the stage before have no room"
            )));
        };
        let to = match exchange {
            Some(_) => ops.address(parts),
            None => ops.address(hidden),
        };
        // SAFETY: both buffers hold a chunk; the host's lives until the step is done, and nobody writes to it meanwhile.
        unsafe { result::memcpy_htod_async(to, from, ops.stream().cu_stream()) }?;
        match exchange {
            Some(exchange) => exchange.gather(ops, parts, hidden, (chunk.rows, shape.hidden)),
            None => Ok(()),
        }
    }

    /// Enqueue that this rank's part of a chunk's hidden rows is brought to the host.
    ///
    /// # Errors
    /// [`OpError`].
    pub(crate) fn enqueue_give(
        &mut self,
        ops: &Ops,
        shape: &Shape,
        chunk: &Chunk,
        hidden: &CudaSlice<f32>,
    ) -> Result<(), OpError> {
        let (first, bytes) = place(shape, chunk);
        let all = 4 * chunk.rows * shape.hidden;
        let skipped = (shape.index * bytes).min(all);
        // The last part is shorter where they do not come out even.
        let bytes = bytes.min(all - skipped);
        let outgoing = self.outgoing.as_mut();
        let Some(to) = outgoing.and_then(|out| out.as_mut_slice().get_mut(first..first + bytes)) else {
            return Err(OpError::Shape(format!(
                "{bytes} bytes at {first} for the stage behind have no room"
            )));
        };
        let from = ops.address(hidden) + skipped as u64;
        // SAFETY: both buffers have these bytes; the host's is read behind the step's event.
        unsafe { result::memcpy_dtoh_async(to, from, ops.stream().cu_stream()) }?;
        Ok(())
    }
}

/// Where a chunk's part begins in a frame, and its bytes.
fn place(shape: &Shape, chunk: &Chunk) -> (usize, usize) {
    let first = chunk.first / MAX_ROWS * part_bytes(shape, MAX_ROWS);
    (first, part_bytes(shape, chunk.rows))
}
