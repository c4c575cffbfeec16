//! The loop of one era.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::link::MemberLink;
use super::share;
use super::steps::{MemberSteps, Taken};
use super::watch::watch;
use crate::adapters::{AdapterSource, AdapterStore};
use crate::backend::{Backend, BackendError, KvCapacity};
use crate::form::FormLimits;
use crate::mesh::{Failure, Mesh, MeshError, Message};
use crate::runtime::adapters;
use crate::runtime::config::RankConfig;
use crate::runtime::state::{Phase, StateWatch};

/// How long a backend that computes by itself is waited for before messages are looked at again.
const COMPUTE_SLICE: Duration = Duration::from_millis(5);

/// What a member needs for one era.
pub(in crate::runtime) struct MemberEra<'a> {
    pub(in crate::runtime) config: &'a RankConfig,
    pub(in crate::runtime) state: &'a StateWatch,
    pub(in crate::runtime) link: MemberLink,
}

/// Form with the peers of `mesh` and execute plans until the leader leaves. The leader is told of a failure,
/// and the backend is dissolved.
pub(in crate::runtime) fn serve_era<B: Backend>(
    backend: &mut B,
    mesh: Box<dyn Mesh>,
    era: &MemberEra<'_>,
) -> Result<(), BackendError> {
    let progress = backend.progress();
    progress.stop(false);
    let (running, ended) = mpsc::channel();
    let served = std::thread::scope(|scope| {
        let reports = era.link.reports.clone();
        let (state, pause) = (era.state, era.config.progress_pause());
        let progress = &progress;
        scope.spawn(move || watch(progress, state, &reports, &ended, pause));
        let served = era
            .form(backend, mesh)
            .and_then(|limits| era.serve(backend, &limits));
        drop(running);
        served
    });
    if let Err(error) = &served
        && !matches!(error, BackendError::Lost(MeshError::Aborted))
    {
        // So that the leader knows more than that a connection is gone, which is what peers see once the links are closed.
        let _ = era.link.reports.send(0, Message::Failed(Failure::from(error)));
    }
    backend.dissolve();
    served
}

impl MemberEra<'_> {
    fn leads(&self) -> bool {
        self.config.rank == 0
    }

    fn form<B: Backend>(&self, backend: &mut B, mesh: Box<dyn Mesh>) -> Result<FormLimits, BackendError> {
        let (limits, adapters) = self.setup()?;
        let era = mesh.era();
        if !self.leads() {
            self.state.enter_era(era);
            self.state.phase(Phase::Warming, "");
        }
        let mut report = |what: &str| {
            if !self.leads() {
                self.state.explain(what);
            }
            // A link that is gone is found by the next wait.
            let _ = self.link.reports.send(0, Message::Forming(what.to_owned()));
        };
        let spec = self.config.form_spec(era, limits);
        let spec = share::take(
            backend,
            mesh.members(),
            spec,
            (self.config, self.state),
            &mut report,
        )?;
        let missing = self.read_all(&*backend.adapters(), &adapters, &limits, &mut report);
        let capacity = backend.form(&spec, mesh, &mut report)?;
        if !self.leads() {
            self.state.update(|state| state.kv_blocks = capacity.blocks);
        }
        let KvCapacity { blocks, kept } = capacity;
        let ready = Message::Ready {
            blocks,
            kept,
            missing,
        };
        self.link.reports.send(0, ready)?;
        Ok(limits)
    }

    /// Have these adapters and no others; those that cannot be read, and why.
    fn read_all(
        &self,
        store: &dyn AdapterStore,
        sources: &[AdapterSource],
        limits: &FormLimits,
        report: &mut dyn FnMut(&str),
    ) -> Vec<(u32, String)> {
        store.retain(sources);
        let mut missing = Vec::new();
        for source in sources {
            report(&format!("reads the adapter {}", source.name));
            let (reading, folder) = (store.begin(source), &self.config.adapter_folder);
            if let Err(why) = adapters::read(store, reading, folder, source, limits.max_adapter_rank) {
                missing.push((source.number, why));
            }
        }
        missing
    }

    /// Read an adapter on a thread of its own, which tells the leader what comes of it.
    fn read_beside(&self, store: Arc<dyn AdapterStore>, source: AdapterSource, max_rank: u32) {
        let (reports, folder) = (self.link.reports.clone(), self.config.adapter_folder.clone());
        let number = source.number;
        // Not on that thread, which an unload could overtake.
        let reading = store.begin(&source);
        let spawned = std::thread::Builder::new().name("adapter".into()).spawn(move || {
            let outcome = adapters::read(&*store, reading, &folder, &source, max_rank);
            // An era that is over needs no answer.
            let _ = reports.send(0, Message::Adapter { number, outcome });
        });
        if let Err(error) = spawned {
            let outcome = Err(format!("no thread can be started to read it: {error}"));
            let _ = self.link.reports.send(0, Message::Adapter { number, outcome });
        }
    }

    /// What to form with, once rank 0 has reached everybody.
    fn setup(&self) -> Result<(FormLimits, Vec<AdapterSource>), MeshError> {
        loop {
            match self.link.receive(self.config.form_timeout)? {
                (_, Message::Setup { limits, adapters }) => return Ok((limits, adapters)),
                (_, Message::Alive) => {}
                (step, message) => return Err(message.out_of_place(0, step)),
            }
        }
    }

    fn serve<B: Backend>(&self, backend: &mut B, limits: &FormLimits) -> Result<(), BackendError> {
        let mut steps = MemberSteps::default();
        let mut entered = 0;
        loop {
            let message = if steps.can_advance() {
                self.link.try_receive()?
            } else {
                Some(self.link.receive(self.config.stall_timeout)?)
            };
            if let Some((step, message)) = message {
                match steps.take(backend, step, message)? {
                    Taken::LoadAdapter(source) => {
                        self.read_beside(backend.adapters(), source, limits.max_adapter_rank);
                    }
                    Taken::Nothing => {}
                    Taken::Answer(answer) => self.link.reports.send(step, answer)?,
                    Taken::Leave => return Ok(()),
                }
                continue;
            }
            if let Some(step) = steps.computing()
                && step > entered
            {
                entered = step;
                self.state.entered(step);
            }
            if let Some((step, output)) = steps.advance(backend, Instant::now() + COMPUTE_SLICE)? {
                self.link.reports.send(step, Message::Output(output))?;
                if !self.leads() {
                    self.state.completed(step, Phase::Serving);
                }
            }
        }
    }
}
