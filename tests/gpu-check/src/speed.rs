//! Bandwidth of the memory and of kernels; decode and prefill of true shapes with random weights.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use cudarc::driver::CudaSlice;
use cudarc::driver::sys::CUevent_flags;
use llamero_checkpoint::Topology;
use llamero_cuda::compile::Modules;
use llamero_cuda::device::devices;
use llamero_cuda::ops::{Element, Leaves, MAX_ROWS, Ops, Weights};
use llamero_cuda::{CudaBackend, CudaOptions, Origin, probe};
use llamero_engine::{Backend as _, RowOutput};

use crate::drive::{self, Leader, done, row, sample};
use crate::model::Model;

/// Bytes of the buffer whose reading is the measure of all others; far more than any cache.
const READ_BYTES: usize = 4 << 30;
/// Weights of a product are spread over copies of so many bytes together, so that no cache holds them.
const COPIES_BYTES: usize = 512 << 20;
/// Runs of which the best counts.
const RUNS: usize = 7;

/// The first GPU's kernels.
///
/// # Errors
/// There is no driver or no GPU.
pub fn ops(kernels: Option<&Path>) -> anyhow::Result<Ops> {
    let device = devices(probe::driver()?)?
        .into_iter()
        .next()
        .context("no GPU is seen")?;
    Ok(Ops::new(Modules::new(device, kernels.map(Path::to_owned)))?)
}

/// The shortest time of several runs of `work`, in seconds, by the device's clock.
fn time(ops: &mut Ops, work: &mut dyn FnMut(&mut Ops) -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let stream = ops.stream().clone();
    let event = || stream.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
    let mut best = f64::MAX;
    work(ops)?;
    for _ in 0..RUNS {
        let (start, end) = (event()?, event()?);
        start.record(&stream)?;
        work(ops)?;
        end.record(&stream)?;
        end.synchronize()?;
        best = best.min(f64::from(start.elapsed_ms(&end)?) / 1e3);
    }
    Ok(best)
}

/// Bytes a second of reading memory once.
///
/// # Errors
/// The driver's.
pub fn read_bandwidth(ops: &mut Ops, most: usize) -> anyhow::Result<f64> {
    let (free, _) = ops.device().context.mem_get_info()?;
    let bytes = READ_BYTES.min(free / 2).min(most) / 4096 * 4096;
    let buffer: CudaSlice<u8> = ops.stream().alloc_zeros(bytes)?;
    let mut sum = ops.stream().alloc_zeros(1)?;
    let seconds = time(ops, &mut |ops| Ok(ops.read_all(&buffer, &mut sum)?))?;
    Ok(bytes as f64 / seconds)
}

/// A product of a model.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// What it is called.
    pub name: &'static str,
    /// Rows of the matrix.
    pub outputs: usize,
    /// Leaves of this rank, and their width.
    pub leaves: (u32, usize),
    /// Type of the weights.
    pub element: Element,
}

/// The products of a decode step of 8B, and those of one rank of 405B at TP 8.
pub const SHAPES: [Shape; 9] = [
    Shape {
        name: "8B qkv",
        outputs: 6144,
        leaves: (8, 512),
        element: Element::E4m3,
    },
    Shape {
        name: "8B o",
        outputs: 4096,
        leaves: (32, 128),
        element: Element::E4m3,
    },
    Shape {
        name: "8B gate+up",
        outputs: 28_672,
        leaves: (8, 512),
        element: Element::E4m3,
    },
    Shape {
        name: "8B down",
        outputs: 4096,
        leaves: (32, 448),
        element: Element::E4m3,
    },
    Shape {
        name: "8B head",
        outputs: 128_256,
        leaves: (8, 512),
        element: Element::Bf16,
    },
    Shape {
        name: "405B/8 qkv",
        outputs: 2304,
        leaves: (8, 2048),
        element: Element::E4m3,
    },
    Shape {
        name: "405B/8 o",
        outputs: 16_384,
        leaves: (4, 512),
        element: Element::E4m3,
    },
    Shape {
        name: "405B/8 gate+up",
        outputs: 13_312,
        leaves: (8, 2048),
        element: Element::E4m3,
    },
    Shape {
        name: "405B/8 down",
        outputs: 16_384,
        leaves: (4, 1664),
        element: Element::E4m3,
    },
];

/// Bytes of weights a second that a product reads at so many rows, of copies that take at most about `most` bytes.
///
/// # Errors
/// The driver's.
pub fn product_bandwidth(ops: &mut Ops, shape: &Shape, rows: usize, most: usize) -> anyhow::Result<f64> {
    ensure!(rows <= MAX_ROWS, "a product takes at most {MAX_ROWS} rows");
    let stream = ops.stream().clone();
    let (count, width) = shape.leaves;
    let leaves = Leaves::tree(count, 0..count, width)?;
    let size = match shape.element {
        Element::E4m3 => 1,
        Element::Bf16 => 2,
    };
    let bytes = shape.outputs * leaves.stride() * size;
    let copies = COPIES_BYTES.min(most).div_ceil(bytes).min(64);
    let program = std::sync::Arc::new(stream.clone_htod(&leaves.program()?)?);
    let matrix = |_| -> anyhow::Result<Weights> {
        Ok(Weights {
            values: stream.alloc_zeros(bytes)?,
            element: shape.element,
            scales: Some(stream.alloc_zeros(shape.outputs)?),
            outputs: shape.outputs,
            leaves: leaves.clone(),
            program: program.clone(),
        })
    };
    let matrices = (0..copies).map(matrix).collect::<anyhow::Result<Vec<_>>>()?;
    for (seed, matrix) in (1..).zip(&matrices) {
        ops.fill_values(matrix, seed)?;
    }
    let x = stream.alloc_zeros(rows * leaves.stride())?;
    let mut y = stream.alloc_zeros(leaves.roots.len() * rows * shape.outputs)?;
    let seconds = time(ops, &mut |ops| {
        for matrix in &matrices {
            ops.product(matrix, &x, rows, &mut y)?;
        }
        Ok(())
    })?;
    Ok((copies * bytes) as f64 / seconds)
}

/// What a model of true shape does with random weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Sequences that are decoded together.
    pub batch: u32,
    /// Seconds of a decode step, with the host's part: the median.
    pub step: f64,
    /// Bytes of weights that a step reads.
    pub weights: u64,
    /// Bytes of keys and values that it reads.
    pub kv: u64,
}

/// One rank of a model of true shape, loaded with random weights.
pub struct Rank {
    backend: CudaBackend,
    model: Model,
    tensor: u32,
    /// Token ids that this rank has an embedding of.
    tokens: u32,
    _folder: tempfile::TempDir,
}

impl Rank {
    /// Rank 0 of `tensor` ranks.
    ///
    /// # Errors
    /// The backend's, or there is no room for an empty file.
    pub fn new(model: Model, tensor: u32, kernels: Option<&Path>) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        model.write_sparse(folder.path())?;
        let options = CudaOptions {
            members: Topology::tensor(tensor).into(),
            kernels: kernels.map(Path::to_owned),
            origin: Origin::Random,
            ..CudaOptions::alone()
        };
        let backend = CudaBackend::new(folder.path(), options)?;
        Ok(Self {
            backend,
            model,
            tensor,
            tokens: model.vocab as u32 / tensor - 128,
            _folder: folder,
        })
    }

    fn token(&self, number: u32) -> u32 {
        number.wrapping_mul(2_654_435_761) % self.tokens
    }

    /// Decode `steps` steps of `batch` sequences that each have `context` tokens.
    ///
    /// # Errors
    /// The backend's.
    pub fn decode(&mut self, batch: u32, context: u32, steps: u32) -> anyhow::Result<Speed> {
        let most = 2048.max(batch);
        let longest = context + steps + 1;
        let mut spec = drive::spec(batch, most, longest);
        let memory = self.backend.memory(&spec)?;
        spec.kv_bytes = memory.kv_block * u64::from(batch * longest.div_ceil(spec.limits.block_size) + 8);
        let blocks = drive::form(&mut self.backend, &spec)?;
        let mut leader = Leader::new(&spec, blocks / 8 * 8);
        self.fill(&mut leader, batch, context, most)?;
        let mut times = Vec::new();
        for step in 0..steps {
            let rows = (0..batch)
                .map(|slot| row(slot, context + step, &[self.token(slot + 7 * step)], sample(1)))
                .collect();
            let plan = leader.plan(rows);
            let started = Instant::now();
            let ticket = self.backend.submit(&plan)?;
            let output = done(&mut self.backend, ticket)?;
            times.push(started.elapsed().as_secs_f64());
            ensure!(output.candidates.len() == batch as usize, "an answer is missing");
            let finite = output
                .candidates
                .iter()
                .all(|one| one.top.first().is_some_and(|top| top.1.is_finite()));
            ensure!(finite, "a logit is not a number");
            self.backend.release(ticket);
        }
        times.sort_by(f64::total_cmp);
        let kv_heads = (self.model.kv_heads as u64 / u64::from(self.tensor)).max(1);
        let token = 2 * 2 * self.model.layers as u64 * kv_heads * self.model.head_dim as u64;
        Ok(Speed {
            batch,
            step: times[times.len() / 2],
            weights: self.backend.bytes_per_step(),
            kv: u64::from(batch) * u64::from(context + steps / 2) * token,
        })
    }

    /// Give every sequence its context.
    fn fill(&mut self, leader: &mut Leader, batch: u32, context: u32, most: u32) -> anyhow::Result<()> {
        let piece = (most / batch).min(context).max(1);
        for start in (0..context).step_by(piece as usize) {
            let len = piece.min(context - start);
            let rows = (0..batch).map(|slot| {
                let tokens: Vec<u32> = (start..start + len).map(|i| self.token(slot * 31 + i)).collect();
                row(slot, start, &tokens, RowOutput::None)
            });
            let plan = leader.plan(rows.collect());
            let ticket = self.backend.submit(&plan)?;
            done(&mut self.backend, ticket)?;
            self.backend.release(ticket);
        }
        Ok(())
    }

    /// Seconds of a sum over all ranks of so many rows, with its joining: the best of several runs of `count`.
    ///
    /// # Errors
    /// The backend's.
    pub fn exchange(&mut self, rows: usize, count: u32) -> anyhow::Result<f64> {
        drive::form(&mut self.backend, &drive::spec(1, MAX_ROWS as u32, 64))?;
        let mut best = self.backend.exchange_seconds(rows, count)?;
        for _ in 1..RUNS {
            best = best.min(self.backend.exchange_seconds(rows, count)?);
        }
        Ok(best)
    }

    /// Seconds from a prompt of `tokens` tokens to its first token.
    ///
    /// # Errors
    /// The backend's.
    pub fn prefill(&mut self, tokens: u32) -> anyhow::Result<f64> {
        let mut spec = drive::spec(2, tokens, tokens + 1);
        let memory = self.backend.memory(&spec)?;
        spec.kv_bytes = memory.kv_block * u64::from(2 * (tokens + 1).div_ceil(spec.limits.block_size) + 8);
        let blocks = drive::form(&mut self.backend, &spec)?;
        let mut leader = Leader::new(&spec, blocks / 8 * 8);
        let mut best = f64::MAX;
        for slot in 0..2 {
            let prompt: Vec<u32> = (0..tokens).map(|i| self.token(i + slot)).collect();
            let plan = leader.plan(vec![row(slot, 0, &prompt, sample(1))]);
            let started = Instant::now();
            let ticket = self.backend.submit(&plan)?;
            done(&mut self.backend, ticket)?;
            best = best.min(started.elapsed().as_secs_f64());
            self.backend.release(ticket);
        }
        Ok(best)
    }
}
