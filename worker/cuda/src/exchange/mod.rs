//! What the ranks of a tensor group give each other inside a step, over memory of their GPUs.
//!
//! | module | what it is |
//! |---|---|
//! | `memory` | memory of a GPU that processes share |
//! | `watch` | ends waits on the device when the era is over |
//!
//! Each rank has an area on its GPU that its peers map and write to; `exchange.cu` says how. The area belongs to one era: a
//! rank that has not heard yet that it is over writes to memory that nobody reads any more.

mod memory;
mod watch;

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaSlice, CudaStream, result, sys};
use llamero_engine::mesh::files::swap_files;
use llamero_engine::mesh::local::all_to_all;
use llamero_engine::{BackendError, Label, Mesh, MeshError, StepProgress};

use crate::device::Uuid;
use crate::error::{bug, refused, unusable};
use crate::ops::exchange::{Areas, STATE_WORDS, Sum, SumOrder, area_bytes, part};
use crate::ops::{MAX_ROWS, OpError, Ops, Received, RootValues, Roots};
use crate::shape::Shape;
use memory::SharedMemory;
use watch::{Control, Watch};

/// From how many bytes that a rank would send in one exchange on a sum goes by parts: a second exchange costs some
/// microseconds, in which a link of some hundred GB/s moves about as much.
pub(crate) const BY_PARTS: usize = 1 << 20;
/// Ranks of a pod wait so many times longer for each other before they form than in a step.
const FORM_PATIENCE: u32 = 20;

/// How exchanges are made. All ranks have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExchangeOptions {
    /// A wait for a peer ends after this, and with it the era.
    pub limit: Duration,
    /// From so many bytes on that a rank would send, it sums by parts.
    pub by_parts: usize,
}

impl Default for ExchangeOptions {
    fn default() -> Self {
        Self {
            limit: Duration::from_secs(30),
            by_parts: BY_PARTS,
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
    watch: Watch,
    areas: Areas,
    attention: Sum,
    ffn: Sum,
    by_parts: usize,
    world: usize,
    _state: CudaSlice<u32>,
    // Owners wait for the device before they drop it.
    _memory: Vec<SharedMemory>,
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
    /// Share memory with all ranks of `mesh`, which call this too. None for a rank alone.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] for peers in other pods, or GPUs that do not reach each other; [`BackendError::Lost`].
    pub(crate) fn over(
        mut mesh: Box<dyn Mesh>,
        shape: &Shape,
        ops: &Ops,
        options: ExchangeOptions,
        progress: Arc<StepProgress>,
    ) -> Result<Option<Self>, BackendError> {
        if shape.world < 2 {
            return Ok(None);
        }
        let stream = ops.stream().clone();
        let slot = slot_bytes(shape, options.by_parts);
        let memory = share(&mut *mesh, ops, area_bytes(slot), options.limit * FORM_PATIENCE)?;
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
        let addresses: Vec<u64> = memory.iter().map(SharedMemory::address).collect();
        let words = (ops.address(&state), control.address());
        let exchange = Self {
            areas: Areas::new(&addresses, shape.index, slot, words)?,
            attention: sum(&shape.attention_sum)?,
            ffn: sum(&shape.ffn_sum)?,
            by_parts: options.by_parts,
            world: shape.world,
            watch: Watch::new(mesh, control, progress)?,
            _state: state,
            _memory: memory,
        };
        stream.synchronize().map_err(refused)?;
        Ok(Some(exchange))
    }

    /// Enqueue an exchange of the `n` values of each of this rank's roots.
    pub(crate) fn sum(
        &self,
        ops: &mut Ops,
        which: Which,
        roots: &CudaSlice<f32>,
        n: usize,
    ) -> Result<(), OpError> {
        match goes_by_parts(n, self.world, self.by_parts) {
            true => ops.sum_by_parts(&self.areas, self.sum_of(which), roots, n),
            false => ops.push_roots(&self.areas, self.sum_of(which), roots, n),
        }
    }

    /// What the exchange of `n` values has brought, until the next one.
    pub(crate) fn received<'a>(
        &'a self,
        which: Which,
        n: usize,
        scales: Option<&'a CudaSlice<f32>>,
    ) -> Roots<'a> {
        let sum = self.sum_of(which);
        let is_joined = goes_by_parts(n, self.world, self.by_parts);
        Roots {
            values: RootValues::Received(Received(&self.areas)),
            count: if is_joined { 1 } else { sum.order.roots },
            joins: (!is_joined && sum.order.roots > 1).then_some(&sum.joins),
            scales,
        }
    }

    fn sum_of(&self, which: Which) -> &Sum {
        match which {
            Which::Attention => &self.attention,
            Which::Ffn => &self.ffn,
        }
    }

    pub(crate) fn areas(&self) -> &Areas {
        &self.areas
    }

    /// Whether steps are under way, for which peers have to be there.
    pub(crate) fn set_busy(&self, is_busy: bool) {
        self.watch.set_busy(is_busy);
    }

    /// End whatever waits on the device.
    pub(crate) fn abort(&self) {
        self.watch.abort();
    }

    /// An error when a wait on the device has failed: what was computed behind it is worth nothing.
    pub(crate) fn check(&self, step: u64) -> Result<(), MeshError> {
        self.watch.check(step)
    }
}

/// The areas of all ranks in order of their indices: this rank's own, zeroed, and those of its peers.
fn share(
    mesh: &mut dyn Mesh,
    ops: &Ops,
    bytes: u64,
    patience: Duration,
) -> Result<Vec<SharedMemory>, BackendError> {
    let (rank, device) = (mesh.rank(), ops.device());
    let peers: Vec<u32> = mesh
        .members()
        .ranks()
        .iter()
        .copied()
        .filter(|peer| *peer != rank)
        .collect();
    if let Some(far) = peers.iter().find(|peer| !mesh.is_local(**peer)) {
        return Err(unusable(format!(
            "rank {far} is in another pod, and tensor-parallel ranks on GPUs have to be in one: use a node that has as many GPUs \
             as there are ranks, or fewer ranks"
        )));
    }
    let own = SharedMemory::create(&device.context, bytes).map_err(refused)?;
    zero(ops.stream(), &own)?;
    let mut introduction = device.uuid.0.to_vec();
    introduction.extend(own.size().to_le_bytes());
    let label = Label { step: 0, tag: 0 };
    let theirs = all_to_all(mesh, label, &introduction, patience)?;
    for (peer, theirs) in peers.iter().zip(&theirs) {
        let (uuid, size) = theirs.split_at(16);
        if size != own.size().to_le_bytes() {
            return Err(bug(format!("rank {peer} shares an area of another size")));
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(uuid);
        reaches(ops, *peer, Uuid(bytes))?;
    }
    let file = own.export().map_err(refused)?;
    let files = swap_files(mesh, &peers, file.as_fd(), Instant::now() + patience)?;
    let size = own.size();
    let mut all = Vec::new();
    for file in files {
        let imported = SharedMemory::import(&device.context, file.as_fd(), size);
        all.push(imported.map_err(refused)?);
    }
    // Peers are in order of rank, as members are.
    let index = peers.iter().take_while(|peer| **peer < rank).count();
    all.insert(index, own);
    Ok(all)
}

/// Nobody has the memory yet, so its flags are down before anybody raises one.
fn zero(stream: &Arc<CudaStream>, memory: &SharedMemory) -> Result<(), BackendError> {
    let (address, size) = (memory.address(), memory.size() as usize);
    // SAFETY: the memory has as many bytes, and is mapped for this device.
    unsafe { result::memset_d8_async(address, 0, size, stream.cu_stream()) }.map_err(refused)?;
    stream.synchronize().map_err(refused)
}

/// Whether this rank's GPU reaches the memory of a peer's.
fn reaches(ops: &Ops, peer: u32, theirs: Uuid) -> Result<(), BackendError> {
    let mine = ops.device();
    if mine.uuid == theirs {
        return Ok(());
    }
    let Some(other) = crate::device::number(theirs).map_err(refused)? else {
        return Err(unusable(format!(
            "rank {peer} has {theirs}, which this process does not see: every rank of a pod has to see all of its GPUs"
        )));
    };
    let mut can = 0;
    let (own, other) = (
        mine.context.cu_device(),
        result::device::get(other).map_err(refused)?,
    );
    // SAFETY: both are devices, and the pointer leads to a number.
    unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, own, other) }
        .result()
        .map_err(refused)?;
    if can != 0 {
        return Ok(());
    }
    Err(unusable(format!(
        "{} and {theirs} of rank {peer} do not reach each other's memory: use GPUs of one NVLink or PCIe switch, or one rank",
        mine.uuid
    )))
}
