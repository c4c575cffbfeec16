//! The backend that was asked for. Never another one: a GPU request that runs on the CPU would be a lie.

use std::sync::Arc;
use std::time::Instant;

use llamero_checkpoint::{Checkpoint, Members, Topology};
use llamero_cpu::{CpuBackend, CpuOptions, Kernel, Waits};
use llamero_cuda::{CudaBackend, CudaOptions, ExchangeOptions, Gpu, Origin};
use llamero_engine::{
    AdapterStore, Backend, BackendError, DeviceBoard, FormSpec, KvCapacity, KvDtype, Late, LoadWatch,
    LogitShard, MemoryPlan, Mesh, Plan, StepProgress, Ticket, Waited,
};

use super::open::WeightsMemory;
use crate::config::{BackendKind, RankConfig};

/// One of the backends of this program.
pub enum AnyBackend {
    /// On CPUs.
    Cpu(Box<CpuBackend>),
    /// On an NVIDIA GPU.
    Cuda(Box<CudaBackend>),
}

impl AnyBackend {
    /// The backend of a rank of the model in `checkpoint`. On CPUs the weights go into `memory`.
    ///
    /// # Errors
    /// [`BackendError::Unusable`]: the checkpoint cannot be used, or there is no such device.
    pub fn open(
        config: &RankConfig,
        checkpoint: Checkpoint,
        memory: WeightsMemory,
    ) -> Result<Self, BackendError> {
        let members: Members = Topology {
            tensor: config.engine.tensor,
            pipeline: config.engine.pipeline,
        }
        .into();
        match config.engine.backend {
            BackendKind::Cpu => {
                // What cannot be is found when the group forms.
                let former = Members::new(members.topology(), &config.lost).ok();
                let options = CpuOptions {
                    members,
                    rank: config.rank,
                    former: former.filter(|former| !former.lost().is_empty()),
                    memory: memory.own,
                    pod: memory.pod,
                    threads: config.threads as usize,
                    kernel: Kernel::detect(),
                    waits: Waits::new(config.engine.stall_timeout, config.oversubscribed),
                    shared_memory: config.engine.shared_memory,
                };
                CpuBackend::of(checkpoint, options).map(|backend| Self::Cpu(Box::new(backend)))
            }
            BackendKind::Cuda => {
                let options = CudaOptions {
                    members,
                    rank: config.rank,
                    // The ranks of a pod see the same GPUs, and count them in the same order.
                    gpu: Gpu::Number(config.rank.saturating_sub(config.first_rank) as usize),
                    kernels: config.engine.kernels.clone(),
                    origin: Origin::Checkpoint,
                    exchange: ExchangeOptions {
                        // Who waits says whom it waits for before others say that it stalls.
                        limit: config.engine.stall_timeout / 4 * 3,
                        ..ExchangeOptions::default()
                    },
                };
                CudaBackend::of(checkpoint, options).map(|backend| Self::Cuda(Box::new(backend)))
            }
        }
    }

    /// The checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        match self {
            Self::Cpu(backend) => backend.checkpoint(),
            Self::Cuda(backend) => backend.checkpoint(),
        }
    }

    /// Who belongs to the group, and how they share the model.
    #[must_use]
    pub fn members(&self) -> &Members {
        match self {
            Self::Cpu(backend) => backend.members(),
            Self::Cuda(backend) => backend.members(),
        }
    }

    /// The numerics class for the handshake between ranks.
    #[must_use]
    pub fn numerics_class(&self, kv: KvDtype, max_adapters: u32) -> String {
        match self {
            Self::Cpu(backend) => backend.numerics_class(kv, max_adapters),
            Self::Cuda(backend) => backend.numerics_class(kv, max_adapters),
        }
    }

    /// Bytes for KV blocks on a device whose memory serves nothing else; none where memory is shared with others.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] when not one sequence fits, with what would.
    pub fn device_kv_bytes(&self, spec: &FormSpec) -> Result<Option<u64>, BackendError> {
        match self {
            Self::Cpu(_) => Ok(None),
            Self::Cuda(backend) => backend.usual_kv_bytes(spec).map(Some),
        }
    }

    fn inner(&self) -> &dyn Backend {
        match self {
            Self::Cpu(backend) => &**backend,
            Self::Cuda(backend) => &**backend,
        }
    }

    fn inner_mut(&mut self) -> &mut dyn Backend {
        match self {
            Self::Cpu(backend) => &mut **backend,
            Self::Cuda(backend) => &mut **backend,
        }
    }
}

impl Backend for AnyBackend {
    fn load(&mut self, watch: &dyn LoadWatch) -> Result<(), BackendError> {
        self.inner_mut().load(watch)
    }

    fn unload(&mut self) {
        self.inner_mut().unload();
    }

    fn memory(&self, spec: &FormSpec) -> Result<MemoryPlan, BackendError> {
        self.inner().memory(spec)
    }

    fn can_reshape(&self) -> Result<(), &'static str> {
        self.inner().can_reshape()
    }

    fn memory_among(&self, members: &Members, spec: &FormSpec) -> Result<MemoryPlan, BackendError> {
        self.inner().memory_among(members, spec)
    }

    fn reshape(&mut self, members: &Members, watch: &dyn LoadWatch) -> Result<(), BackendError> {
        self.inner_mut().reshape(members, watch)
    }

    fn form(
        &mut self,
        spec: &FormSpec,
        mesh: Box<dyn Mesh>,
        report: &mut dyn FnMut(&str),
    ) -> Result<KvCapacity, BackendError> {
        self.inner_mut().form(spec, mesh, report)
    }

    fn submit(&mut self, plan: &Plan) -> Result<Ticket, BackendError> {
        self.inner_mut().submit(plan)
    }

    fn late(&mut self, ticket: Ticket, late: &Late) -> Result<(), BackendError> {
        self.inner_mut().late(ticket, late)
    }

    fn wait(&mut self, ticket: Ticket, until: Instant) -> Result<Waited, BackendError> {
        self.inner_mut().wait(ticket, until)
    }

    fn fetch(&mut self, ticket: Ticket, row: u32, offset: u32) -> Result<LogitShard, BackendError> {
        self.inner_mut().fetch(ticket, row, offset)
    }

    fn save(&mut self, block: u32) -> Result<Vec<u8>, BackendError> {
        self.inner_mut().save(block)
    }

    fn restore(&mut self, block: u32, bytes: &[u8]) -> Result<(), BackendError> {
        self.inner_mut().restore(block, bytes)
    }

    fn release(&mut self, ticket: Ticket) {
        self.inner_mut().release(ticket);
    }

    fn dissolve(&mut self) {
        self.inner_mut().dissolve();
    }

    fn progress(&self) -> Arc<StepProgress> {
        self.inner().progress()
    }

    fn adapters(&self) -> Arc<dyn AdapterStore> {
        self.inner().adapters()
    }

    fn device_board(&self) -> Arc<DeviceBoard> {
        self.inner().device_board()
    }
}
