//! One rank of a large model at its true sizes, with made-up weights and as many layers as fit, beside the machine's bounds.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use llamero_checkpoint::{LlamaConfig, ShardPlan, Topology};
use llamero_engine::{BackendError, KvDtype, StepProgress};

use super::lonely::{LonelyMesh, Traffic, take};
use super::machine::{bandwidth, flops};
use super::stopwatch::Stopwatch;
use crate::attention::Span;
use crate::collective::{Collective, Waits};
use crate::forward::{Batch, Machine, Model};
use crate::kernel::Kernel;
use crate::kernel::pack::Element;
use crate::kv::{KvCache, KvShape};
use crate::layout::{HEADER_BYTES, Layout, Role};
use crate::load::dummy;
use crate::lora::LoraLimits;
use crate::pool::Pool;
use crate::programs::Programs;
use crate::rope::frequencies;
use crate::shape::Shape;
use crate::weights::Weights;
use crate::workspace::Workspace;

const BLOCK: usize = 32;
const PREFILLS: usize = 3;
const SPIN: Duration = Duration::from_micros(30);

/// What to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct ShapeBench {
    /// The model.
    pub config: LlamaConfig,
    /// Layers that are computed; the model's own number is that of `config`.
    pub layers: u32,
    /// Ranks of the group.
    pub tensor: u32,
    /// This one of them.
    pub rank: u32,
    /// Whether the layers' matrices are E4M3; bf16 otherwise. The head is bf16, as Meta leaves it.
    pub fp8: bool,
    /// Type of the KV cache.
    pub kv_dtype: KvDtype,
    /// Threads that compute.
    pub threads: usize,
    /// Tokens of the prompt, which are the context of decoding.
    pub prefill: u32,
    /// Decode steps.
    pub decode: u32,
    /// What a hop between ranks takes, in seconds.
    pub hop: f64,
    /// Bytes a second that a rank can send.
    pub link: f64,
}

/// One way of computing: decode of one sequence, or a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpeed {
    /// Tokens of a step.
    pub tokens: u32,
    /// Seconds for one layer of this rank, peers not waited for.
    pub seconds: f64,
    /// Operations of one layer (a multiply-add counts two), attention included.
    pub operations: f64,
    /// Bytes of weights and cache that one layer reads.
    pub bytes: f64,
    /// Seconds of the head for one position.
    pub head: f64,
    /// Seconds that the exchanges of one layer take by the model: hops, and bytes over the link.
    pub exchange: f64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct ShapeReport {
    /// Threads used.
    pub threads: usize,
    /// Layers computed, and of the model.
    pub layers: (u32, u32),
    /// Read bandwidth of the machine, bytes a second.
    pub bandwidth: f64,
    /// Peak of the kernel's dot products, operations a second.
    pub flops: f64,
    /// One sequence, a token a step.
    pub decode: LayerSpeed,
    /// A prompt in one step.
    pub prefill: LayerSpeed,
}

impl ShapeReport {
    /// Bytes a second of decoding as a part of the machine's.
    #[must_use]
    pub fn decode_ratio(&self) -> f64 {
        self.decode.bytes / self.decode.seconds / self.bandwidth
    }

    /// Operations a second of the prompt as a part of the machine's peak.
    #[must_use]
    pub fn prefill_ratio(&self) -> f64 {
        self.prefill.operations / self.prefill.seconds / self.flops
    }

    /// Tokens a second of the whole group with all its layers, were every rank on a machine like this one.
    #[must_use]
    pub fn group(&self, speed: LayerSpeed) -> f64 {
        let layers = f64::from(self.layers.1);
        f64::from(speed.tokens) / (layers * (speed.seconds + speed.exchange) + speed.head)
    }
}

impl fmt::Display for ShapeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "machine   {} thread(s): reads {:.1} GB/s, bf16 dot products {:.0} GFLOP/s",
            self.threads,
            self.bandwidth / 1e9,
            self.flops / 1e9
        )?;
        let ways = [
            ("decode", self.decode, self.decode_ratio(), "read bandwidth"),
            (
                "prefill",
                self.prefill,
                self.prefill_ratio(),
                "the peak of dot products",
            ),
        ];
        for (name, speed, ratio, bound) in ways {
            let LayerSpeed {
                tokens,
                seconds,
                bytes,
                operations,
                ..
            } = speed;
            writeln!(
                f,
                "{name:<9} {tokens} token(s) a step: {:.3} ms a layer, {:.1} MB read ({:.1} GB/s), {:.2} GFLOP ({:.0} GFLOP/s) = {:.0} % of {bound}",
                seconds * 1e3,
                bytes / 1e6,
                bytes / seconds / 1e9,
                operations / 1e9,
                operations / seconds / 1e9,
                100.0 * ratio
            )?;
        }
        for (name, speed, ..) in ways {
            writeln!(
                f,
                "group     {name}: {:.1} tokens/s with {} layers ({} measured), {:.3} ms of exchanges a layer by the model, {:.2} ms of head",
                self.group(speed),
                self.layers.1,
                self.layers.0,
                speed.exchange * 1e3,
                speed.head * 1e3
            )?;
        }
        Ok(())
    }
}

/// Measure one rank.
///
/// # Errors
/// [`BackendError::Unusable`] when the model cannot be split so, or there is too little memory.
pub fn run_shape(bench: &ShapeBench) -> Result<ShapeReport, BackendError> {
    let mut rank = Rank::new(bench)?;
    let prompt = bench.prefill.max(1);
    let prefill = rank.measure(bench, (0, prompt), PREFILLS)?;
    let decode = rank.measure(bench, (prompt, 1), bench.decode.max(1) as usize)?;
    Ok(ShapeReport {
        threads: bench.threads,
        layers: (bench.layers, bench.config.layers),
        bandwidth: bandwidth(bench.threads),
        flops: flops(rank.kernel, bench.threads),
        decode,
        prefill,
    })
}

/// A rank that nobody leads.
struct Rank {
    kernel: Kernel,
    shape: Shape,
    programs: Programs,
    weights: Weights,
    pool: Pool,
    cache: KvCache,
    work: Workspace,
    collective: Collective,
    traffic: Arc<Mutex<Traffic>>,
    table: Arc<[u32]>,
}

impl Rank {
    fn new(bench: &ShapeBench) -> Result<Self, BackendError> {
        let config = LlamaConfig {
            layers: bench.layers,
            ..bench.config.clone()
        };
        let unusable = |what: &str, error: std::io::Error| {
            BackendError::Unusable(format!(
                "cannot {what}: {error}; compute fewer layers or more ranks"
            ))
        };
        let topology = Topology::tensor(bench.tensor);
        let plan = ShardPlan::new(&config, topology).map_err(llamero_checkpoint::Error::from)?;
        let shard = plan.member(bench.rank).map_err(llamero_checkpoint::Error::from)?;
        let shape = Shape::new(&config, &plan, shard);
        let programs = Programs::new(&shape);
        let matrix = if bench.fp8 { Element::E4m3 } else { Element::Bf16 };
        let layout = Layout::new(&shape, |_, _| matrix, Element::Bf16, false);
        let mut pool = Pool::new(bench.threads, SPIN).map_err(|error| unusable("start threads", error))?;
        let mut weights =
            Weights::map(layout, 1, None).map_err(|error| unusable("map the weights", error))?;
        dummy::fill(&mut weights, shape.hidden, 1, &mut pool)
            .map_err(|error| unusable("make the weights", error))?;
        let tokens = bench.prefill.max(1) as usize;
        let blocks = (tokens + 1).div_ceil(BLOCK);
        let kv = KvShape::new(
            shape.layers,
            shape.kv_heads,
            shape.head_dim,
            BLOCK,
            bench.kv_dtype,
        )?;
        let cache = KvCache::new(kv, blocks).map_err(|error| unusable("map the KV cache", error))?;
        let turns = frequencies(config.rope_theta, shape.head_dim);
        let work = Workspace::new(&shape, &programs, turns, (tokens, LoraLimits::default()));
        let traffic = Arc::default();
        let mesh = LonelyMesh::new(topology.into(), bench.rank, Arc::clone(&traffic));
        let waits = Waits {
            deadline: Duration::from_secs(1),
            spin: SPIN,
        };
        Ok(Self {
            kernel: Kernel::detect(),
            shape,
            programs,
            weights,
            pool,
            cache,
            work,
            collective: Collective::new(Box::new(mesh), waits),
            traffic,
            table: (0..blocks as u32).collect(),
        })
    }

    /// Medians of `repeats` steps of `len` tokens from position `start` on.
    fn measure(
        &mut self,
        bench: &ShapeBench,
        (start, len): (u32, u32),
        repeats: usize,
    ) -> Result<LayerSpeed, BackendError> {
        let (mut layers, mut heads) = (Vec::new(), Vec::new());
        // The first one also brings pages and caches in.
        for repeat in 0..=repeats {
            let (layer, head) = self.step(start as usize, len as usize)?;
            if repeat > 0 {
                layers.push(layer / f64::from(bench.layers.max(1)));
                heads.push(head);
            }
        }
        // The gather of the embedding is counted with the layers: one exchange more than the two of each.
        let Traffic { hops, bytes } = take(&self.traffic);
        let rounds = (repeats + 1) as f64 * f64::from(bench.layers.max(1));
        let exchange = (hops as f64 * bench.hop + bytes as f64 / bench.link) / rounds;
        let (products, weights) = self.layer();
        let tokens = f64::from(len);
        // Each token attends to those before it and to itself.
        let seen = tokens * (f64::from(start) + (tokens + 1.0) / 2.0);
        let attention = 4.0 * seen * self.shape.q_width() as f64;
        let cached = (start + len) as usize * self.cache.shape().token_bytes() / self.shape.layers;
        Ok(LayerSpeed {
            tokens: len,
            seconds: median(layers),
            operations: 2.0 * tokens * products as f64 + attention,
            bytes: (weights + cached) as f64,
            head: median(heads),
            exchange,
        })
    }

    /// Multiply-adds of one layer for a token, and its bytes.
    fn layer(&self) -> (usize, usize) {
        let layout = self.weights.layout();
        let Some(layer) = layout.layers.first() else {
            return (0, 0);
        };
        let matrices = Role::ALL.map(|role| layer.matrix(role));
        let products = matrices.iter().map(|at| at.n * at.k).sum();
        let bytes: usize = matrices
            .iter()
            .map(|at| at.element.packed_bytes(at.n, at.k) + at.n * size_of::<f32>())
            .sum();
        debug_assert!(bytes + HEADER_BYTES <= layout.bytes);
        (products, bytes + 2 * self.shape.hidden * size_of::<f32>())
    }

    /// Seconds of the layers, and of the head for the last token.
    fn step(&mut self, start: usize, len: usize) -> Result<(f64, f64), BackendError> {
        let span = Span {
            first: 0,
            len,
            start,
            table: Arc::clone(&self.table),
        };
        let own = (self.shape.vocab.len() as usize).clamp(1, dummy::EMBEDDINGS);
        let tokens: Vec<u32> = self.shape.vocab.iter().take(own).cycle().take(len).collect();
        let model = Model {
            kernel: self.kernel,
            shape: &self.shape,
            weights: &self.weights,
            programs: &self.programs,
        };
        let mut machine = Machine {
            pool: &mut self.pool,
            collective: &mut self.collective,
            cache: &mut self.cache,
            work: &mut self.work,
            progress: &StepProgress::default(),
            is_warm_up: false,
        };
        let threads = machine.pool.threads();
        let begin = Stopwatch::start(threads);
        let batch = Batch {
            tokens: &tokens,
            spans: &[span],
            segments: &[],
        };
        model.run(&mut machine, &batch)?;
        let layers = begin.elapsed();
        let begin = Stopwatch::start(threads);
        let normed = model.final_norm(&self.work, &[len - 1]);
        model.logits(&mut self.pool, &normed, &mut self.work.logits);
        Ok((layers.as_secs_f64(), begin.elapsed().as_secs_f64()))
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(tensor: u32, rank: u32, fp8: bool) -> ShapeBench {
        ShapeBench {
            config: LlamaConfig {
                hidden_size: 256,
                layers: 12,
                q_heads: 8,
                kv_heads: 4,
                head_dim: 32,
                ffn_size: 512,
                vocab_size: 1024,
                ..LlamaConfig::of_shape("8b").unwrap()
            },
            layers: 2,
            tensor,
            rank,
            fp8,
            kv_dtype: KvDtype::Bf16,
            threads: 1,
            prefill: 40,
            decode: 3,
            hop: 1e-3,
            link: 1e9,
        }
    }

    #[test]
    fn every_rank_computes_its_part_with_numbers_in_range() {
        for (tensor, rank, fp8) in [(1, 0, false), (1, 0, true), (2, 1, true), (3, 2, false)] {
            let mut rank = Rank::new(&bench(tensor, rank, fp8)).unwrap();
            rank.step(0, 40).unwrap();
            rank.step(40, 1).unwrap();
            let logits = &rank.work.logits[..rank.shape.vocab_width()];
            assert!(
                logits
                    .iter()
                    .all(|logit| logit.is_finite() && logit.abs() < 100.0)
            );
            assert!(logits.iter().any(|logit| logit.abs() > 1e-3));
        }
    }

    #[test]
    fn the_report_counts_what_a_layer_reads_and_sends() {
        let report = run_shape(&bench(2, 0, true)).unwrap();
        // q, o: 128 · 256; k, v: 64 · 256; gate, up, down: 256 · 256.
        let products = 2 * 128 * 256 + 2 * 64 * 256 + 3 * 256 * 256;
        let scales = 4 * (128 + 2 * 64 + 256 + 2 * 256 + 256);
        let cached = 41 * 64 * 2 * 2;
        let bytes = products + scales + 2 * 256 * 4 + cached;
        assert_eq!(report.decode.bytes, f64::from(bytes));
        let attention = 4 * 41 * 128;
        assert_eq!(report.decode.operations, f64::from(2 * products + attention));
        // Two sums of a layer, and half a gather of the embedding, at a millisecond each.
        assert!(
            report.decode.exchange > 2.4e-3 && report.decode.exchange < 2.6e-3,
            "{report}"
        );
        assert!(report.group(report.decode) < 1.0 / (12.0 * 2.4e-3));
        assert!(report.to_string().contains("12 layers (2 measured)"));
        let alone = run_shape(&bench(1, 0, true)).unwrap();
        assert_eq!(alone.prefill.exchange, 0.0);
    }

    #[test]
    fn a_rank_that_cannot_be_is_refused() {
        assert!(run_shape(&bench(9, 0, true)).is_err());
        assert!(run_shape(&bench(2, 2, true)).is_err());
    }
}
