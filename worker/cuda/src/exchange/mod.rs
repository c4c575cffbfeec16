//! What ranks give each other inside a step: those of a stage over memory of their GPUs, stages over the mesh.
//!
//! | module | what it is |
//! |---|---|
//! | `memory` | memory of a GPU that processes share |
//! | `share` | brings the areas of all ranks together |
//! | `trial` | shows that what ranks write arrives |
//! | `watch` | ends waits on the device when the era is over |
//! | `hop` | hidden rows from one pipeline stage to the next |
//!
//! Each rank has an area on its GPU that its peers map and write to; `exchange.cu` says how. The area belongs to one era: a
//! rank that has not heard yet that it is over writes to memory that nobody reads any more.

mod hop;
mod memory;
mod share;
mod trial;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::CudaSlice;
use llamero_engine::{BackendError, Mesh, StepProgress};

use crate::error::refused;
use crate::ops::exchange::{Areas, STATE_WORDS, Sum, SumOrder, area_bytes, part};
use crate::ops::{MAX_ROWS, OpError, Ops, Received, RootValues, Roots};
use crate::shape::Shape;
pub(crate) use hop::{Edge, Hop, frame_bytes};
use memory::SharedMemory;
use share::share;
use watch::Control;
pub(crate) use watch::Watch;

/// From how many bytes that a rank would send in one exchange on a sum goes by parts: a second exchange costs some
/// microseconds, in which a link of some hundred GB/s moves about as much.
pub(crate) const BY_PARTS: usize = 1 << 20;
/// Ranks of a pod wait so many times longer for each other before they form than in a step, and so does a stage for the one
/// before it, which computes all of its layers meanwhile. Whether they move is for the leader to see.
const PATIENCE: u32 = 20;
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

/// How long a rank's GPU waits for its peers. A peer that has not begun since its frame of the stage before has not come is not to blame:
/// the rank that should have sent it is, and its own peers find that in half of this.
fn limit_of(shape: &Shape, options: ExchangeOptions) -> Duration {
    match shape.has_embedding {
        true => options.limit,
        false => options.limit * 2,
    }
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

/// What a rank has to do with others in one era; nothing of a rank alone.
#[derive(Default)]
pub(crate) struct Links {
    /// Hears of all ranks of the group.
    pub(crate) watch: Option<Watch>,
    /// With the ranks of its stage, where it has several.
    pub(crate) exchange: Option<Exchange>,
    /// To the stages before and behind its own, where there are several.
    pub(crate) hop: Option<Hop>,
}

/// A rank's part of the exchanges of one era.
pub(crate) struct Exchange {
    parts: Parts,
    // Owners wait for the device before they drop it.
    _memory: Vec<SharedMemory>,
}

/// What exchanges are made with.
struct Parts {
    areas: Areas,
    attention: Sum,
    ffn: Sum,
    /// This rank's index, on the device.
    place: CudaSlice<u8>,
    by_parts: usize,
    world: usize,
    _state: CudaSlice<u32>,
}

impl Parts {
    /// With the areas of all ranks at these addresses; the control block is the watch's.
    fn new(
        (addresses, control): (&[u64], &Control),
        shape: &Shape,
        ops: &Ops,
        options: ExchangeOptions,
    ) -> Result<Self, BackendError> {
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
        let words = (ops.address(&state), control.address());
        let slot = slot_bytes(shape, options.by_parts);
        let parts = Self {
            areas: Areas::new(addresses, shape.index, slot, words)?,
            attention: sum(&shape.attention_sum)?,
            ffn: sum(&shape.ffn_sum)?,
            place: stream
                .clone_htod(&[u8::try_from(shape.index).unwrap_or(u8::MAX)])
                .map_err(refused)?,
            by_parts: options.by_parts,
            world: shape.world,
            _state: state,
        };
        stream.synchronize().map_err(refused)?;
        Ok(parts)
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

impl Links {
    /// Share memory with all ranks of this one's stage in `mesh`, which call this too, and see that it works.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] for ranks of the stage that are in other pods or on the same GPU, or GPUs that do not reach
    /// each other; [`BackendError::Lost`].
    pub(crate) fn over(
        mut mesh: Box<dyn Mesh>,
        shape: &Shape,
        ops: &mut Ops,
        options: ExchangeOptions,
        progress: Arc<StepProgress>,
    ) -> Result<Self, BackendError> {
        if mesh.members().ranks().len() < 2 {
            return Ok(Self::default());
        }
        let control = Control::new(ops.stream().context(), limit_of(shape, options)).map_err(refused)?;
        let patience = options.limit * PATIENCE;
        let exchange = match shape.world {
            0 | 1 => None,
            _ => {
                let bytes = area_bytes(slot_bytes(shape, options.by_parts));
                let shared = share(&mut *mesh, ops, bytes, (patience, options.same_gpu))?;
                let addresses: Vec<u64> = shared.iter().map(|area| area.memory.address()).collect();
                let parts = Parts::new((&addresses, &control), shape, ops, options)?;
                trial::run(&mut *mesh, ops, &parts.areas, &shared, patience)?;
                let _memory = shared.into_iter().map(|area| area.memory).collect();
                Some(Exchange { parts, _memory })
            }
        };
        let hop = Hop::over(&*mesh, (options.limit, patience))?;
        let watch = Some(Watch::new(mesh, control, progress)?);
        Ok(Self { watch, exchange, hop })
    }

    /// Exchange with nobody, for measuring a rank without its peers: whatever it gives them goes to its own memory, and their
    /// flags are up. It sums what was there for the roots of others; what another stage would have given is there at once.
    ///
    /// # Errors
    /// The driver's.
    pub(crate) fn looped_back(
        mesh: Box<dyn Mesh>,
        shape: &Shape,
        ops: &mut Ops,
        options: ExchangeOptions,
        progress: Arc<StepProgress>,
    ) -> Result<Self, BackendError> {
        let hop = (!(shape.has_embedding && shape.has_head)).then(Hop::looped_back);
        if shape.world < 2 {
            let watch = None;
            let exchange = None;
            return Ok(Self { watch, exchange, hop });
        }
        let control = Control::new(ops.stream().context(), options.limit).map_err(refused)?;
        let bytes = area_bytes(slot_bytes(shape, options.by_parts));
        let own = share::own(ops, bytes, HIGHEST)?;
        let addresses = vec![own.address(); shape.world];
        let exchange = Exchange {
            parts: Parts::new((&addresses, &control), shape, ops, options)?,
            _memory: vec![own],
        };
        Ok(Self {
            watch: Some(Watch::new(mesh, control, progress)?),
            exchange: Some(exchange),
            hop,
        })
    }
}

impl Exchange {
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

    /// Enqueue that `hidden[..n]` becomes what all ranks have of it: this one's part is at the start of `parts`.
    ///
    /// # Errors
    /// [`OpError`].
    pub(crate) fn gather(
        &self,
        ops: &mut Ops,
        parts: &CudaSlice<f32>,
        hidden: &mut CudaSlice<f32>,
        (rows, width): (usize, usize),
    ) -> Result<(), OpError> {
        let of = &self.parts;
        ops.push_part(&of.areas, &of.place, parts, part(rows * width, of.world))?;
        // What is added to -0 keeps all its bits, a zero's sign among them.
        ops.fill_words(hidden, rows * width, (-0.0f32).to_bits())?;
        let all = Roots {
            values: RootValues::Received(Received(&of.areas)),
            count: 1,
            joins: None,
            scales: None,
        };
        ops.join_roots(hidden, all, rows, width)
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

    /// Where the device keeps whether an exchange has failed: a word that is not 0 then.
    pub(crate) fn failed(&self) -> u64 {
        self.parts.areas.failed()
    }
}
