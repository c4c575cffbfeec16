//! Counts what the CPU backend reads while it loads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use llamero_cpu::CpuBackend;
use llamero_engine::{
    Backend, BackendError, FormSpec, KvCapacity, Late, LoadProgress, LogitShard, Plan, StepOutput, Ticket,
};

/// A backend whose bytes read are known while it loads. Weights found in memory were not read: progress starts with
/// them, so only what is added counts.
pub struct Metered {
    backend: CpuBackend,
    read_bytes: Arc<AtomicU64>,
}

impl Metered {
    /// Count for `backend`.
    #[must_use]
    pub fn new(backend: CpuBackend) -> Self {
        Self {
            backend,
            read_bytes: Arc::default(),
        }
    }

    /// The counter.
    #[must_use]
    pub fn read_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.read_bytes)
    }
}

impl Backend for Metered {
    type Collective = <CpuBackend as Backend>::Collective;

    fn load(&mut self, progress: &mut dyn FnMut(LoadProgress)) -> Result<(), BackendError> {
        let mut found = None;
        self.backend.load(&mut |now| {
            let found = *found.get_or_insert(now.loaded);
            self.read_bytes
                .store(now.loaded.saturating_sub(found), Ordering::Relaxed);
            progress(now);
        })
    }

    fn form(
        &mut self,
        spec: &FormSpec,
        collective: Box<Self::Collective>,
    ) -> Result<KvCapacity, BackendError> {
        self.backend.form(spec, collective)
    }

    fn submit(&mut self, plan: &Plan) -> Result<Ticket, BackendError> {
        self.backend.submit(plan)
    }

    fn bind(&mut self, ticket: Ticket, late: &Late) -> Result<(), BackendError> {
        self.backend.bind(ticket, late)
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Option<StepOutput>, BackendError> {
        self.backend.poll(ticket)
    }

    fn logits(&mut self, ticket: Ticket, row: u32) -> Result<LogitShard, BackendError> {
        self.backend.logits(ticket, row)
    }

    fn release(&mut self, ticket: Ticket) {
        self.backend.release(ticket);
    }

    fn dissolve(&mut self) {
        self.backend.dissolve();
    }
}
