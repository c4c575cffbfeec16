//! Speed beside the machine's own bounds, measured in the same run.
//!
//! Decoding one sequence reads every weight once per token, so its bound is the read bandwidth over the bytes of the
//! weights. Prefill does two operations per weight and token, so its bound is the peak of the dot-product
//! instruction.
//!
//! | module | what it is |
//! |---|---|
//! | `machine` | the machine's bounds |
//! | `shapes` | one rank of a large model, with made-up weights |
//! | `lonely` | a mesh whose other ranks are not there |
//! | `stopwatch` | time that other programs do not stretch |

mod lonely;
mod machine;
mod shapes;
mod stopwatch;

use std::fmt;
use std::time::Instant;

use llamero_engine::mesh::TcpMesh;
use llamero_engine::step::{BlockDeltas, SampleKey};
use llamero_engine::{
    Backend, BackendError, BlockTables, Era, FormLimits, FormSpec, KvDtype, Plan, PlanRow, RowOutput,
    TokenRef, Waited,
};

pub use machine::{bandwidth, flops};
pub use shapes::{LayerSpeed, ShapeBench, ShapeReport, run_shape};

use crate::CpuBackend;
use stopwatch::Stopwatch;

const BLOCK: u32 = 16;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BenchOptions {
    /// Threads of the measurement of bandwidth and peak; those of the backend.
    pub threads: usize,
    /// Tokens to decode.
    pub decode: u32,
    /// Tokens of the prompt.
    pub prefill: u32,
    /// Sequences decoded at once in the batched measurement.
    pub batch: u32,
    /// Tokens behind which one sequence is decoded once more; 0: it is not.
    pub context: u32,
    /// Type of the KV cache.
    pub kv_dtype: KvDtype,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            threads: 1,
            decode: 128,
            prefill: 512,
            batch: 16,
            context: 0,
            kv_dtype: KvDtype::Bf16,
        }
    }
}

/// Measured speeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Threads used.
    pub threads: usize,
    /// Read bandwidth of the machine, bytes a second.
    pub bandwidth: f64,
    /// Peak of the kernel's dot products, operations a second (a multiply-add counts two).
    pub flops: f64,
    /// Bytes of weights that one decoded token reads.
    pub bytes_per_token: u64,
    /// Operations of one token of a prompt, attention and head not counted.
    pub operations_per_token: u64,
    /// One sequence, tokens a second.
    pub decode: f64,
    /// [`BenchOptions::batch`] sequences, tokens a second in all.
    pub decode_batch: f64,
    /// Sequences of `decode_batch`.
    pub batch: u32,
    /// Tokens of a prompt a second.
    pub prefill: f64,
    /// One sequence behind [`BenchOptions::context`] tokens.
    pub long: Option<LongDecode>,
}

/// Decoding one sequence behind a long context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LongDecode {
    /// Tokens before the first.
    pub context: u32,
    /// Bytes of keys and values that the first token reads.
    pub cache_bytes: u64,
    /// Tokens a second.
    pub decode: f64,
}

impl Report {
    /// Decode speed as a part of its bound by bandwidth.
    #[must_use]
    pub fn decode_ratio(&self) -> f64 {
        self.decode * self.bytes_per_token as f64 / self.bandwidth
    }

    /// Prefill speed as a part of its bound by the peak of the dot products.
    #[must_use]
    pub fn prefill_ratio(&self) -> f64 {
        self.prefill * self.operations_per_token as f64 / self.flops
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = self.threads;
        writeln!(
            f,
            "machine   {threads} thread(s): reads {:.1} GB/s, bf16 dot products {:.0} GFLOP/s",
            self.bandwidth / 1e9,
            self.flops / 1e9
        )?;
        writeln!(
            f,
            "decode    1 sequence: {:.1} tokens/s = {:.0} % of the bound by bandwidth ({:.1} MB a token)",
            self.decode,
            100.0 * self.decode_ratio(),
            self.bytes_per_token as f64 / 1e6
        )?;
        writeln!(
            f,
            "decode    {} sequences: {:.1} tokens/s",
            self.batch, self.decode_batch
        )?;
        write!(
            f,
            "prefill   {:.1} tokens/s = {:.0} % of the peak of dot products ({:.0} MFLOP a token)",
            self.prefill,
            100.0 * self.prefill_ratio(),
            self.operations_per_token as f64 / 1e6
        )?;
        match &self.long {
            Some(long) => write!(
                f,
                "\ndecode    1 sequence behind {} tokens: {:.1} tokens/s ({:.1} MB of keys and values a token)",
                long.context,
                long.decode,
                long.cache_bytes as f64 / 1e6
            ),
            None => Ok(()),
        }
    }
}

/// Measure a loaded rank that is alone in its group (`tensor` 1). Leaves it without a group.
///
/// # Errors
/// What the backend says, for instance too little memory for the cache.
pub fn run(backend: &mut CpuBackend, options: BenchOptions) -> Result<Report, BackendError> {
    let context = options.prefill.max(options.decode + 1);
    let mut driver = Driver::form(backend, options, context, options.batch.max(1))?;
    driver.prefill(0, 0, options.prefill.min(64))?;
    let start = Stopwatch::start(options.threads);
    driver.prefill(0, 0, options.prefill)?;
    let prefill = f64::from(options.prefill) / start.elapsed().as_secs_f64();
    let decode = driver.decode(1, 0, options.decode)?;
    let decode_batch = driver.decode(options.batch.max(1), 0, options.decode.min(64))?;
    let long = match options.context {
        0 => None,
        _ => Some(long(backend, options)?),
    };
    backend.dissolve();
    Ok(Report {
        threads: options.threads,
        bandwidth: bandwidth(options.threads),
        flops: flops(backend.kernel(), options.threads),
        bytes_per_token: backend.bytes_per_token(),
        operations_per_token: 2 * backend.products_per_token(),
        decode,
        decode_batch,
        batch: options.batch.max(1),
        prefill,
        long,
    })
}

/// Decode one sequence behind a prompt of `options.context` tokens.
fn long(backend: &mut CpuBackend, options: BenchOptions) -> Result<LongDecode, BackendError> {
    let BenchOptions { context, decode, .. } = options;
    let mut driver = Driver::form(backend, options, context + decode + 1, 1)?;
    let mut start = 0;
    while start < context {
        let tokens = options.prefill.max(1).min(context - start);
        driver.prefill(0, start, tokens)?;
        start += tokens;
    }
    let cache_bytes = driver.block_bytes / u64::from(BLOCK) * u64::from(context + 1);
    Ok(LongDecode {
        context,
        cache_bytes,
        decode: driver.decode(1, context, decode)?,
    })
}

/// A leader of the simplest kind: every slot owns its blocks for good.
struct Driver<'a> {
    backend: &'a mut CpuBackend,
    tables: BlockTables,
    blocks_per_slot: u32,
    block_bytes: u64,
    step: u64,
    era: Era,
    threads: usize,
}

impl<'a> Driver<'a> {
    fn form(
        backend: &'a mut CpuBackend,
        options: BenchOptions,
        context: u32,
        slots: u32,
    ) -> Result<Self, BackendError> {
        let era = Era {
            generation: 0,
            epoch: 1,
        };
        let context = context.next_multiple_of(BLOCK);
        let blocks_per_slot = context / BLOCK;
        let limits = FormLimits {
            max_sequences: slots,
            max_batched_tokens: options.prefill.max(slots),
            max_context: context,
            block_size: BLOCK,
            steps_in_flight: 1,
            kv_dtype: options.kv_dtype,
            max_adapters: 0,
            max_adapter_rank: 0,
        };
        let mut spec = FormSpec {
            era,
            limits,
            kv_bytes: 0,
        };
        let block_bytes = backend.memory(&spec)?.kv_block;
        spec.kv_bytes = block_bytes * u64::from(blocks_per_slot) * u64::from(slots);
        let capacity = backend.form(&spec, Box::new(TcpMesh::alone(era)), &mut |_| {})?;
        Ok(Self {
            backend,
            tables: BlockTables::new(slots, capacity.blocks),
            blocks_per_slot,
            block_bytes,
            step: 0,
            era,
            threads: options.threads,
        })
    }

    fn prefill(&mut self, slot: u32, start: u32, tokens: u32) -> Result<(), BackendError> {
        self.step(vec![row(slot, start, tokens, true)])
    }

    /// Decode `tokens` tokens of each of `sequences` sequences, of which `behind` tokens are there; tokens a second in all.
    fn decode(&mut self, sequences: u32, behind: u32, tokens: u32) -> Result<f64, BackendError> {
        self.step((0..sequences).map(|slot| row(slot, behind, 1, true)).collect())?;
        let start = Stopwatch::start(self.threads);
        for position in behind + 1..=behind + tokens {
            self.step((0..sequences).map(|slot| row(slot, position, 1, true)).collect())?;
        }
        Ok(f64::from(sequences) * f64::from(tokens) / start.elapsed().as_secs_f64())
    }

    fn step(&mut self, rows: Vec<PlanRow>) -> Result<(), BackendError> {
        let mut blocks = BlockDeltas::default();
        for row in &rows {
            if self.tables.table(row.slot).is_empty() {
                let first = row.slot * self.blocks_per_slot;
                blocks
                    .appends
                    .push((row.slot, (first..first + self.blocks_per_slot).collect()));
            }
        }
        self.step += 1;
        let broken = |error: llamero_engine::BlockTableError| BackendError::Bug(error.to_string());
        self.tables.apply(&blocks).map_err(broken)?;
        let state_hash = self.tables.hash();
        let plan = Plan {
            era: self.era,
            step: self.step,
            rows,
            blocks,
            late_tokens: 0,
            late_sampling: false,
            state_hash,
        };
        let ticket = self.backend.submit(&plan)?;
        match self.backend.wait(ticket, Instant::now())? {
            Waited::Done(_) => {}
            other => {
                return Err(BackendError::Bug(format!(
                    "a step that waits for nothing ended with {other:?}"
                )));
            }
        }
        self.backend.release(ticket);
        Ok(())
    }
}

fn row(slot: u32, start: u32, tokens: u32, sampled: bool) -> PlanRow {
    let greedy = SampleKey {
        seed: 0,
        temperature: 0.0,
        top: 1,
        mass: false,
        logprobs: false,
    };
    PlanRow {
        slot,
        start,
        tokens: (0..tokens).map(|i| TokenRef::Known((start + i) % 97)).collect(),
        adapter: None,
        output: if sampled {
            RowOutput::Sample { last: 1, key: greedy }
        } else {
            RowOutput::None
        },
    }
}
