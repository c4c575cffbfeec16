//! One rank on the CPU: [`CpuBackend`].
//!
//! | module | what it is |
//! |---|---|
//! | `formed_group` | from forming a group until leaving it |
//! | `step` | one step: submitted, run through the layers, sampled |

mod formed_group;
mod step;

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use llamero_checkpoint::load::Member;
use llamero_checkpoint::{Checkpoint, Members, ModelLayout, RankShard, Topology};
use llamero_engine::mesh::TcpMesh;
use llamero_engine::{
    AdapterStore, Backend, BackendError, FormLimits, FormSpec, KvCapacity, KvDtype, Late, LoadProgress,
    LoadWatch, LogitShard, MemoryPlan, Mesh, Plan, StepProgress, Ticket, Waited,
};

use crate::attention::{MAX_HEAD_DIM, Span};
use crate::collective::{Collective, SharedMesh, Waits};
use crate::forward::{Batch, Machine, Model};
use crate::kernel::Kernel;
use crate::kernel::pack::LANES;
use crate::kv::{KvCache, KvShape};
use crate::load;
use crate::load::pod::{Pod, PodMemory};
use crate::load::share::{self, Held};
use crate::lora::LoraLimits;
use crate::lora::store::CpuAdapters;
use crate::pool::Pool;
use crate::programs::Programs;
use crate::rope::frequencies;
use crate::shape::Shape;
use crate::weights::{Weights, state_of_file};
use crate::workspace::Workspace;
use formed_group::{FormedGroup, KeptBlocks};

/// What a rank needs besides its checkpoint.
#[derive(Debug)]
pub struct CpuOptions {
    /// Who belongs to the group, and how they share the model.
    pub members: Members,
    /// This rank.
    pub rank: u32,
    /// Members of an earlier process of this rank, for whose share `memory` may hold the weights.
    pub former: Option<Members>,
    /// An anonymous memory file for the weights, which may hold them already; without one they live in this process.
    pub memory: Option<OwnedFd>,
    /// The memory of all ranks of this pod, if they load together. Needs `memory`.
    pub pod: Option<PodMemory>,
    /// Threads that compute, the caller's included.
    pub threads: usize,
    /// The kernel; [`Kernel::detect`] takes the fastest.
    pub kernel: Kernel,
    /// How long waits for peers and for work last and spin.
    pub waits: Waits,
    /// Exchange through shared memory with the other ranks of the pod, which must do so too.
    pub shared_memory: bool,
}

impl CpuOptions {
    /// A rank alone in its group, whose weights live in this process.
    #[must_use]
    pub fn alone(threads: usize, kernel: Kernel) -> Self {
        Self {
            members: Topology::tensor(1).into(),
            rank: 0,
            former: None,
            memory: None,
            pod: None,
            threads,
            kernel,
            waits: Waits::new(std::time::Duration::from_secs(30), threads > crate::cores()),
            shared_memory: false,
        }
    }
}

/// Ranks of a pod wait so many times longer for each other before they form than in a step.
const FORM_PATIENCE: u32 = 20;

/// One rank that computes on the CPU.
pub struct CpuBackend {
    checkpoint: Checkpoint,
    model: ModelLayout,
    members: Members,
    shard: RankShard,
    shape: Shape,
    programs: Programs,
    kernel: Kernel,
    pool: Pool,
    waits: Waits,
    shared_memory: bool,
    former: Option<Members>,
    memory: Option<OwnedFd>,
    pod: Option<PodMemory>,
    /// Bytes read of the checkpoint.
    read: u64,
    weights: Option<Weights>,
    /// Whether all weights were touched.
    is_warm: bool,
    formed: Option<FormedGroup>,
    /// Those of the last era, until the next forms.
    kept: Option<KeptBlocks>,
    progress: Arc<StepProgress>,
    adapters: Arc<CpuAdapters>,
}

impl CpuBackend {
    /// A rank of the model in the folder `checkpoint`. Reads headers only.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] when the checkpoint cannot be used or split so, when the system refuses the threads,
    /// or the model's heads are too wide.
    pub fn new(checkpoint: &Path, options: CpuOptions) -> Result<Self, BackendError> {
        Self::of(Checkpoint::open(checkpoint)?, options)
    }

    /// A rank of the model in an open `checkpoint`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(checkpoint: Checkpoint, options: CpuOptions) -> Result<Self, BackendError> {
        let model = ModelLayout::check(&checkpoint).map_err(llamero_checkpoint::Error::from)?;
        let config = checkpoint.config();
        let Part {
            shard,
            shape,
            programs,
        } = Part::of(&checkpoint, &options.members, options.rank)?;
        if !shape.head_dim.is_multiple_of(LANES)
            || shape.head_dim > MAX_HEAD_DIM
            || !shape.hidden.is_multiple_of(2)
        {
            return Err(BackendError::Unusable(format!(
                "heads of {} elements cannot be computed: multiples of {LANES} up to {MAX_HEAD_DIM} can",
                shape.head_dim
            )));
        }
        let pool = Pool::new(options.threads, options.waits.spin).map_err(|error| {
            BackendError::Unusable(format!("cannot start {} threads: {error}", options.threads))
        })?;
        let adapters = CpuAdapters::new(config.clone(), shape.clone(), shard.clone());
        let CpuOptions {
            members,
            kernel,
            former,
            memory,
            pod,
            waits,
            shared_memory,
            ..
        } = options;
        Ok(Self {
            checkpoint,
            model,
            members,
            shard,
            shape,
            programs,
            kernel,
            pool,
            waits,
            shared_memory,
            former,
            memory,
            pod,
            read: 0,
            weights: None,
            is_warm: false,
            formed: None,
            kept: None,
            progress: Arc::default(),
            adapters: Arc::new(adapters),
        })
    }

    /// The numerics class for the handshake between ranks, by all that decides the bits they compute: family of kernels, type of
    /// the KV cache, and whether adapters may be added.
    #[must_use]
    pub fn numerics_class(&self, kv: KvDtype, max_adapters: u32) -> String {
        let kv = match kv {
            KvDtype::Bf16 => "bf16",
            KvDtype::Fp8E4m3 => "e4m3",
        };
        format!("{} kv-{kv} adapters-{max_adapters}", self.kernel.numerics_class())
    }

    /// Who belongs to the group, and how they share the model.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
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
        let table = self.shape.vocab_width() * self.shape.hidden * size_of::<u16>();
        let embedding = layout.embedding.map_or(0, |_| table);
        (layout.bytes - embedding - crate::layout::HEADER_BYTES) as u64
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
        self.programs.ffn.leaves = self.programs.ffn.leaves.clone().with_swapped_leaves(a, b);
    }

    fn frequencies(&self) -> Vec<f64> {
        let config = self.checkpoint.config();
        let mut turns = frequencies(config.rope_theta, self.shape.head_dim);
        if let Some(scaling) = &config.rope_scaling {
            turns.iter_mut().for_each(|turn| *turn = scaling.scale(*turn));
        }
        turns
    }

    fn kv_shape(&self, block_size: u32, dtype: KvDtype) -> Result<KvShape, BackendError> {
        let shape = &self.shape;
        KvShape::new(
            shape.layers,
            shape.kv_heads,
            shape.head_dim,
            block_size as usize,
            dtype,
        )
    }

    fn formed(&mut self) -> Result<&mut FormedGroup, BackendError> {
        self.formed.as_mut().ok_or_else(not_formed)
    }

    /// Read the weights: with the other ranks of the pod, where there are any that read the same.
    fn fill(&self, weights: &mut Weights, watch: &dyn LoadWatch) -> Result<(), BackendError> {
        let (checkpoint, model, threads) = (&self.checkpoint, &self.model, self.pool.threads());
        let pod = self.pod.as_ref().filter(|_| !weights.held_other());
        if let Some(pod) = pod
            && let Some(pod) = Pod::join(checkpoint, model, &self.members, &self.shard, pod)?
        {
            return pod.load(checkpoint, model, weights, threads, watch);
        }
        let memory = self.memory.as_ref();
        load::load(checkpoint, model, &self.shard, weights, memory, threads, watch)
    }

    /// Take over the share of an earlier process of this rank, if the memory holds it.
    fn adopt_former(&mut self) {
        let (Some(members), Some(file)) = (self.former.take(), &self.memory) else {
            return;
        };
        let Ok(part) = Part::of(&self.checkpoint, &members, self.shard.rank) else {
            return;
        };
        let layout = load::layout(&part.shape, &self.model);
        let fingerprint = load::fingerprint(&self.checkpoint, &part.shard, &layout);
        if state_of_file(file, &layout, fingerprint) == Member::Complete {
            self.become_part(members, part);
        }
    }

    /// Compute that part of the model from now on.
    fn become_part(&mut self, members: Members, part: Part) {
        let Part {
            shard,
            shape,
            programs,
        } = part;
        // Adapters are split as the model is: they are read again when the group forms.
        let adapters = CpuAdapters::new(self.checkpoint.config().clone(), shape.clone(), shard.clone());
        self.adapters = Arc::new(adapters);
        (self.members, self.shard, self.shape, self.programs) = (members, shard, shape, programs);
        self.formed = None;
        self.kept = None;
    }

    /// Move to another share that contains the present one or is part of it.
    fn change_to(&mut self, members: Members, part: Part, watch: &dyn LoadWatch) -> Result<(), BackendError> {
        let layout = load::layout(&part.shape, &self.model);
        let fingerprint = load::fingerprint(&self.checkpoint, &part.shard, &layout);
        // Not kept when it goes wrong.
        let mut weights = self.weights.take().ok_or_else(not_loaded)?;
        let to = Held {
            shard: &part.shard,
            layout: &layout,
        };
        let watch = ReadsMore {
            watch,
            before: self.read,
            read: Cell::new(self.read),
        };
        share::change(
            (&self.checkpoint, &self.model),
            (&self.shard, &to),
            fingerprint,
            (&mut weights, self.memory.as_ref()),
            self.pool.threads(),
            &watch,
        )?;
        self.read = watch.read.get();
        self.weights = Some(weights);
        self.become_part(members, part);
        Ok(())
    }

    /// Touch all weights once, so that the first request does not pay for it. Talks to nobody.
    fn warm_up(&mut self) -> Result<(), BackendError> {
        let kv = self.kv_shape(32, KvDtype::Bf16)?;
        let mut cache = KvCache::new(kv, 1)
            .map_err(|error| BackendError::Unusable(format!("cannot map a block of KV cache: {error}")))?;
        let room = (1, LoraLimits::default());
        let mut work = Workspace::new(&self.shape, &self.programs, self.frequencies(), room);
        let mut collective = Collective::new(
            Box::new(TcpMesh::alone(llamero_engine::Era::default())),
            self.waits,
        );
        let weights = self.weights.as_ref().ok_or_else(not_loaded)?;
        let model = model(&self.shape, &self.programs, self.kernel, weights);
        let span = Span {
            first: 0,
            len: 1,
            start: 0,
            table: [0].into(),
        };
        let mut machine = Machine {
            pool: &mut self.pool,
            collective: &mut collective,
            cache: &mut cache,
            work: &mut work,
            progress: &self.progress,
            is_warm_up: true,
        };
        let batch = Batch {
            tokens: &[0],
            spans: &[span],
            segments: &[],
        };
        model.run(&mut machine, &batch)?;
        let normed = model.final_norm(&work, &[0]);
        model.logits(&mut self.pool, &normed, &mut work.logits);
        Ok(())
    }
}

/// A rank's part of the model among some members.
struct Part {
    shard: RankShard,
    shape: Shape,
    programs: Programs,
}

impl Part {
    fn of(checkpoint: &Checkpoint, members: &Members, rank: u32) -> Result<Self, BackendError> {
        let of_checkpoint = llamero_checkpoint::Error::from;
        let plan = checkpoint.shard_plan(members).map_err(of_checkpoint)?;
        let shard = plan.member(rank).map_err(of_checkpoint)?.clone();
        let shape = Shape::new(checkpoint.config(), &plan, &shard);
        Ok(Self {
            programs: Programs::new(&shape),
            shard,
            shape,
        })
    }
}

/// Adds what was read before to what is read now.
struct ReadsMore<'a> {
    watch: &'a dyn LoadWatch,
    before: u64,
    read: Cell<u64>,
}

impl LoadWatch for ReadsMore<'_> {
    fn progress(&self, progress: LoadProgress) {
        let read = self.before.saturating_add(progress.read);
        self.read.set(read);
        self.watch.progress(LoadProgress { read, ..progress });
    }

    fn is_cancelled(&self) -> bool {
        self.watch.is_cancelled()
    }
}

fn not_formed() -> BackendError {
    BackendError::Bug("a group must be formed first".into())
}

fn not_loaded() -> BackendError {
    BackendError::Bug("the weights must be loaded first".into())
}

fn check_limits(limits: &FormLimits) -> Result<(), BackendError> {
    if (limits.max_adapters == 0) != (limits.max_adapter_rank == 0) {
        return Err(BackendError::Unusable(format!(
            "{} adapters with ranks up to {} were asked for: give both numbers or neither",
            limits.max_adapters, limits.max_adapter_rank
        )));
    }
    Ok(())
}

impl Backend for CpuBackend {
    fn load(&mut self, watch: &dyn LoadWatch) -> Result<(), BackendError> {
        if self.weights.is_some() {
            return Ok(());
        }
        self.adopt_former();
        let layout = load::layout(&self.shape, &self.model);
        let bytes = layout.bytes;
        let fingerprint = load::fingerprint(&self.checkpoint, &self.shard, &layout);
        let mut weights = Weights::map(layout, fingerprint, self.memory.as_ref()).map_err(|error| {
            BackendError::Unusable(format!("cannot map {bytes} bytes for the weights: {error}"))
        })?;
        if weights.is_complete() {
            let total = llamero_checkpoint::piece::rank_bytes(&self.model, &self.shard);
            tracing::info!(bytes = total, "the weights are in memory already");
            watch.progress(LoadProgress {
                loaded: total,
                total,
                read: 0,
            });
        } else {
            let watch = ReadsMore {
                watch,
                before: 0,
                read: Cell::new(0),
            };
            self.fill(&mut weights, &watch)?;
            self.read = watch.read.get();
        }
        self.weights = Some(weights);
        Ok(())
    }

    fn unload(&mut self) {
        self.formed = None;
        self.kept = None;
        self.weights = None;
        self.is_warm = false;
    }

    fn memory(&self, spec: &FormSpec) -> Result<MemoryPlan, BackendError> {
        check_limits(&spec.limits)?;
        crate::memory::plan(&self.shape, &self.programs, &self.model, &spec.limits)
    }

    fn can_reshape(&self) -> Result<(), &'static str> {
        match self.checkpoint.presharded() {
            None => Ok(()),
            Some(_) => Err("the checkpoint was sharded before, one file for each rank of the whole group"),
        }
    }

    fn memory_among(&self, members: &Members, spec: &FormSpec) -> Result<MemoryPlan, BackendError> {
        check_limits(&spec.limits)?;
        let part = Part::of(&self.checkpoint, members, self.shard.rank)?;
        crate::memory::plan(&part.shape, &part.programs, &self.model, &spec.limits)
    }

    fn reshape(&mut self, members: &Members, watch: &dyn LoadWatch) -> Result<(), BackendError> {
        if *members == self.members {
            return Ok(());
        }
        // What was computed with the other share is of no use, and its memory may be needed.
        self.formed = None;
        self.kept = None;
        let part = |members: &Members| Part::of(&self.checkpoint, members, self.shard.rank);
        let wanted = part(members)?;
        if wanted.shard == self.shard {
            self.become_part(members.clone(), wanted);
            return Ok(());
        }
        let related = wanted.shard.contains_all(&self.shard) || self.shard.contains_all(&wanted.shard);
        if !related {
            // Both contain the share that this rank has when nobody is lost.
            let all = Members::whole(members.topology());
            let whole = part(&all)?;
            self.change_to(all, whole, watch)?;
        }
        self.change_to(members.clone(), wanted, watch)
    }

    fn form(
        &mut self,
        spec: &FormSpec,
        mesh: Box<dyn Mesh>,
        report: &mut dyn FnMut(&str),
    ) -> Result<KvCapacity, BackendError> {
        self.dissolve();
        if self.weights.is_none() {
            return Err(not_loaded());
        }
        if (mesh.members(), mesh.rank()) != (&self.members, self.shard.rank) {
            return Err(BackendError::Bug(format!(
                "rank {} of {} was given the links of rank {} of {}",
                self.shard.rank,
                self.members,
                mesh.rank(),
                mesh.members()
            )));
        }
        let plan = self.memory(spec)?;
        if !self.is_warm {
            report("touches all weights");
            self.warm_up()?;
            self.is_warm = true;
        }
        report("allocates the KV cache");
        let tokens = spec.limits.max_batched_tokens as usize;
        let room = (tokens, LoraLimits::of(&spec.limits));
        let work = Workspace::new(&self.shape, &self.programs, self.frequencies(), room);
        let mesh = if self.shared_memory {
            report("shares memory with the other ranks of its pod");
            // Others may still touch their weights; the leader ends the era when nobody gets on.
            SharedMesh::over(mesh, Instant::now() + self.waits.deadline * FORM_PATIENCE)?
        } else {
            mesh
        };
        let collective = Collective::new(mesh, self.waits);
        let kv = self.kv_shape(spec.limits.block_size, spec.limits.kv_dtype)?;
        let formed = FormedGroup::new(spec, collective, kv, &plan, work, self.kept.take())?;
        let capacity = formed.capacity();
        self.formed = Some(formed);
        Ok(capacity)
    }

    fn submit(&mut self, plan: &Plan) -> Result<Ticket, BackendError> {
        let vocab = self.shape.vocab_size;
        let adapters = Arc::clone(&self.adapters);
        self.formed()?.submit(plan, vocab, &adapters)
    }

    fn late(&mut self, ticket: Ticket, late: &Late) -> Result<(), BackendError> {
        let vocab = self.shape.vocab_size;
        self.formed()?.late(ticket, late, vocab)
    }

    fn wait(&mut self, ticket: Ticket, until: Instant) -> Result<Waited, BackendError> {
        let weights = self.weights.as_ref().ok_or_else(not_loaded)?;
        let formed = self.formed.as_mut().ok_or_else(not_formed)?;
        let model = model(&self.shape, &self.programs, self.kernel, weights);
        formed.wait(ticket, until, &model, &mut self.pool, &self.progress)
    }

    fn fetch(&mut self, ticket: Ticket, row: u32, offset: u32) -> Result<LogitShard, BackendError> {
        let weights = self.weights.as_ref().ok_or_else(not_loaded)?;
        let formed = self.formed.as_mut().ok_or_else(not_formed)?;
        let model = model(&self.shape, &self.programs, self.kernel, weights);
        formed.fetch(ticket, (row, offset), &model, &mut self.pool)
    }

    fn save(&mut self, block: u32) -> Result<Vec<u8>, BackendError> {
        self.formed()?.save(block)
    }

    fn restore(&mut self, block: u32, bytes: &[u8]) -> Result<(), BackendError> {
        self.formed()?.restore(block, bytes)
    }

    fn release(&mut self, ticket: Ticket) {
        if let Some(formed) = &mut self.formed {
            formed.release(ticket);
        }
    }

    fn dissolve(&mut self) {
        if let Some(formed) = self.formed.take() {
            self.kept = Some(formed.into_blocks());
        }
    }

    fn progress(&self) -> Arc<StepProgress> {
        Arc::clone(&self.progress)
    }

    fn adapters(&self) -> Arc<dyn AdapterStore> {
        Arc::clone(&self.adapters) as Arc<dyn AdapterStore>
    }
}

fn model<'a>(shape: &'a Shape, programs: &'a Programs, kernel: Kernel, weights: &'a Weights) -> Model<'a> {
    Model {
        kernel,
        shape,
        weights,
        programs,
    }
}

#[cfg(test)]
mod tests;
