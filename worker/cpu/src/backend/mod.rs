//! One rank on the CPU: [`CpuBackend`].

mod era;

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;

use llamero_checkpoint::{Checkpoint, ModelLayout, RankShard, Runs, ShardPlan, Topology};
use llamero_engine::{
    Backend, BackendError, Collective, FormSpec, KvCapacity, Late, LeafLayout, LoadProgress, LogitShard,
    Plan, StepOutput, Ticket,
};

use crate::attention::MAX_HEAD_DIM;
use crate::forward::{Model, Programs};
use crate::kernel::Kernel;
use crate::kernel::pack::LANES;
use crate::load;
use crate::pool::Pool;
use crate::rope::{Rope, frequencies};
use crate::shape::Shape;
use crate::weights::Weights;
use era::Era;

/// What a rank needs besides its checkpoint.
#[derive(Debug)]
pub struct CpuOptions {
    /// Ranks of the tensor-parallel group.
    pub tensor: u32,
    /// This rank.
    pub rank: u32,
    /// An anonymous memory file for the weights, which may hold them already; without one they live in this process.
    pub memory: Option<OwnedFd>,
    /// Threads that compute, the caller's included.
    pub threads: usize,
    /// The kernel; [`Kernel::detect`] takes the fastest.
    pub kernel: Kernel,
}

/// One rank that computes on the CPU.
pub struct CpuBackend {
    checkpoint: Checkpoint,
    model: ModelLayout,
    shard: RankShard,
    shape: Shape,
    programs: Programs,
    kernel: Kernel,
    pool: Pool,
    memory: Option<OwnedFd>,
    weights: Option<Weights>,
    era: Option<Era>,
}

type HostCollective = dyn Collective<Buffer = [f32]>;

impl CpuBackend {
    /// A rank of the model in the folder `checkpoint`. Reads headers only.
    ///
    /// # Errors
    /// [`BackendError::Checkpoint`] when the checkpoint cannot be used or split so; [`BackendError::Memory`] when the
    /// system refuses the threads, or the model's heads are too wide.
    pub fn new(checkpoint: &Path, options: CpuOptions) -> Result<Self, BackendError> {
        let checkpoint = Checkpoint::open(checkpoint)?;
        let model = ModelLayout::check(&checkpoint).map_err(llamero_checkpoint::Error::from)?;
        let config = checkpoint.config();
        let plan = ShardPlan::new(config, Topology::tensor(options.tensor))
            .map_err(llamero_checkpoint::Error::from)?;
        let shard = plan
            .member(options.rank)
            .map_err(llamero_checkpoint::Error::from)?
            .clone();
        let shape = shape(&checkpoint, &shard, plan.shards())?;
        if !shape.head_dim.is_multiple_of(LANES)
            || shape.head_dim > MAX_HEAD_DIM
            || !shape.hidden.is_multiple_of(2)
        {
            return Err(BackendError::Memory(format!(
                "heads of {} elements cannot be computed: multiples of {LANES} up to {MAX_HEAD_DIM} can",
                shape.head_dim
            )));
        }
        let pool = Pool::new(options.threads).map_err(|error| {
            BackendError::Memory(format!("cannot start {} threads: {error}", options.threads))
        })?;
        let programs = Programs::new(&shape);
        let (kernel, memory) = (options.kernel, options.memory);
        Ok(Self {
            checkpoint,
            model,
            shard,
            shape,
            programs,
            kernel,
            pool,
            memory,
            weights: None,
            era: None,
        })
    }

    /// The numerics class for the handshake between ranks.
    #[must_use]
    pub fn numerics_class(&self) -> &'static str {
        self.kernel.numerics_class()
    }

    /// The kernel in use.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// The checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Bytes of weights that one decoded token reads: every matrix and scale, not the embedding.
    #[must_use]
    pub fn bytes_per_token(&self) -> u64 {
        let layout = load::layout(&self.shape, &self.model);
        let embedding = self.shape.vocab_size * self.shape.hidden * 2;
        (layout.bytes - embedding - crate::layout::HEADER_BYTES) as u64
    }

    /// Bytes of KV cache that one token takes on this rank, for blocks of 32 tokens and more.
    #[must_use]
    pub fn kv_bytes_per_token(&self) -> u64 {
        (self.shape.layers * self.shape.kv_heads.len() * self.shape.head_dim * 2 * size_of::<u16>()) as u64
    }

    /// Multiply-adds per token in the matrices, without attention.
    #[must_use]
    pub fn products_per_token(&self) -> u64 {
        let layout = load::layout(&self.shape, &self.model);
        let of_layer = |layer: &crate::layout::LayerAt| -> usize {
            crate::layout::Role::ALL
                .iter()
                .map(|role| layer.matrix(*role))
                .map(|at| at.n * at.k)
                .sum()
        };
        layout.layers.iter().map(of_layer).sum::<usize>() as u64
    }

    #[cfg(test)]
    pub(crate) fn swap_leaves_of_down(&mut self, a: usize, b: usize) {
        self.programs.ffn = self.programs.ffn.clone().with_swapped_leaves(a, b);
    }

    fn era(&mut self) -> Result<&mut Era, BackendError> {
        self.era
            .as_mut()
            .ok_or(BackendError::NotReady("form a group first"))
    }
}

fn shape(checkpoint: &Checkpoint, shard: &RankShard, shards: &[RankShard]) -> Result<Shape, BackendError> {
    let config = checkpoint.config();
    let range = |runs: &Runs| -> Result<_, BackendError> {
        let run = one_run(runs)?;
        Ok(run.start as usize..run.end as usize)
    };
    let owners = |share: fn(&RankShard) -> &Runs| {
        let owners = shards.iter().map(|shard| one_run(share(shard)));
        Ok::<_, BackendError>(LeafLayout {
            owners: owners.collect::<Result<_, _>>()?,
        })
    };
    Ok(Shape {
        hidden: config.hidden_size as usize,
        layers: shard.layers.len(),
        head_dim: config.head_dim as usize,
        group: (config.q_heads / config.kv_heads) as usize,
        q_heads: range(&shard.q_heads)?,
        kv_heads: range(&shard.kv_heads)?,
        ffn: range(&shard.ffn())?,
        ffn_leaf: shard.leaves.width as usize,
        vocab: range(&shard.vocab())?,
        vocab_size: config.vocab_size as usize,
        epsilon: config.rms_norm_eps as f32,
        attention_leaves: owners(|shard| &shard.q_heads)?,
        ffn_leaves: owners(|shard| &shard.ffn_leaves)?,
        rank: shard.rank as usize,
    })
}

fn one_run(runs: &Runs) -> Result<Range<u32>, BackendError> {
    match runs.as_slice() {
        [run] => Ok(run.clone()),
        _ => Err(BackendError::Memory(format!(
            "this rank's share {runs} has gaps, which the CPU backend cannot compute yet"
        ))),
    }
}

impl Backend for CpuBackend {
    type Collective = HostCollective;

    fn load(&mut self, progress: &mut dyn FnMut(LoadProgress)) -> Result<(), BackendError> {
        if self.weights.is_some() {
            return Ok(());
        }
        let layout = load::layout(&self.shape, &self.model);
        let bytes = layout.bytes;
        let fingerprint = load::fingerprint(&self.checkpoint, &self.shard, &layout);
        let mut weights = Weights::map(layout, fingerprint, self.memory.as_ref()).map_err(|error| {
            BackendError::Memory(format!("cannot map {bytes} bytes for the weights: {error}"))
        })?;
        if weights.is_complete() {
            let total = llamero_checkpoint::load::rank_bytes(&self.model, &self.shard);
            tracing::info!(bytes = total, "the weights are in memory already");
            progress(LoadProgress { loaded: total, total });
        } else {
            load::load(
                &self.checkpoint,
                &self.model,
                &self.shard,
                self.shape.hidden,
                &mut weights,
                &mut |state| {
                    progress(LoadProgress {
                        loaded: state.done,
                        total: state.total,
                    });
                },
            )?;
        }
        self.weights = Some(weights);
        Ok(())
    }

    fn form(&mut self, spec: &FormSpec, collective: Box<HostCollective>) -> Result<KvCapacity, BackendError> {
        self.era = None;
        let weights = self
            .weights
            .as_ref()
            .ok_or(BackendError::NotReady("load the weights first"))?;
        let config = self.checkpoint.config();
        let mut turns = frequencies(config.rope_theta, self.shape.head_dim);
        if let Some(scaling) = &config.rope_scaling {
            turns.iter_mut().for_each(|turn| *turn = scaling.scale(*turn));
        }
        let rope = Rope::new(&turns, spec.max_context as usize);
        let era = Era::new(spec, collective, &self.shape, &self.programs, rope)?;
        let model = model(&self.shape, &self.programs, self.kernel, weights, era.rope());
        era::warm_up(&model, &mut self.pool, &self.shape)?;
        let capacity = era.capacity();
        self.era = Some(era);
        Ok(capacity)
    }

    fn submit(&mut self, plan: &Plan) -> Result<Ticket, BackendError> {
        let vocab = self.shape.vocab_size;
        self.era()?.submit(plan, vocab)
    }

    fn bind(&mut self, ticket: Ticket, late: &Late) -> Result<(), BackendError> {
        let vocab = self.shape.vocab_size;
        self.era()?.bind(ticket, late, vocab)
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Option<StepOutput>, BackendError> {
        let Some(weights) = &self.weights else {
            return Err(BackendError::NotReady("load the weights first"));
        };
        let Some(era) = &mut self.era else {
            return Err(BackendError::NotReady("form a group first"));
        };
        let parts = (&self.shape, &self.programs, self.kernel, weights);
        era.poll(ticket, parts, &mut self.pool).map(Some)
    }

    fn logits(&mut self, ticket: Ticket, row: u32) -> Result<LogitShard, BackendError> {
        let (first, width) = (self.shape.vocab.start as u32, self.shape.vocab.len());
        self.era()?.logits(ticket, row, first, width)
    }

    fn release(&mut self, ticket: Ticket) {
        if let Some(era) = &mut self.era {
            era.release(ticket);
        }
    }

    fn dissolve(&mut self) {
        self.era = None;
    }
}

fn model<'a>(
    shape: &'a Shape,
    programs: &'a Programs,
    kernel: Kernel,
    weights: &'a Weights,
    rope: &'a Rope,
) -> Model<'a> {
    Model {
        kernel,
        shape,
        weights,
        programs,
        rope,
    }
}

#[cfg(test)]
mod tests;
