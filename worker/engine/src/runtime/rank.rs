//! One rank from start to end: load, then lead or follow.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};

use super::adapters::{self, AdapterList, Adapters};
use super::config::RankConfig;
use super::control::{RankContext, RankControl};
use super::follower::Follower;
use super::handle::EngineHandle;
use super::input::Input;
use super::leader::{Leader, LocalEra};
use super::load::LoadCell;
use super::member::{MemberEra, MemberLink, Reports, serve_era};
use super::planner::Planner;
use super::queue::QueueGauge;
use super::state::{Outcome, Phase};
use crate::backend::{Backend, BackendError, LoadProgress, LoadWatch, MemoryPlan};
use crate::mesh::{Inbox, Listener};
use crate::step::Era;

/// One rank of a group.
pub struct RankRuntime<B: Backend> {
    backend: B,
    config: RankConfig,
    listener: Listener,
    context: Arc<RankContext>,
    inputs: mpsc::Receiver<Input>,
    sender: mpsc::Sender<Input>,
    load: Arc<LoadCell>,
    queue: Arc<QueueGauge>,
    adapters: Arc<AdapterList>,
}

impl<B: Backend> RankRuntime<B> {
    /// A rank that listens on `socket` for its peers. Nothing is loaded before [`Self::run`].
    ///
    /// # Errors
    /// The operating system's word.
    pub fn new(backend: B, config: RankConfig, socket: TcpListener) -> io::Result<Self> {
        let inbox = Inbox::new(
            config.rank,
            config.members.clone(),
            config.numerics.clone(),
            config.content.clone(),
        );
        let inbox = Arc::new(inbox.with_changing_members(backend.can_reshape().is_ok()));
        let listener = Listener::start(socket, Arc::clone(&inbox))?;
        let (sender, inputs) = mpsc::channel();
        let context = Arc::new(RankContext::new(inbox, sender.clone()));
        let queue = QueueGauge::new(config.max_queued_requests, config.queued_tokens(u32::MAX));
        Ok(Self {
            backend,
            config,
            listener,
            context,
            inputs,
            sender,
            load: Arc::default(),
            queue: Arc::new(queue),
            adapters: Arc::default(),
        })
    }

    /// Where peers reach this rank.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Form, drain, stop, and the state.
    #[must_use]
    pub fn control(&self) -> RankControl {
        RankControl {
            context: Arc::clone(&self.context),
        }
    }

    /// The way to the queue; of use on rank 0 only.
    #[must_use]
    pub fn engine(&self) -> EngineHandle {
        EngineHandle::new(
            self.sender.clone(),
            Arc::clone(&self.load),
            Arc::clone(&self.context),
            Arc::clone(&self.queue),
            Arc::clone(&self.adapters),
        )
    }

    /// Load the weights, then serve until drained, told to leave, or stopped. Lost peers do not end it.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] when it can never work as configured, which is found before the weights are read where
    /// that is possible; [`BackendError::Bug`] when an invariant does not hold. The state's message says the same, and
    /// the leader has been told.
    pub fn run(mut self) -> Result<Outcome, BackendError> {
        let ended = self.run_inner();
        if let Err(error) = &ended {
            self.context.state.explain(&error.to_string());
        }
        ended
    }

    fn run_inner(&mut self) -> Result<Outcome, BackendError> {
        let context = Arc::clone(&self.context);
        let spec = self.config.form_spec(Era::default(), self.config.form_limits());
        let memory = self.backend.memory(&spec)?;
        self.check_memory(&memory)?;
        context.state.phase(Phase::Loading, "");
        match self.backend.load(&Watch(&context)) {
            Err(BackendError::Cancelled) if context.is_stopped() => return Ok(Outcome::Stopped),
            loaded => loaded?,
        }
        context.inbox.set_ready(None);
        context.state.phase(Phase::Connecting, "");
        if self.config.rank == 0 {
            self.lead(&memory)
        } else {
            Follower {
                backend: &mut self.backend,
                config: &self.config,
                context: &context,
            }
            .run()
        }
    }

    /// Whether the bytes for KV blocks hold one sequence of full length, and the rank's memory holds everything.
    fn check_memory(&self, memory: &MemoryPlan) -> Result<(), BackendError> {
        let config = &self.config;
        let needed = config.max_context.div_ceil(config.block_size.max(1));
        if memory.blocks(config.kv_bytes) >= needed {
            return self.check_limit(memory);
        }
        Err(BackendError::Unusable(format!(
            "one sequence of {} tokens needs {needed} KV blocks of {} bytes, {} bytes in all, and this rank may use {}: \
             give it more memory, or lower the longest context",
            config.max_context,
            memory.kv_block,
            u64::from(needed).saturating_mul(memory.kv_block),
            config.kv_bytes
        )))
    }

    /// Whether the weights, the workspace and the KV blocks fit into what this rank may use. Without this the kernel would
    /// end it in the middle of loading, with no word about why.
    fn check_limit(&self, memory: &MemoryPlan) -> Result<(), BackendError> {
        let config = &self.config;
        let computing = memory.fixed().saturating_add(config.kv_bytes);
        let total = computing.saturating_add(config.process_bytes);
        let Some(limit) = config.memory_limit.filter(|limit| *limit < total) else {
            return Ok(());
        };
        let adapters = match memory.adapters {
            0 => String::new(),
            bytes => format!(", adapters {bytes}"),
        };
        Err(BackendError::Unusable(format!(
            "rank {} needs {total} bytes and may use {limit}: weights {}, workspace for {} tokens a step {}, logits {}, rotary \
             angles {}, KV blocks {}{adapters}, tokenizer, requests and the program {}; raise the memory limit of the pod, use more tensor-parallel ranks, or lower the tokens \
             in a step, the KV memory or the longest context",
            config.rank,
            memory.weights,
            config.max_batched_tokens,
            memory.workspace,
            memory.logits,
            memory.rope,
            config.kv_bytes,
            config.process_bytes
        )))
    }

    /// The adapters that are there from the start. Other ranks read them when the group forms.
    fn first_adapters(&self) -> Result<Adapters, BackendError> {
        let config = &self.config;
        let list = Arc::clone(&self.adapters);
        let mut adapters = Adapters::new(config.max_adapters, config.members.clone(), list);
        let store = self.backend.adapters();
        for (name, path) in &config.adapters {
            let unusable = |why: String| BackendError::Unusable(format!("adapter {name}: {why}"));
            let source = adapters
                .number(name.clone(), path.clone())
                .map_err(|error| unusable(error.to_string()))?;
            let reading = store.begin(&source);
            let (folder, most) = (&config.adapter_folder, config.max_adapter_rank);
            let identity = adapters::read(&*store, reading, folder, &source, most).map_err(unusable)?;
            adapters.add(&source, identity);
        }
        Ok(adapters)
    }

    /// Plan on a thread of its own; compute on this one.
    fn lead(&mut self, memory: &MemoryPlan) -> Result<Outcome, BackendError> {
        let config = &self.config;
        let limits = config.limits(config.expected_blocks(memory));
        let adapters = self.first_adapters()?;
        let (eras, local) = mpsc::channel();
        // The handles keep senders of their own, but this leader's inputs are its own.
        let (_, nobody) = mpsc::channel();
        let leader = Leader {
            config,
            context: &self.context,
            inputs: std::mem::replace(&mut self.inputs, nobody),
            sender: self.sender.clone(),
            eras,
            progress: self.backend.progress(),
            queue: Arc::clone(&self.queue),
            planner: Planner::new(
                limits,
                config.steps_in_flight,
                config.step_target,
                Arc::clone(&self.load),
                Arc::clone(&self.queue),
                config.prefix(),
            )
            .with_stages(config.members.topology().pipeline)
            .with_speculation(config.speculation)
            .with_adapters(adapters),
            last: Era::default(),
            backoff: config.backoff.0,
            present: None,
            loss: None,
            lasting_refusals: 0,
            silent: Vec::new(),
            formed_at: None,
        };
        let (backend, context, sender) = (&mut self.backend, &self.context, &self.sender);
        std::thread::scope(|scope| {
            let planner = std::thread::Builder::new()
                .name("planner".into())
                .spawn_scoped(scope, move || leader.run())
                .map_err(|error| {
                    BackendError::Bug(format!("no thread for the planner can be started: {error}"))
                })?;
            let computed = compute(backend, config, context, local, sender);
            let outcome = planner
                .join()
                .map_err(|_| BackendError::Bug("the planner's thread panicked".into()))?;
            computed?;
            outcome?.ok_or_else(|| BackendError::Bug("the compute thread ended without a reason".into()))
        })
    }
}

/// Tells the leader that nobody computes here any more, even when that is because of a panic.
struct ComputeGuard<'a>(&'a mpsc::Sender<Input>);

impl Drop for ComputeGuard<'_> {
    fn drop(&mut self) {
        let _ = self.0.send(Input::ComputeEnded);
    }
}

/// Rank 0's own part of every era, until the leader ends.
fn compute<B: Backend>(
    backend: &mut B,
    config: &RankConfig,
    context: &RankContext,
    eras: mpsc::Receiver<LocalEra>,
    inputs: &mpsc::Sender<Input>,
) -> Result<(), BackendError> {
    let _guard = ComputeGuard(inputs);
    for LocalEra { era, mesh, incoming } in eras {
        let reports = Reports::Local {
            era,
            inputs: inputs.clone(),
        };
        let member = MemberEra {
            config,
            state: &context.state,
            link: MemberLink { incoming, reports },
        };
        match serve_era(backend, mesh, &member) {
            Ok(()) | Err(BackendError::Lost(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Shows how far loading is, and ends it when the rank is stopped.
struct Watch<'a>(&'a RankContext);

impl LoadWatch for Watch<'_> {
    fn progress(&self, progress: LoadProgress) {
        self.0.state.loaded(progress);
    }

    fn is_cancelled(&self) -> bool {
        self.0.is_stopped()
    }
}
