//! One rank on one GPU: [`CudaBackend`].
//!
//! | module | what it is |
//! |---|---|
//! | `formed_group` | from forming a group until leaving it |
//! | `step` | one step: submitted, enqueued, done |
//! | `enqueue` | what steps need, in their order |
//! | `graphs` | decode steps as graphs |
//! | `measure` | what memory and exchanges give |

mod enqueue;
mod formed_group;
mod graphs;
mod measure;
mod step;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use llamero_checkpoint::{Checkpoint, Members, ModelLayout, RankShard, Topology};
use llamero_engine::{
    Backend, BackendError, DeviceBoard, FormSpec, KvCapacity, KvDtype, Late, LoadProgress, LoadWatch,
    LogitShard, MemoryPlan, Mesh, Plan, StepProgress, Ticket, Waited,
};

use crate::compile::Modules;
use crate::device::{self, Device, Uuid};
use crate::error::{bug, refused, unusable};
use crate::exchange::{ExchangeOptions, Links};
use crate::forward::Model;
use crate::layout::Layout;
use crate::ops::{OpError, Ops};
use crate::preflight::Preflight;
use crate::probe;
use crate::rope::Rope;
use crate::shape::Shape;
use crate::weights::ModelWeights;
use crate::work::{self, Sizes, reserve};
use crate::xid::XidWatch;
use formed_group::FormedGroup;

/// Which of the GPUs that this process sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gpu {
    /// By its number among them in the order of the buses: all processes of a pod count alike.
    Number(usize),
    /// By the number that stays.
    Uuid(Uuid),
}

/// Where weights come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Origin {
    /// Read from the checkpoint.
    #[default]
    Checkpoint,
    /// Random numbers made on the device: for measuring true shapes without true weights. Only then may a rank run without
    /// its peers: it exchanges with itself.
    Random,
}

/// What a rank needs besides its checkpoint.
#[derive(Debug, Clone)]
pub struct CudaOptions {
    /// Who belongs to the group, and how they share the model.
    pub members: Members,
    /// This rank.
    pub rank: u32,
    /// Its GPU.
    pub gpu: Gpu,
    /// Where compiled kernels are kept; none: they are compiled at every start.
    pub kernels: Option<PathBuf>,
    /// Where weights come from.
    pub origin: Origin,
    /// How it exchanges with the other ranks of its tensor group.
    pub exchange: ExchangeOptions,
}

impl CudaOptions {
    /// A rank alone in its group, on the first GPU.
    #[must_use]
    pub fn alone() -> Self {
        Self {
            members: Topology::tensor(1).into(),
            rank: 0,
            gpu: Gpu::Number(0),
            kernels: None,
            origin: Origin::Checkpoint,
            exchange: ExchangeOptions::default(),
        }
    }
}

/// One rank that computes on a GPU.
pub struct CudaBackend {
    checkpoint: Checkpoint,
    model: ModelLayout,
    members: Members,
    shard: RankShard,
    shape: Shape,
    layout: Layout,
    origin: Origin,
    exchange: ExchangeOptions,
    preflight: Preflight,
    board: Arc<DeviceBoard>,
    /// Which code its kernels are.
    code: String,
    _xids: XidWatch,
    // Dropped before the weights and buffers that they use.
    formed: Option<FormedGroup>,
    rope: Option<Rope>,
    weights: Option<ModelWeights>,
    ops: Ops,
    progress: Arc<StepProgress>,
}

impl CudaBackend {
    /// A rank of the model in the folder `checkpoint`. Finds the driver and the GPU, and reads headers only.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] when there is no driver or no such GPU, or the checkpoint cannot be used or split so;
    /// [`BackendError::Unavailable`] when the GPU is damaged or another process has it.
    pub fn new(checkpoint: &Path, options: CudaOptions) -> Result<Self, BackendError> {
        Self::of(Checkpoint::open(checkpoint)?, options)
    }

    /// A rank of the model in an open `checkpoint`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(checkpoint: Checkpoint, options: CudaOptions) -> Result<Self, BackendError> {
        let driver = probe::driver()?;
        let device = find(driver, options.gpu)?;
        let preflight = Preflight::of(driver, &device)?;
        let model = ModelLayout::check(&checkpoint).map_err(llamero_checkpoint::Error::from)?;
        let plan = checkpoint.shard_plan(&options.members);
        let plan = plan.map_err(llamero_checkpoint::Error::from)?;
        let shard = plan
            .member(options.rank)
            .map_err(llamero_checkpoint::Error::from)?
            .clone();
        let shape = Shape::new(checkpoint.config(), &plan, &shard)?;
        let layout = Layout::new(&shape, &model, shard.layers.start);
        let modules = Modules::new(device, options.kernels);
        let code = modules
            .digest(&format!("{} {}", preflight.cuda, preflight.driver))
            .map_err(OpError::from)?;
        let mut ops = Ops::new(modules)?;
        let read = measure::read_bandwidth(&mut ops, preflight.nominal_bandwidth)?;
        let preflight = preflight.measured(read)?;
        let board = Arc::new(DeviceBoard::default());
        board.update(|report| *report = preflight.report());
        let xids = XidWatch::new(preflight.uuid, Arc::clone(&board));
        Ok(Self {
            checkpoint,
            model,
            members: options.members,
            shard,
            shape,
            layout,
            origin: options.origin,
            exchange: options.exchange,
            preflight,
            board,
            code,
            _xids: xids,
            formed: None,
            rope: None,
            weights: None,
            ops,
            progress: Arc::default(),
        })
    }

    /// The numerics class for the handshake between ranks: architecture, code of the kernels, leaves, type of
    /// the KV cache, and whether adapters may be added. How many ranks and stages there are is no part of it: it changes no bit.
    #[must_use]
    pub fn numerics_class(&self, kv: KvDtype, max_adapters: u32) -> String {
        let kv = match kv {
            KvDtype::Bf16 => "bf16",
            KvDtype::Fp8E4m3 => "e4m3",
        };
        let (major, minor) = self.ops.device().capability;
        let (hidden, attention, ffn) = Shape::leaf_counts(self.checkpoint.config(), &self.shard);
        format!(
            "cuda-sm{major}{minor} {} leaves-{hidden}-{attention}-{ffn} kv-{kv} adapters-{max_adapters}",
            self.code
        )
    }

    /// Who belongs to the group, and how they share the model.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The GPU.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.ops.device()
    }

    /// What the GPU was like when it was taken.
    #[must_use]
    pub fn preflight(&self) -> &Preflight {
        &self.preflight
    }

    /// Bytes of weights that one step of decoding reads.
    #[must_use]
    pub fn bytes_per_step(&self) -> u64 {
        self.layout.bytes_per_step() as u64
    }

    /// Bytes for KV blocks when all of the GPU serves this rank: what is free now and no other part of the plan takes.
    ///
    /// # Errors
    /// [`BackendError::Unusable`], with what would fit.
    pub fn usual_kv_bytes(&self, spec: &FormSpec) -> Result<u64, BackendError> {
        let plan = self.memory(spec)?;
        let (free, total) = self.ops.device().context.mem_get_info().map_err(refused)?;
        let loaded = self.weights.as_ref().map_or(0, |_| plan.weights);
        let needed = plan.fixed() - loaded + reserve(total as u64) + plan.kv_block;
        let blocks = u64::from(spec.limits.max_context.div_ceil(spec.limits.block_size));
        let one = blocks * plan.kv_block;
        let left = (free as u64).saturating_sub(needed);
        if left < one {
            // Rotary angles grow with the context as keys and values do.
            let (tokens, block) = (
                u64::from(spec.limits.max_context.max(1)),
                u64::from(spec.limits.block_size),
            );
            let per_token = plan.kv_block.div_ceil(block) + plan.rope.div_ceil(tokens);
            let fitting = (free as u64).saturating_sub(needed - plan.rope) / per_token.max(1) / block * block;
            let advice = match fitting {
                0 => "the weights do not fit: use more tensor-parallel ranks, a GPU with more memory, or lower the tokens in a step"
                    .to_owned(),
                tokens => format!(
                    "lower maxContextLength to at most {tokens}, lower the tokens in a step, or use more tensor-parallel ranks"
                ),
            };
            return Err(unusable(format!(
                "{} has {free} of {total} bytes free; weights take {}, workspace {}, logits {}, rotary angles {}, the driver \
                 {}, and of the {left} that are left one sequence of {} tokens needs {one}: {advice}",
                self.ops.device().name,
                plan.weights,
                plan.workspace,
                plan.logits,
                plan.rope,
                reserve(total as u64),
                spec.limits.max_context
            )));
        }
        Ok(left)
    }

    fn plan(&self, sizes: &Sizes) -> MemoryPlan {
        work::plan(&self.shape, &self.layout, sizes, self.exchange)
    }

    fn formed(&mut self) -> Result<&mut FormedGroup, BackendError> {
        self.formed.as_mut().ok_or_else(not_formed)
    }

    /// The parts that a step needs.
    fn parts(&mut self) -> Result<(Model<'_>, &mut FormedGroup, &mut Ops), BackendError> {
        let weights = self.weights.as_ref().ok_or_else(not_loaded)?;
        let formed = self.formed.as_mut().ok_or_else(not_formed)?;
        let rope = self.rope.as_ref().ok_or_else(not_formed)?;
        let model = Model {
            shape: &self.shape,
            weights,
            rope,
        };
        Ok((model, formed, &mut self.ops))
    }

    fn pump(&mut self) -> Result<(), BackendError> {
        let (model, formed, ops) = self.parts()?;
        formed.pump(model, ops)
    }

    /// Fill all weights with random numbers.
    fn fill(&mut self, weights: &mut ModelWeights) -> Result<(), BackendError> {
        self.ops.fill_weights(weights)?;
        self.ops.stream().synchronize().map_err(refused)
    }
}

fn find(driver: probe::Driver, gpu: Gpu) -> Result<Device, BackendError> {
    match gpu {
        Gpu::Uuid(uuid) => device::find(driver, uuid).map_err(BackendError::from),
        Gpu::Number(number) => match device::at(driver, number) {
            Ok(Some(device)) => Ok(device),
            Ok(None) => Err(unusable(format!(
                "GPU {number} was asked for, and this process sees {}: is it given to the pod?",
                device::count(driver).unwrap_or(0)
            ))),
            Err(error) => Err(error.into()),
        },
    }
}

fn not_formed() -> BackendError {
    bug("a group must be formed first")
}

fn not_loaded() -> BackendError {
    bug("the weights must be loaded first")
}

impl Backend for CudaBackend {
    fn load(&mut self, watch: &dyn LoadWatch) -> Result<(), BackendError> {
        if self.weights.is_some() {
            return Ok(());
        }
        // Kernels that this driver does not take are told before minutes of reading.
        self.ops.load_all()?;
        let stream = self.ops.stream().clone();
        let mut weights = ModelWeights::allocate(&stream, &self.shape, &self.layout)?;
        // Other streams fill it.
        stream.synchronize().map_err(refused)?;
        match self.origin {
            Origin::Random => {
                self.fill(&mut weights)?;
                let total = self.layout.bytes() as u64;
                watch.progress(LoadProgress {
                    loaded: total,
                    total,
                    read: 0,
                });
            }
            Origin::Checkpoint => crate::load::load(
                &self.checkpoint,
                &self.model,
                &self.shard,
                (&self.shape, &self.layout),
                (&weights, stream.context()),
                watch,
            )?,
        }
        self.weights = Some(weights);
        Ok(())
    }

    fn unload(&mut self) {
        self.formed = None;
        self.weights = None;
    }

    fn memory(&self, spec: &FormSpec) -> Result<MemoryPlan, BackendError> {
        Ok(self.plan(&Sizes::new(spec)?))
    }

    fn form(
        &mut self,
        spec: &FormSpec,
        mesh: Box<dyn Mesh>,
        report: &mut dyn FnMut(&str),
    ) -> Result<KvCapacity, BackendError> {
        self.formed = None;
        if self.weights.is_none() {
            return Err(not_loaded());
        }
        let own = (mesh.members(), mesh.rank()) == (&self.members, self.shard.rank);
        if !own && self.origin == Origin::Checkpoint {
            return Err(bug(format!(
                "rank {} of {} was given the links of rank {} of {}",
                self.shard.rank,
                self.members,
                mesh.rank(),
                mesh.members()
            )));
        }
        let sizes = Sizes::new(spec)?;
        let plan = self.plan(&sizes);
        let positions = sizes.table() * sizes.block;
        if self
            .rope
            .as_ref()
            .is_none_or(|rope| rope.positions() != positions)
        {
            self.rope = None;
            self.rope = Some(Rope::new(self.ops.stream(), self.checkpoint.config(), positions)?);
        }
        report("allocates the KV cache");
        let mut formed = FormedGroup::new(spec, sizes, &plan, (&self.shape, &self.ops))?;
        let capacity = formed.capacity();
        let progress = Arc::clone(&self.progress);
        let (shape, ops) = (&self.shape, &mut self.ops);
        let links = if own {
            report("shares memory with the other ranks");
            Links::over(mesh, shape, ops, self.exchange, progress)?
        } else {
            Links::looped_back(mesh, shape, ops, self.exchange, progress)?
        };
        (formed.watch, formed.exchange, formed.hop) = (links.watch, links.exchange, links.hop);
        self.formed = Some(formed);
        if own && self.shape.world > 1 {
            report("measures exchanges with the other ranks");
            if let Err(error) = self.measure_exchanges() {
                self.formed = None;
                return Err(error);
            }
        }
        report("captures graphs");
        let (model, formed, ops) = self.parts()?;
        formed.warm_up(model, ops)?;
        Ok(capacity)
    }

    fn submit(&mut self, plan: &Plan) -> Result<Ticket, BackendError> {
        let vocab = self.shape.vocab_size;
        let ticket = self.formed()?.submit(plan, vocab)?;
        self.pump()?;
        Ok(ticket)
    }

    fn late(&mut self, ticket: Ticket, late: &Late) -> Result<(), BackendError> {
        let vocab = self.shape.vocab_size;
        self.formed()?.late(ticket, late, vocab)?;
        self.pump()
    }

    fn wait(&mut self, ticket: Ticket, until: Instant) -> Result<Waited, BackendError> {
        let progress = Arc::clone(&self.progress);
        let (model, formed, ops) = self.parts()?;
        formed.wait(ticket, until, (model, ops), &progress)
    }

    fn fetch(&mut self, ticket: Ticket, row: u32, offset: u32) -> Result<LogitShard, BackendError> {
        let (model, formed, ops) = self.parts()?;
        formed.fetch(ticket, (row, offset), model, ops)
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
        self.formed = None;
    }

    fn progress(&self) -> Arc<StepProgress> {
        Arc::clone(&self.progress)
    }

    fn device_board(&self) -> Arc<DeviceBoard> {
        Arc::clone(&self.board)
    }
}
