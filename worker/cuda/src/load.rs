//! From a checkpoint to the device: what a thread has read is put into pinned memory and copied while it reads on.

use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DevicePtr as _, result};
use half::bf16;
use llamero_checkpoint::load::{Rows, Sink, SinkError, load_rank};
use llamero_checkpoint::{Checkpoint, Dtype, ModelLayout, RankShard, TensorKind, e4m3};
use llamero_engine::{BackendError, LoadWatch};

use crate::error::refused;
use crate::layout::{Layout, MatrixId, Place};
use crate::ops::Element;
use crate::pinned::Pinned;
use crate::probe::describe;
use crate::shape::Shape;
use crate::weights::ModelWeights;

/// Threads that read and convert at most.
const MAX_THREADS: usize = 8;
/// Pinned buffers for each of them: one is filled while the others are copied.
const BUFFERS: usize = 3;
/// Bytes of a buffer, unless one row is longer: a little more than the loader hands over at a time.
const STAGING_BYTES: usize = 1 << 20;

/// Fill `weights` with the rank's shard.
pub(crate) fn load(
    checkpoint: &Checkpoint,
    model: &ModelLayout,
    shard: &RankShard,
    (shape, layout): (&Shape, &Layout),
    (weights, context): (&ModelWeights, &Arc<CudaContext>),
    watch: &dyn LoadWatch,
) -> Result<(), BackendError> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
    let stream = context.new_stream().map_err(refused)?;
    let uploader =
        Uploader::new(shape, layout, weights, shard, model.is_tied(), stream, threads).map_err(refused)?;
    let loaded = load_rank(checkpoint, model, shard, threads, &uploader, &mut |now| {
        watch.progress(now);
        if watch.is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    // Also after a failure: nothing may be copied from buffers that are given back.
    let copied = uploader.stream.synchronize().map_err(refused);
    match loaded {
        Err(llamero_checkpoint::Error::Cancelled) => return Err(BackendError::Cancelled),
        outcome => outcome?,
    }
    copied
}

/// A pinned buffer, and when what was last in it has been copied.
struct Staging {
    bytes: Pinned<u8>,
    copied: CudaEvent,
}

/// Takes rows from several threads.
struct Uploader<'a> {
    shape: &'a Shape,
    layout: &'a Layout,
    weights: &'a ModelWeights,
    first_layer: u32,
    is_tied: bool,
    stream: Arc<CudaStream>,
    free: Mutex<Vec<Staging>>,
    returned: Condvar,
}

/// The driver refuses a copy.
#[derive(Debug, thiserror::Error)]
#[error("weights cannot be copied to the GPU: the NVIDIA driver says {0}")]
struct CopyError(String);

fn copy_error(error: cudarc::driver::DriverError) -> SinkError {
    CopyError(describe(error)).into()
}

impl<'a> Uploader<'a> {
    fn new(
        shape: &'a Shape,
        layout: &'a Layout,
        weights: &'a ModelWeights,
        shard: &RankShard,
        is_tied: bool,
        stream: Arc<CudaStream>,
        threads: usize,
    ) -> Result<Self, cudarc::driver::DriverError> {
        // Larger chunks go in pieces of whole rows.
        let widest = layout
            .matrices()
            .map(|matrix| matrix.row_bytes())
            .max()
            .unwrap_or(0);
        let bytes = STAGING_BYTES.max(widest);
        let staging = |_| -> Result<Staging, cudarc::driver::DriverError> {
            Ok(Staging {
                bytes: Pinned::new(stream.context(), bytes)?,
                copied: stream.context().new_event(None)?,
            })
        };
        let free = (0..BUFFERS * threads).map(staging).collect::<Result<_, _>>()?;
        Ok(Self {
            shape,
            layout,
            weights,
            first_layer: shard.layers.start,
            is_tied,
            stream,
            free: Mutex::new(free),
            returned: Condvar::new(),
        })
    }

    /// A buffer that nothing is copied from any more.
    fn take(&self) -> Result<Staging, SinkError> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self
            .returned
            .wait_while(free, |free| free.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        // The one that has been waiting longest.
        let staging = free.remove(0);
        drop(free);
        match staging.copied.synchronize() {
            Ok(()) => Ok(staging),
            Err(error) => {
                self.give_back(staging);
                Err(copy_error(error))
            }
        }
    }

    fn give_back(&self, staging: Staging) {
        self.free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(staging);
        self.returned.notify_one();
    }

    /// Copy `fill`'s bytes to `target` on the device, in pieces that fit a buffer. `rows` of `row_bytes` each.
    fn upload(
        &self,
        target: u64,
        (rows, row_bytes): (usize, usize),
        fill: &dyn Fn(usize, &mut [u8]),
    ) -> Result<(), SinkError> {
        self.stream.context().bind_to_thread().map_err(copy_error)?;
        let mut first = 0;
        while first < rows {
            let mut staging = self.take()?;
            let bytes = staging.bytes.as_mut_slice();
            let count = (bytes.len() / row_bytes).clamp(1, rows - first);
            let part = &mut bytes[..count * row_bytes];
            for (row, to) in (first..).zip(part.chunks_exact_mut(row_bytes)) {
                fill(row, to);
            }
            let to = target + (first * row_bytes) as u64;
            // SAFETY: the target has room for all rows, and the buffer is not touched before its event.
            let copied = unsafe { result::memcpy_htod_async(to, part, self.stream.cu_stream()) };
            let copied = copied.and_then(|()| staging.copied.record(&self.stream));
            self.give_back(staging);
            copied.map_err(copy_error)?;
            first += count;
        }
        Ok(())
    }

    fn norm(&self, to: &cudarc::driver::CudaSlice<f32>, rows: &Rows<'_>) -> Result<(), SinkError> {
        self.floats(to.device_ptr(&self.stream).0, &rows.f32()?)
    }

    fn floats(&self, target: u64, values: &[f32]) -> Result<(), SinkError> {
        self.upload(target, (values.len(), 4), &|at, to| {
            to.copy_from_slice(&values[at].to_le_bytes())
        })
    }

    fn embedding(
        &self,
        table: &Pinned<u16>,
        rows: &Rows<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), SinkError> {
        let bytes = rows.bf16(&mut scratch.converted)?;
        let values: Vec<u16> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|pair| u16::from_le_bytes(*pair))
            .collect();
        // SAFETY: every row is handed over once.
        unsafe { table.put(rows.first as usize * self.shape.hidden, &values) };
        Ok(())
    }

    fn matrix(
        &self,
        id: MatrixId,
        first: usize,
        rows: &Rows<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), SinkError> {
        let (Some(layout), Some(weights)) = (self.layout.matrix(id), self.weights.matrix(id)) else {
            return Err(format!("{id:?} has no place on this rank").into());
        };
        let fp8 = rows.piece.tensor.dtype == Dtype::F8E4M3;
        let bytes = match (layout.element, fp8) {
            (Element::E4m3, _) => rows.e4m3()?,
            (Element::Bf16, false) => rows.bf16(&mut scratch.converted)?,
            (Element::Bf16, true) => {
                let wide = rows
                    .e4m3()?
                    .iter()
                    .map(|code| bf16::from_f32(e4m3::decode(*code)));
                scratch.converted.clear();
                scratch.converted.extend(wide.flat_map(bf16::to_le_bytes));
                &scratch.converted
            }
        };
        let first = first + rows.first as usize;
        let size = layout.element.bytes();
        let (width, padded) = (layout.leaves.width * size, layout.leaves.padded() * size);
        let own = layout.leaves.count * width;
        let target = weights.values.device_ptr(&self.stream).0 + (first * layout.row_bytes()) as u64;
        self.upload(target, (rows.count as usize, layout.row_bytes()), &|row, to| {
            let from = bytes[row * own..][..own].chunks_exact(width);
            for (leaf, to) in from.zip(to.chunks_exact_mut(padded)) {
                let (values, zeros) = to.split_at_mut(width);
                values.copy_from_slice(leaf);
                zeros.fill(0);
            }
        })?;
        let Some(scales) = &weights.scales else {
            return Ok(());
        };
        let ones;
        let values = if rows.scales.is_empty() {
            ones = vec![1.0; rows.count as usize];
            &ones
        } else {
            rows.scales
        };
        self.floats(scales.device_ptr(&self.stream).0 + 4 * first as u64, values)
    }
}

/// What one thread works with.
#[derive(Default)]
struct Scratch {
    converted: Vec<u8>,
}

impl Sink for Uploader<'_> {
    type Scratch = Scratch;

    fn put(&self, rows: &Rows<'_>, scratch: &mut Scratch) -> Result<(), SinkError> {
        let id = rows.piece.tensor.id;
        let Some(place) = self.layout.place(self.shape, id, self.first_layer) else {
            return Err(format!("{id} has no place on this rank").into());
        };
        // The head of a tied model is the embedding, too, where the rank has both.
        let is_table = match place {
            Place::Embedding => true,
            _ => self.is_tied && id.kind == TensorKind::Head,
        };
        if let (true, Some(table)) = (is_table, &self.weights.embedding) {
            self.embedding(table, rows, scratch)?;
        }
        match (place, &self.weights.head) {
            (Place::Embedding, _) => Ok(()),
            (Place::InputNorm(layer), _) => self.norm(&self.weights.layers[layer].input_norm, rows),
            (Place::PostNorm(layer), _) => self.norm(&self.weights.layers[layer].post_norm, rows),
            (Place::FinalNorm, Some(head)) => self.norm(&head.norm, rows),
            (Place::FinalNorm, None) => Err("the last norm has no place on this rank".into()),
            (Place::Matrix(id, first), _) => self.matrix(id, first, rows, scratch),
        }
    }
}
