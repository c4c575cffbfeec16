//! What the ranks of a tensor group give each other inside a step, over memory of their GPUs.
//!
//! | module | what it is |
//! |---|---|
//! | `memory` | memory of a GPU that processes share |
//! | `share` | brings the areas of all ranks together |
//! | `trial` | shows that what ranks write arrives |
//! | `watch` | ends waits on the device when the era is over |
//!
//! Each rank has an area on its GPU that its peers map and write to; `exchange.cu` says how. The area belongs to one era: a
//! rank that has not heard yet that it is over writes to memory that nobody reads any more.

mod memory;
mod share;
mod trial;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::CudaSlice;
use llamero_engine::{BackendError, Mesh, MeshError, StepProgress};

use crate::error::refused;
use crate::ops::exchange::{Areas, STATE_WORDS, Sum, SumOrder, area_bytes, part};
use crate::ops::{MAX_ROWS, OpError, Ops, Received, RootValues, Roots};
use crate::shape::Shape;
use memory::SharedMemory;
use share::share;
use watch::{Control, Watch};

/// From how many bytes that a rank would send in one exchange on a sum goes by parts: a second exchange costs some
/// microseconds, in which a link of some hundred GB/s moves about as much.
pub(crate) const BY_PARTS: usize = 1 << 20;
/// Ranks of a pod wait so many times longer for each other before they form than in a step.
const FORM_PATIENCE: u32 = 20;
/// A flag that no exchange has to wait for.
const HIGHEST: u32 = 0x7fff_ffff;

/// How exchanges are made. All ranks have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExchangeOptions {
    /// A wait for a peer ends after this, and with it the era.
    pub limit: Duration,
    /// From so many bytes on that a rank would send, it sums by parts.
    pub by_parts: usize,
    /// Ranks may have one GPU together, which shows that they work and nothing else.
    pub same_gpu: bool,
}

impl Default for ExchangeOptions {
    fn default() -> Self {
        Self {
            limit: Duration::from_secs(30),
            by_parts: BY_PARTS,
            same_gpu: false,
        }
    }
}

/// Whether a sum of `n` values goes by parts. All ranks find the same.
fn goes_by_parts(n: usize, world: usize, by_parts: usize) -> bool {
    // Two ranks would move as much in two exchanges as in one.
    world > 2 && 4 * n * (world - 1) >= by_parts
}

/// Bytes of a slot: what the largest exchange of a rank of this shape brings.
fn slot_bytes(shape: &Shape, by_parts: usize) -> u64 {
    let roots = shape.attention_sum.roots.max(shape.ffn_sum.roots);
    let of_rows = |rows: usize| {
        let n = rows * shape.hidden;
        match goes_by_parts(n, shape.world, by_parts) {
            true => 4 * (roots * part(n, shape.world)).max(n),
            false => 4 * roots * n,
        }
    };
    let most = (1..=MAX_ROWS).map(of_rows).max().unwrap_or(0);
    most.next_multiple_of(512) as u64
}

/// What exchanges take of the device's memory.
pub(crate) fn bytes(shape: &Shape, by_parts: usize) -> u64 {
    match shape.world {
        0 | 1 => 0,
        _ => area_bytes(slot_bytes(shape, by_parts)).next_multiple_of(memory::GRANULARITY),
    }
}

/// A rank's part of the exchanges of one era.
pub(crate) struct Exchange {
    parts: Parts,
    watch: Watch,
    // Owners wait for the device before they drop it.
    _memory: Vec<SharedMemory>,
}

/// What exchanges are made with.
struct Parts {
    areas: Areas,
    attention: Sum,
    ffn: Sum,
    by_parts: usize,
    world: usize,
    _state: CudaSlice<u32>,
}

impl Parts {
    /// With the areas of all ranks at these addresses; the control block is its watch's.
    fn new(
        addresses: &[u64],
        shape: &Shape,
        ops: &Ops,
        options: ExchangeOptions,
    ) -> Result<(Self, Control), BackendError> {
        let stream = ops.stream();
        let state: CudaSlice<u32> = stream.alloc_zeros(STATE_WORDS).map_err(refused)?;
        let sum = |order: &SumOrder| -> Result<Sum, BackendError> {
            let bytes = |bytes: &[u8]| stream.clone_htod(bytes).map_err(refused);
            Ok(Sum {
                places: bytes(&order.places)?,
                joins: bytes(&order.joins)?,
                order: order.clone(),
            })
        };
        let control = Control::new(stream.context(), options.limit).map_err(refused)?;
        let words = (ops.address(&state), control.address());
        let slot = slot_bytes(shape, options.by_parts);
        let parts = Self {
            areas: Areas::new(addresses, shape.index, slot, words)?,
            attention: sum(&shape.attention_sum)?,
            ffn: sum(&shape.ffn_sum)?,
            by_parts: options.by_parts,
            world: shape.world,
            _state: state,
        };
        stream.synchronize().map_err(refused)?;
        Ok((parts, control))
    }

    fn sum_of(&self, which: Which) -> &Sum {
        match which {
            Which::Attention => &self.attention,
            Which::Ffn => &self.ffn,
        }
    }
}

/// Which of a layer's two sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Behind `o`.
    Attention,
    /// Behind `down`.
    Ffn,
}

impl Exchange {
    /// Share memory with all ranks of `mesh`, which call this too, and see that it works. None for a rank alone.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] for peers in other pods or on the same GPU, or GPUs that do not reach each other;
    /// [`BackendError::Lost`].
    pub(crate) fn over(
        mut mesh: Box<dyn Mesh>,
        shape: &Shape,
        ops: &mut Ops,
        options: ExchangeOptions,
        progress: Arc<StepProgress>,
    ) -> Result<Option<Self>, BackendError> {
        if shape.world < 2 {
            return Ok(None);
        }
        let bytes = area_bytes(slot_bytes(shape, options.by_parts));
        let patience = options.limit * FORM_PATIENCE;
        let shared = share(&mut *mesh, ops, bytes, (patience, options.same_gpu))?;
        let addresses: Vec<u64> = shared.iter().map(|area| area.memory.address()).collect();
        let (parts, control) = Parts::new(&addresses, shape, ops, options)?;
        trial::run(&mut *mesh, ops, &parts.areas, &shared, patience)?;
        let memory = shared.into_iter().map(|area| area.memory).collect();
        Ok(Some(Self {
            parts,
            watch: Watch::new(mesh, control, progress)?,
            _memory: memory,
        }))
    }

    /// Exchange with nobody, for measuring a rank without its peers: whatever it gives them goes to its own memory, and their
    /// flags are up. It sums what was there for the roots of others. None for a rank alone.
    ///
    /// # Errors
    /// The driver's.
    pub(crate) fn looped_back(
        mesh: Box<dyn Mesh>,
        shape: &Shape,
        ops: &mut Ops,
        options: ExchangeOptions,
        progress: Arc<StepProgress>,
    ) -> Result<Option<Self>, BackendError> {
        if shape.world < 2 {
            return Ok(None);
        }
        let bytes = area_bytes(slot_bytes(shape, options.by_parts));
        let own = share::own(ops, bytes, HIGHEST)?;
        let (parts, control) = Parts::new(&vec![own.address(); shape.world], shape, ops, options)?;
        Ok(Some(Self {
            parts,
            watch: Watch::new(mesh, control, progress)?,
            _memory: vec![own],
        }))
    }

    /// Enqueue an exchange of the `n` values of each of this rank's roots.
    pub(crate) fn sum(
        &self,
        ops: &mut Ops,
        which: Which,
        roots: &CudaSlice<f32>,
        n: usize,
    ) -> Result<(), OpError> {
        let parts = &self.parts;
        match goes_by_parts(n, parts.world, parts.by_parts) {
            true => ops.sum_by_parts(&parts.areas, parts.sum_of(which), roots, n),
            false => ops.push_roots(&parts.areas, parts.sum_of(which), roots, n),
        }
    }

    /// Bytes that this rank gives its peers in an exchange of the `n` values of each of its roots.
    pub(crate) fn bytes_sent(&self, which: Which, n: usize) -> usize {
        let parts = &self.parts;
        let (peers, roots) = (parts.world - 1, parts.sum_of(which).order.places.len());
        match goes_by_parts(n, parts.world, parts.by_parts) {
            // A part of each root to its owner, and the joined part to everybody.
            true => 4 * peers * part(n, parts.world) * (roots + 1),
            false => 4 * peers * n * roots,
        }
    }

    /// What the exchange of `n` values has brought, until the next one.
    pub(crate) fn received<'a>(
        &'a self,
        which: Which,
        n: usize,
        scales: Option<&'a CudaSlice<f32>>,
    ) -> Roots<'a> {
        let parts = &self.parts;
        let sum = parts.sum_of(which);
        let is_joined = goes_by_parts(n, parts.world, parts.by_parts);
        Roots {
            values: RootValues::Received(Received(&parts.areas)),
            count: if is_joined { 1 } else { sum.order.roots },
            joins: (!is_joined && sum.order.roots > 1).then_some(&sum.joins),
            scales,
        }
    }

    pub(crate) fn areas(&self) -> &Areas {
        &self.parts.areas
    }

    /// Whether steps are under way, for which peers have to be there.
    pub(crate) fn set_busy(&self, is_busy: bool) {
        self.watch.set_busy(is_busy);
    }

    /// End whatever waits on the device.
    pub(crate) fn abort(&self) {
        self.watch.abort();
    }

    /// Where the device keeps whether an exchange has failed: a word that is not 0 then.
    pub(crate) fn failed(&self) -> u64 {
        self.parts.areas.failed()
    }

    /// The error by which a wait on the device has failed; none while all have ended well.
    pub(crate) fn check(&self, step: u64) -> Result<(), MeshError> {
        self.watch.check(step)
    }
}
