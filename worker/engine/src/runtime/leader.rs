//! The steps of rank 0.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::book::Book;
use super::compute::compute;
use super::config::{RankConfig, Wrap};
use super::connect::{Dialling, Reached};
use super::control::Shared;
use super::input::Input;
use super::load::LoadCell;
use super::merge::{self, Choice, Sampling};
use super::request::FailureKind;
use super::state::{Outcome, Phase};
use crate::backend::{Backend, BackendError, Ticket};
use crate::collective::{Abort, CollectiveError};
use crate::mesh::hello::Identity;
use crate::mesh::{ControlLink, DataLink, EraAbort, Membership, Message, TcpCollective};
use crate::schedule::{Batch, Scheduler, SequenceId};
use crate::step::{Era, Late, Plan, StepOutput};

pub(super) struct Leader<'a, B: Backend> {
    pub(super) backend: &'a mut B,
    pub(super) wrap: &'a Wrap<B>,
    pub(super) config: &'a RankConfig,
    pub(super) shared: &'a Shared,
    inputs: &'a Receiver<Input>,
    load: Arc<LoadCell>,
    book: Book,
    scheduler: Scheduler,
    /// The last epoch that was used, and of which generation.
    last: Era,
    backoff: Duration,
}

/// Why the leader is not in an era any more.
enum End {
    /// The era is over: something was lost, or a later generation came.
    Era(BackendError),
    /// Nothing is left to do.
    Outcome(Outcome),
}

impl From<BackendError> for End {
    fn from(error: BackendError) -> Self {
        Self::Era(error)
    }
}

impl From<CollectiveError> for End {
    fn from(error: CollectiveError) -> Self {
        Self::Era(error.into())
    }
}

impl<'a, B: Backend> Leader<'a, B> {
    pub(super) fn new(
        backend: &'a mut B,
        wrap: &'a Wrap<B>,
        config: &'a RankConfig,
        shared: &'a Shared,
        inputs: &'a Receiver<Input>,
        load: Arc<LoadCell>,
    ) -> Self {
        Self {
            backend,
            wrap,
            config,
            shared,
            inputs,
            book: Book::new(Arc::clone(&load)),
            load,
            scheduler: Scheduler::new(config.limits(None)),
            last: Era::default(),
            backoff: config.backoff.0,
        }
    }

    /// Lead until drained or stopped.
    pub(super) fn run(mut self) -> Outcome {
        loop {
            match self.one_era() {
                Ok(never) => match never {},
                Err(End::Outcome(outcome)) => return outcome,
                Err(End::Era(error)) => {
                    tracing::warn!(era = ?self.last, "the era ended: {error}");
                    self.shared.state.lost(&error);
                    self.backend.dissolve();
                    let limits = *self.scheduler.limits();
                    // The limits are the same, so nothing is refused.
                    self.scheduler.requeue_all(limits);
                    self.book.publish(&self.scheduler);
                    if let Err(outcome) = self.pause() {
                        return outcome;
                    }
                }
            }
        }
    }

    fn one_era(&mut self) -> Result<std::convert::Infallible, End> {
        let membership = self.membership()?;
        if self.last.generation != membership.generation {
            self.last = Era {
                generation: membership.generation,
                epoch: 0,
            };
        }
        self.last.epoch += 1;
        let era = self.last;
        let abort = Arc::new(EraAbort::default());
        self.shared.inbox.enter(era, Arc::clone(&abort));
        let ended = self.connect(&membership, era, &abort).and_then(|(links, data)| {
            let mut links = links;
            let ended = self
                .form(era, &mut links, data, &abort)
                .and_then(|()| self.serve(era, &mut links, &abort));
            if let Err(End::Outcome(Outcome::Drained)) = &ended {
                for link in &mut links {
                    // Who does not hear it is ended by the kubelet.
                    let _ = link.send(0, &Message::Leave, self.config.dial_timeout);
                }
            }
            ended
        });
        // After a Leave the others close; closing first would cost them the message.
        if !matches!(ended, Err(End::Outcome(Outcome::Drained))) {
            abort.abort();
        }
        ended
    }

    /// Wait until the rank is told its group.
    fn membership(&mut self) -> Result<Arc<Membership>, End> {
        loop {
            if let Some(membership) = self.shared.inbox.membership() {
                return Ok(membership);
            }
            self.shared
                .state
                .explain("waits to be told the members of its group");
            self.take_inputs(self.config.heartbeat).map_err(End::Outcome)?;
        }
    }

    fn connect(
        &mut self,
        membership: &Arc<Membership>,
        era: Era,
        abort: &Arc<EraAbort>,
    ) -> Result<(Vec<ControlLink>, Vec<DataLink>), End> {
        let identity = Identity {
            group_uid: membership.group_uid.clone(),
            rank: 0,
            world: u32::try_from(membership.members.len()).unwrap_or(u32::MAX),
            numerics: self.config.numerics.clone(),
            model: self.config.model.clone(),
        };
        let mut dialling = Dialling::new(
            Arc::clone(membership),
            identity,
            era,
            Arc::clone(abort),
            self.config.dial_timeout,
        );
        let mut pause = self.config.backoff.0;
        loop {
            match dialling.attempt() {
                Reached::All(plans, data) => return Ok((plans, data)),
                Reached::Over { .. } if abort.is_aborted() => return Err(CollectiveError::Aborted.into()),
                Reached::Over { epoch, rank, why } => {
                    self.last.epoch = self.last.epoch.max(epoch);
                    return Err(CollectiveError::PeerLost { rank, reason: why }.into());
                }
                // Who is to go will not be told.
                Reached::Superseded { why, .. } if self.shared.is_draining() => {
                    self.book
                        .fail_all(&mut self.scheduler, &format!("rank 0 was replaced: {why}"));
                    return Err(End::Outcome(Outcome::Drained));
                }
                Reached::Superseded { rank, why } => {
                    return Err(CollectiveError::PeerLost { rank, reason: why }.into());
                }
                Reached::Missing(why) => self.shared.state.explain(&why),
            }
            self.take_inputs(pause).map_err(End::Outcome)?;
            if abort.is_aborted() {
                return Err(CollectiveError::Aborted.into());
            }
            pause = (pause * 2).min(self.config.backoff.1);
        }
    }

    fn form(
        &mut self,
        era: Era,
        links: &mut [ControlLink],
        data: Vec<DataLink>,
        abort: &Arc<EraAbort>,
    ) -> Result<(), End> {
        self.shared.state.enter_era(era);
        self.shared.state.phase(Phase::Warming, "");
        let world = u32::try_from(links.len() + 1).unwrap_or(u32::MAX);
        let setup = self.config.setup();
        for link in links.iter_mut() {
            link.send(0, &Message::Setup(setup), self.config.stall_timeout)?;
        }
        let collective = TcpCollective::new(0, world, era, data, Arc::clone(abort), self.config.waits())?;
        let mut blocks = self
            .backend
            .form(&self.config.form_spec(era, setup), (self.wrap)(collective))?
            .blocks;
        for link in links {
            match link.receive(self.config.form_timeout)? {
                (_, Message::Ready { blocks: theirs }) => blocks = blocks.min(theirs),
                (step, message) => return Err(link.unexpected(step, &message).into()),
            }
        }
        for (sequence, refusal) in self.scheduler.requeue_all(self.config.limits(Some(blocks))) {
            self.book.fail(
                &mut self.scheduler,
                sequence.id,
                FailureKind::Invalid,
                refusal.to_string(),
            );
        }
        self.shared.state.update(|state| state.kv_blocks = blocks);
        self.book.publish(&self.scheduler);
        Ok(())
    }

    fn serve(
        &mut self,
        era: Era,
        links: &mut [ControlLink],
        abort: &EraAbort,
    ) -> Result<std::convert::Infallible, End> {
        let mut last_step_at: Option<Instant> = None;
        for step in 1.. {
            self.take_inputs(Duration::ZERO).map_err(End::Outcome)?;
            while !self.scheduler.has_work()
                && let Some(idle) = last_step_at.map(|at| self.config.heartbeat.saturating_sub(at.elapsed()))
                && !idle.is_zero()
            {
                self.take_inputs(idle).map_err(End::Outcome)?;
                if abort.is_aborted() {
                    return Err(CollectiveError::Aborted.into());
                }
            }
            self.step(era, step, links)?;
            last_step_at = Some(Instant::now());
            self.backoff = self.config.backoff.0;
        }
        Err(CollectiveError::Aborted.into())
    }

    fn step(&mut self, era: Era, step: u64, links: &mut [ControlLink]) -> Result<(), End> {
        let Batch {
            rows,
            sequences,
            blocks,
            state_hash,
            ..
        } = self.scheduler.batch();
        let plan = Plan {
            era,
            step,
            micro_batch: 0,
            rows,
            blocks,
            state_hash,
        };
        let sampled: Vec<(u32, SequenceId)> = (0..)
            .zip(plan.rows.iter().zip(sequences))
            .filter(|(_, (row, _))| row.sample.is_some())
            .map(|(index, (_, id))| (index, id))
            .collect();
        let biases = sampled
            .iter()
            .filter_map(|(row, id)| Some((*row, self.book.sampling(*id)?.1)));
        let late = Late {
            biases: biases.filter(|(_, biases)| !biases.is_empty()).collect(),
            ..Late::default()
        };
        let messages = [Message::Plan(plan), Message::Late(late)];
        let bytes = ControlLink::encode(era, step, &messages)?;
        let [Message::Plan(plan), Message::Late(late)] = messages else {
            return Ok(());
        };
        for link in links.iter_mut() {
            link.send_bytes(&bytes, self.config.stall_timeout)?;
        }
        let (ticket, mine) = compute(self.backend, self.shared, self.config, &plan, &late)?;
        let mut outputs = vec![mine];
        for link in links.iter_mut() {
            match link.receive(self.config.stall_timeout)? {
                (at, Message::Output(output)) if at == step => outputs.push(output),
                (at, message) => return Err(link.unexpected(at, &message).into()),
            }
        }
        merge::check(&plan, &outputs)?;
        let chosen = self.choose(&plan, &sampled, &outputs, ticket, links)?;
        self.backend.release(ticket);
        let phase = if self.shared.is_draining() {
            Phase::Draining
        } else {
            Phase::Serving
        };
        self.load.update(|figures| {
            figures.steps += 1;
            figures.last_step_at = Some(Instant::now());
        });
        self.shared.state.completed(step, phase);
        for (id, choice) in chosen {
            match choice {
                Choice::Token(token) => self.book.token(&mut self.scheduler, id, token),
                Choice::Unusable(error) => {
                    self.book
                        .fail(&mut self.scheduler, id, FailureKind::Internal, error.to_string());
                }
            }
        }
        self.book.publish(&self.scheduler);
        Ok(())
    }

    fn choose(
        &mut self,
        plan: &Plan,
        sampled: &[(u32, SequenceId)],
        outputs: &[StepOutput],
        ticket: Ticket,
        links: &mut [ControlLink],
    ) -> Result<Vec<(SequenceId, Choice)>, End> {
        let mut chosen = Vec::with_capacity(sampled.len());
        for (nth, (row, id)) in sampled.iter().enumerate() {
            let Some((params, _)) = self.book.sampling(*id) else {
                continue;
            };
            let sampling = Sampling::new(plan, (nth, *row), params, outputs);
            let choice = match sampling.by_candidates() {
                Some(choice) => choice,
                None => {
                    let fetch = Message::FetchRow { row: sampling.row };
                    for link in links.iter_mut() {
                        link.send(plan.step, &fetch, self.config.stall_timeout)?;
                    }
                    let mut shards = vec![self.backend.logits(ticket, sampling.row)?];
                    for link in links.iter_mut() {
                        match link.receive(self.config.stall_timeout)? {
                            (at, Message::Row(shard)) if at == plan.step => shards.push(shard),
                            (at, message) => return Err(link.unexpected(at, &message).into()),
                        }
                    }
                    sampling.by_row(shards)
                }
            };
            chosen.push((*id, choice));
        }
        Ok(chosen)
    }

    /// Take what came, waiting up to `wait` for the first. An outcome when the rank is to end.
    fn take_inputs(&mut self, wait: Duration) -> Result<(), Outcome> {
        let mut next = if wait.is_zero() {
            self.inputs.try_recv().ok()
        } else {
            match self.inputs.recv_timeout(wait) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                // The shared state holds a sender, so this does not happen while the rank lives.
                Err(RecvTimeoutError::Disconnected) => return Err(Outcome::Stopped),
            }
        };
        let refuses = self.shared.refuses();
        while let Some(input) = next {
            match input {
                Input::Submit {
                    id,
                    request,
                    sink,
                    at,
                } => self.book.submit(&mut self.scheduler, id, request, sink, at),
                Input::Cancel(id) => self.book.cancel(&mut self.scheduler, id),
                Input::Wake => {}
            }
            next = self.inputs.try_recv().ok();
        }
        self.book.publish(&self.scheduler);
        if self.shared.is_stopped() {
            return Err(Outcome::Stopped);
        }
        if refuses && self.scheduler.running() + self.scheduler.waiting() == 0 {
            return Err(Outcome::Drained);
        }
        if self.shared.is_draining() && self.shared.state.get().phase == Phase::Serving {
            self.shared.state.phase(Phase::Draining, "finishes what runs");
        }
        Ok(())
    }

    /// Wait before the next era; longer each time until a step has been completed.
    fn pause(&mut self) -> Result<(), Outcome> {
        let until = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(self.config.backoff.1);
        let generation = self.last.generation;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let superseded = self
                .shared
                .inbox
                .membership()
                .is_some_and(|now| now.generation > generation);
            if left.is_zero() || superseded {
                return self.take_inputs(Duration::ZERO);
            }
            self.take_inputs(left)?;
        }
    }
}
