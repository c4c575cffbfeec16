//! Buffers of a formed rank on the device, and what they take.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};
use llamero_engine::{BackendError, FormSpec, KvDtype, MemoryPlan};

use crate::error::{refused, unusable};
use crate::exchange::{self, ExchangeOptions};
use crate::layout::{Layout, aligned};
use crate::ops::{AttentionShape, MAX_ROWS, RopeShape, SEGMENT, TILE, TOP, mask_words};
use crate::pinned::Pinned;
use crate::shape::Shape;
use crate::weights::room;

/// Table entries that are uploaded at a time.
pub(crate) const ENTRIES: usize = 4096;
/// Biases that are uploaded at a time.
pub(crate) const BIASES: usize = 4096;
/// Regions of a step's frame: tokens, positions, slots, and the answered rows of each chunk.
pub(crate) const REGIONS: usize = 4;
/// Words of a sampling frame: temperatures, positions, picked tokens, masked rows; seeds of two words.
pub(crate) const SAMPLE_WORDS: usize = 6 * MAX_ROWS;
/// Of the device's memory, what is left for graphs, modules and the driver: one part in so many, and at least so much.
const RESERVE_PART: u64 = 50;
const RESERVE_BYTES: u64 = 256 << 20;

/// Sizes that a group agreed on, as this rank needs them. The only place that reads them from the specification.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Tokens of a step, rounded up to whole chunks.
    pub(crate) tokens: usize,
    pub(crate) sequences: usize,
    pub(crate) context: usize,
    pub(crate) block: usize,
    pub(crate) in_flight: usize,
}

impl Sizes {
    /// # Errors
    /// [`BackendError::Unusable`] for what is not built.
    pub(crate) fn new(spec: &FormSpec) -> Result<Self, BackendError> {
        let limits = &spec.limits;
        if limits.kv_dtype != KvDtype::Bf16 {
            return Err(unusable(
                "a KV cache in FP8 is not built for GPUs yet: choose bf16 (--kv-cache-dtype auto, engine.kvCache.dtype: auto)".into(),
            ));
        }
        if limits.max_adapters > 0 {
            return Err(unusable(format!(
                "{} adapters were asked for, and adapters are not built for GPUs yet: serve the model without",
                limits.max_adapters
            )));
        }
        if !matches!(limits.block_size, 16 | 32 | 64 | 128 | 256) {
            return Err(unusable(format!(
                "a KV block of {} tokens cannot be used: choose 16, 32, 64, 128 or 256",
                limits.block_size
            )));
        }
        Ok(Self {
            tokens: (limits.max_batched_tokens as usize).next_multiple_of(MAX_ROWS),
            sequences: limits.max_sequences as usize,
            context: limits.max_context as usize,
            block: limits.block_size as usize,
            in_flight: limits.steps_in_flight.max(1) as usize,
        })
    }

    /// Blocks of a sequence.
    pub(crate) fn table(&self) -> usize {
        self.context.div_ceil(self.block)
    }

    pub(crate) fn rope(&self, shape: &Shape) -> RopeShape {
        RopeShape {
            q_heads: shape.q_heads,
            kv_heads: shape.kv_heads,
            dim: shape.head_dim,
            block_tokens: self.block,
            table_stride: self.table(),
        }
    }

    /// Attention of rows that see at most `longest` tokens.
    pub(crate) fn attention(&self, shape: &Shape, longest: usize) -> AttentionShape {
        AttentionShape {
            q_heads: shape.q_heads,
            kv_heads: shape.kv_heads,
            group: shape.group,
            skipped: shape.skipped,
            dim: shape.head_dim,
            block_tokens: self.block,
            table_stride: self.table(),
            longest: longest.min(self.table() * self.block),
            leaf_width: shape.attention_leaves.width,
        }
    }

    /// Elements of one layer's keys in a block; its values are as many.
    pub(crate) fn block_elements(&self, shape: &Shape) -> usize {
        shape.kv_heads * self.block * shape.head_dim
    }
}

/// Elements of each buffer.
struct Counts {
    hidden: usize,
    normed: usize,
    qkv: usize,
    q: usize,
    attended: usize,
    attention_parts: usize,
    roots: usize,
    gate_up: usize,
    gated: usize,
    frame: usize,
    tables: usize,
    states: usize,
    logits: usize,
    segments: usize,
    tiles: usize,
    masks: usize,
}

impl Counts {
    fn new(shape: &Shape, sizes: &Sizes) -> Self {
        let vocab = shape.head_width();
        let roots = shape
            .attention_leaves
            .roots
            .len()
            .max(shape.ffn_leaves.roots.len());
        // The workspace is largest at some context in between, where a launch still takes all rows.
        let longest = std::iter::successors(Some(256), |longest| {
            (*longest < sizes.context).then_some(2 * longest)
        });
        let parts = longest.map(|longest| sizes.attention(shape, longest).parts(MAX_ROWS));
        Self {
            hidden: MAX_ROWS * shape.hidden,
            normed: MAX_ROWS * shape.hidden_leaves.stride(),
            qkv: MAX_ROWS * shape.qkv(),
            q: MAX_ROWS * shape.q_heads * shape.head_dim,
            attended: MAX_ROWS * shape.attention_leaves.stride(),
            attention_parts: parts.max().unwrap_or(0),
            roots: roots * MAX_ROWS * shape.hidden,
            gate_up: MAX_ROWS * 2 * shape.ffn,
            gated: MAX_ROWS * shape.ffn_leaves.stride(),
            frame: REGIONS * sizes.tokens,
            // One more slot, of rows that only fill up a batch.
            tables: (sizes.sequences + 1) * sizes.table(),
            states: if shape.has_head {
                sizes.tokens * shape.hidden_leaves.stride()
            } else {
                0
            },
            logits: MAX_ROWS * vocab,
            segments: vocab.div_ceil(SEGMENT),
            tiles: vocab.div_ceil(TILE),
            masks: MAX_ROWS * mask_words(vocab),
        }
    }

    fn workspace(&self) -> usize {
        let words = [
            self.hidden,
            self.qkv,
            self.q,
            self.attention_parts,
            self.roots,
            self.gate_up,
            self.frame,
            self.tables,
            3 * ENTRIES,
            4 * BIASES,
            SAMPLE_WORDS,
            MAX_ROWS,
            self.masks,
            self.tiles,
            1,
        ];
        let halves = [self.normed, self.attended, self.gated];
        words.iter().map(|count| aligned(4 * count)).sum::<usize>()
            + halves.iter().map(|count| aligned(2 * count)).sum::<usize>()
    }

    fn logits(&self, sizes: &Sizes) -> usize {
        let doubles = [MAX_ROWS * self.segments * TOP, MAX_ROWS * TOP];
        let words = [
            self.logits,
            MAX_ROWS * self.tiles,
            MAX_ROWS * self.tiles,
            4 * MAX_ROWS * self.segments,
            MAX_ROWS,
        ];
        words.iter().map(|count| aligned(4 * count)).sum::<usize>()
            + doubles.iter().map(|count| aligned(8 * count)).sum::<usize>()
            + sizes.in_flight * aligned(2 * self.states)
    }
}

/// What a rank takes of the device's memory.
pub(crate) fn plan(shape: &Shape, layout: &Layout, sizes: &Sizes, exchange: ExchangeOptions) -> MemoryPlan {
    let counts = Counts::new(shape, sizes);
    let angles = aligned(4 * sizes.table() * sizes.block * shape.head_dim / 2);
    MemoryPlan {
        // Refused where any are asked for.
        adapters: 0,
        weights: layout.bytes() as u64,
        workspace: counts.workspace() as u64 + exchange::bytes(shape, exchange.by_parts),
        logits: counts.logits(sizes) as u64,
        rope: 2 * angles as u64,
        kv_block: (2 * 2 * shape.layers * sizes.block_elements(shape)) as u64,
    }
}

/// What stays free of a device of `total` bytes.
pub(crate) fn reserve(total: u64) -> u64 {
    // A device of a few hundred MiB exists only in tests.
    (total / RESERVE_PART).max(RESERVE_BYTES.min(total / 8))
}

/// Buffers that every step uses, one step after the other.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) hidden: CudaSlice<f32>,
    pub(crate) normed: CudaSlice<u16>,
    pub(crate) qkv: CudaSlice<f32>,
    pub(crate) q: CudaSlice<f32>,
    pub(crate) attended: CudaSlice<u16>,
    pub(crate) attention_parts: CudaSlice<f32>,
    pub(crate) roots: CudaSlice<f32>,
    pub(crate) gate_up: CudaSlice<f32>,
    pub(crate) gated: CudaSlice<u16>,
    /// `[REGIONS][tokens of the step in whole chunks]`.
    pub(crate) frame: CudaSlice<u32>,
    /// `[sequences + 1][blocks of a sequence]`.
    pub(crate) tables: CudaSlice<u32>,
    pub(crate) entries: CudaSlice<u32>,
    /// Layers computed so far, modulo 2³², and where the host sees them.
    pub(crate) layers: CudaSlice<u32>,
    pub(crate) layers_seen: Pinned<u32>,
    pub(crate) sampling: SamplingBuffers,
}

/// Buffers from logits to candidates, of 64 rows.
#[derive(Debug)]
pub(crate) struct SamplingBuffers {
    pub(crate) logits: CudaSlice<f32>,
    pub(crate) keys: CudaSlice<u64>,
    pub(crate) top: CudaSlice<u64>,
    pub(crate) lse: CudaSlice<f32>,
    pub(crate) raw_lse: CudaSlice<f32>,
    pub(crate) best: CudaSlice<u32>,
    pub(crate) picked: CudaSlice<f32>,
    /// See [`SAMPLE_WORDS`].
    pub(crate) frame: CudaSlice<u32>,
    /// Temperatures of 0.
    pub(crate) zeros: CudaSlice<f32>,
    pub(crate) biases: CudaSlice<u32>,
    pub(crate) masks: CudaSlice<u32>,
    /// The rank's tiles of the vocabulary.
    pub(crate) tiles: CudaSlice<u32>,
}

impl Workspace {
    pub(crate) fn new(stream: &Arc<CudaStream>, shape: &Shape, sizes: &Sizes) -> Result<Self, BackendError> {
        let counts = Counts::new(shape, sizes);
        let words = |count| room::<u32>(stream, count).map_err(refused);
        let floats = |count| room::<f32>(stream, count).map_err(refused);
        let halves = |count| room::<u16>(stream, count).map_err(refused);
        let doubles = |count| room::<u64>(stream, count).map_err(refused);
        let mut tiles: Vec<u32> = shape.vocab_tiles.iter().collect();
        // Nothing is sampled before the last stage, and a buffer has at least one element.
        tiles.truncate(counts.tiles.max(1));
        Ok(Self {
            hidden: floats(counts.hidden)?,
            normed: halves(counts.normed)?,
            qkv: floats(counts.qkv)?,
            q: floats(counts.q)?,
            attended: halves(counts.attended)?,
            attention_parts: floats(counts.attention_parts)?,
            roots: floats(counts.roots)?,
            gate_up: floats(counts.gate_up)?,
            gated: halves(counts.gated)?,
            frame: words(counts.frame)?,
            tables: stream.alloc_zeros(counts.tables).map_err(refused)?,
            entries: words(3 * ENTRIES)?,
            layers: stream.alloc_zeros(1).map_err(refused)?,
            layers_seen: Pinned::new(stream.context(), 1).map_err(refused)?,
            sampling: SamplingBuffers {
                logits: floats(counts.logits)?,
                keys: doubles(MAX_ROWS * counts.segments * TOP)?,
                top: doubles(MAX_ROWS * TOP)?,
                lse: floats(MAX_ROWS * counts.tiles)?,
                raw_lse: floats(MAX_ROWS * counts.tiles)?,
                best: words(4 * MAX_ROWS * counts.segments)?,
                picked: floats(MAX_ROWS)?,
                frame: words(SAMPLE_WORDS)?,
                zeros: stream.alloc_zeros(MAX_ROWS).map_err(refused)?,
                biases: words(4 * BIASES)?,
                masks: words(counts.masks)?,
                tiles: stream.clone_htod(&tiles).map_err(refused)?,
            },
        })
    }
}

/// Final norms of a step's answered positions: `[answer][hidden, leaf by leaf]`.
pub(crate) fn states(
    stream: &Arc<CudaStream>,
    shape: &Shape,
    sizes: &Sizes,
) -> Result<CudaSlice<u16>, BackendError> {
    room(stream, Counts::new(shape, sizes).states).map_err(refused)
}
