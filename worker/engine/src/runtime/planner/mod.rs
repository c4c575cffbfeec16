//! What is computed next, and what comes of it: requests become steps, answers become tokens.
//!
//! Up to `depth` steps are in flight. While one computes, the next one is planned and sent with the tokens that the first
//! one samples left open; when the answers are there, those tokens are sent first, and clients hear of theirs after that.
//!
//! | module | what it is |
//! |---|---|
//! | [`requests`] | requests that are not finished: clients, sampling, ends |
//! | [`step`] | one step in flight and what its rows belong to |
//! | [`row`] | a row of it |
//! | [`merge`] | tokens from the answers of all ranks |
//! | [`choice`] | what comes of a sampled row |
//! | [`finish`] | the end of a step: its answers are merged; late values for the next, then events for clients |

mod choice;
mod finish;
mod merge;
mod requests;
mod row;
mod step;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use llamero_settings::losses::{ENOUGH_TOKENS, MOST_LOSSES};
use requests::Charge;
pub(super) use requests::Requests;
use step::PlannedStep;

use super::adapters::{AdapterError, Adapters};
use super::constraint::Constraint;
use super::executor::Executor;
use super::load::LoadCell;
#[cfg(test)]
use super::load::LoadSnapshot;
use super::queue::QueueGauge;
use super::request::{EventSink, FailureKind, GenerationRequest};
use crate::mesh::{Members, MeshError, Topology};
use crate::schedule::{Batch, Limits, PrefixHash, Scheduler, SequenceId, Speculation, StepBudget};
use crate::step::{Era, Late, Plan};

/// See the module's description. Outlives eras.
pub(super) struct Planner {
    scheduler: Scheduler,
    requests: Requests,
    adapters: Adapters,
    budget: StepBudget,
    load: Arc<LoadCell>,
    queue: Arc<QueueGauge>,
    era: Era,
    depth: usize,
    /// In flight, oldest first.
    steps: VecDeque<PlannedStep>,
    /// Requests that had rows in flight when the last era ended, until the next one begins.
    interrupted: BTreeSet<SequenceId>,
    /// Number of the last step that was sent.
    last: u64,
    /// When the last step of this era ended.
    ended_at: Option<Instant>,
    /// The era whose steps filled the KV cache last.
    filled_in: Era,
}

impl Planner {
    /// No request yet, and no era. `target` is how long a step should take at most; `prefix` names what the group computes,
    /// so that requests share KV blocks; none: they do not.
    pub(super) fn new(
        limits: Limits,
        depth: u32,
        target: Duration,
        load: Arc<LoadCell>,
        queue: Arc<QueueGauge>,
        prefix: Option<PrefixHash>,
    ) -> Self {
        Self {
            scheduler: Scheduler::new(limits),
            requests: Requests::new(Arc::clone(&load), Arc::clone(&queue), prefix),
            adapters: Adapters::new(0, Members::from(Topology::tensor(1)), Arc::default()),
            budget: StepBudget::new(target, limits.max_batched_tokens),
            load,
            queue,
            era: Era::default(),
            depth: depth.max(1) as usize,
            steps: VecDeque::new(),
            interrupted: BTreeSet::new(),
            last: 0,
            ended_at: None,
            filled_in: Era::default(),
        }
    }

    /// The same for a pipeline of `stages` stages.
    pub(super) fn with_stages(mut self, stages: u32) -> Self {
        self.scheduler = Scheduler::staged(*self.scheduler.limits(), stages);
        self
    }

    /// The same, and sequences are drafted.
    pub(super) fn with_speculation(mut self, speculation: Option<Speculation>) -> Self {
        self.scheduler = self.scheduler.with_speculation(speculation);
        self
    }

    /// The same with adapters that are there already or may come.
    pub(super) fn with_adapters(mut self, adapters: Adapters) -> Self {
        self.adapters = adapters;
        self
    }

    /// What is loaded.
    pub(super) fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    /// What is loaded, to be changed.
    pub(super) fn adapters_mut(&mut self) -> &mut Adapters {
        &mut self.adapters
    }

    /// Who computes from now on. A group that does without some ranks may hold less than it does when whole.
    pub(super) fn set_members(&mut self, members: &Members) {
        self.adapters.set_members(members);
        self.requests.set_whole(members.lost().is_empty());
    }

    /// Requests that use an adapter.
    pub(super) fn requests_of(&self, adapter: u32) -> usize {
        self.requests.of_adapter(adapter).len()
    }

    /// An adapter is lost: its requests fail here, and another replica may have it.
    pub(super) fn fail_adapter(&mut self, adapter: u32, message: &str) {
        for id in self.requests.of_adapter(adapter) {
            self.scheduler.remove(id);
            self.requests
                .failed(id, FailureKind::Unavailable, message.to_owned());
        }
        self.show();
    }

    /// Queue a request, or tell its client why not.
    pub(super) fn submit(
        &mut self,
        id: SequenceId,
        request: GenerationRequest,
        constraint: Option<Box<dyn Constraint>>,
        sink: EventSink,
        at: Instant,
    ) {
        let adapter = match &request.adapter {
            None => None,
            Some(choice) => match self.adapters.get(&choice.name) {
                Some(info) if info.identity == choice.identity => Some(info.clone()),
                _ => {
                    self.requests.refuse_adapter(&request, sink);
                    return;
                }
            },
        };
        let (scheduler, asked) = (&mut self.scheduler, (request, constraint));
        self.requests
            .submit(scheduler, id, asked, adapter.as_ref(), (sink, at));
        self.show();
    }

    /// A client went away or changed its mind.
    pub(super) fn cancel(
        &mut self,
        id: SequenceId,
        executor: Option<&mut Executor>,
        now: Instant,
    ) -> Result<(), MeshError> {
        if !self.requests.contains(id) {
            return Ok(());
        }
        let history = self.scheduler.remove(id);
        self.show();
        self.requests.cancelled(id, history);
        let cancels = self.cancel_rows(&[id]);
        match executor {
            Some(executor) => executor.late(cancels, now),
            None => Ok(()),
        }
    }

    /// No request goes on here; another leader can take them.
    pub(super) fn fail_all(&mut self, message: &str) {
        for id in self.requests.ids() {
            self.scheduler.remove(id);
            self.requests
                .failed(id, FailureKind::Unavailable, message.to_owned());
        }
        self.give_up_adapter();
        self.show();
    }

    /// No rank says any more what came of reading an adapter. They forget it when they form, since it is not listed then.
    fn give_up_adapter(&mut self) {
        let why = "the group forms again".into();
        self.adapters.give_up(AdapterError::Unavailable(why));
    }

    /// An era has formed with these limits: everything is computed again, but for what is still in KV blocks that all ranks
    /// have kept as they were at the end of the era `kept`. Requests that the group cannot hold any more fail; another one may hold
    /// them, since this one did.
    ///
    /// A load of an adapter that has begun goes on: it was taken since all ranks are ready, and they read it in this era.
    pub(super) fn enter(&mut self, era: Era, limits: Limits, kept: Option<Era>) {
        self.clear_steps();
        self.interrupted.clear();
        self.era = era;
        let kept = kept.is_some_and(|kept| kept == self.filled_in);
        for (sequence, refusal) in self.scheduler.requeue_all(limits, kept) {
            let message = format!("the group formed again with less memory than it had: {refusal}");
            self.requests
                .failed(sequence.id, FailureKind::Unavailable, message);
        }
        self.show();
    }

    /// The era ended, and with it all steps in flight. Histories stay. Whether some request had rows in flight.
    pub(super) fn leave(&mut self) -> bool {
        self.give_up_adapter();
        self.clear_steps()
    }

    fn clear_steps(&mut self) -> bool {
        let rows = self.steps.iter().flat_map(|step| &step.rows);
        let wanted = rows.filter(|row| !row.cancelled).map(|row| row.sequence);
        let interrupted: BTreeSet<SequenceId> = wanted.collect();
        let worked = !interrupted.is_empty();
        self.interrupted.extend(interrupted);
        self.steps.clear();
        self.last = 0;
        self.ended_at = None;
        let limits = *self.scheduler.limits();
        // The limits are the same, so nothing is refused. What becomes of the blocks shows when the next era forms.
        self.scheduler.requeue_all(limits, true);
        self.show();
        worked
    }

    /// The last era ended since a member was lost, and requests that had rows in flight may be the cause. One that lost too
    /// many without getting on fails: it would be tried for ever. Before that it is suspected; among all that were
    /// interrupted, a suspected one is taken for the cause.
    pub(super) fn charge_loss(&mut self, error: &str) {
        let interrupted = std::mem::take(&mut self.interrupted);
        let suspected = |id: &&SequenceId| self.requests.is_suspected(**id);
        let charged = match interrupted.iter().find(suspected) {
            Some(id) => BTreeSet::from([*id]),
            None => interrupted,
        };
        for id in charged {
            let Some(length) = self.scheduler.length(id) else {
                continue;
            };
            match self.requests.charge_loss(id, length) {
                Charge::Bearable => {}
                Charge::Suspected => self.scheduler.suspect(id, true),
                Charge::TooMany => {
                    tracing::warn!(
                        request = id.0,
                        "members were lost again and again by a request: {error}"
                    );
                    self.scheduler.remove(id);
                    self.requests.failed(id, FailureKind::Internal, too_many(error));
                }
            }
        }
        self.show();
    }

    /// Do all that can be done now: merge answers, plan and send steps. Returns the number of the last step that ended.
    pub(super) fn advance(
        &mut self,
        executor: &mut Executor,
        now: impl Fn() -> Instant,
    ) -> Result<Option<u64>, MeshError> {
        let mut ended = None;
        self.plan_ahead(executor, now())?;
        while let Some(number) = self.merge_next(executor, &now)? {
            ended = Some(number);
            self.plan_ahead(executor, now())?;
        }
        Ok(ended)
    }

    fn plan_ahead(&mut self, executor: &mut Executor, now: Instant) -> Result<(), MeshError> {
        let mut planned = false;
        while self.may_plan()
            && let Some(batch) = self.scheduler.batch(self.budget.tokens())
        {
            let admitted = self.requests.admitted(&batch.admitted);
            self.send(batch, executor, now)?;
            self.requests.tell(admitted);
            planned = true;
        }
        if planned {
            self.show();
        }
        Ok(())
    }

    /// Whether one more step may be planned now. Every stage has one to compute; those beyond that are planned ahead, and better not
    /// where drafts are to come.
    fn may_plan(&mut self) -> bool {
        let planned = self.steps.len();
        let ahead = planned == 0 || !self.scheduler.awaits_tokens() || planned < self.scheduler.stages();
        planned < self.depth && ahead
    }

    /// Send a step without rows, which passes through all ranks and tells them of freed slots.
    pub(super) fn heartbeat(&mut self, executor: &mut Executor, now: Instant) -> Result<(), MeshError> {
        let batch = self.scheduler.heartbeat();
        self.send(batch, executor, now)
    }

    fn send(&mut self, batch: Batch, executor: &mut Executor, now: Instant) -> Result<(), MeshError> {
        self.last += 1;
        self.filled_in = self.era;
        let step = PlannedStep::new(self.last, &batch, &self.requests, now);
        let plan = Plan {
            era: self.era,
            step: self.last,
            rows: batch.rows,
            blocks: batch.blocks,
            late_tokens: step.late_tokens(),
            late_sampling: step.sampling_due,
            state_hash: batch.state_hash,
        };
        executor.submit(plan, now)?;
        self.steps.push_back(step);
        if let Some(step) = self.steps.back_mut()
            && step.late.is_empty()
            && let Some(sampling) = step.sampling(&mut self.requests)
        {
            executor.late(vec![(step.number, sampling)], now)?;
        }
        Ok(())
    }

    /// Nobody wants the rows of these sequences any more. Returns what members are to be told.
    fn cancel_rows(&mut self, ids: &[SequenceId]) -> Vec<(u64, Late)> {
        let mut cancels = Vec::new();
        for step in &mut self.steps {
            let rows = step.cancel(ids);
            if !rows.is_empty() {
                cancels.push((step.number, Late::Cancel(rows)));
            }
        }
        cancels
    }

    /// Whether no step is in flight.
    pub(super) fn is_resting(&self) -> bool {
        self.steps.is_empty()
    }

    /// When the last step of this era ended.
    pub(super) fn ended_at(&self) -> Option<Instant> {
        self.ended_at
    }

    /// Whether no request is left.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Renew the figures about the queue.
    pub(super) fn show(&self) {
        self.load.update(|figures| figures.queue(&self.scheduler));
    }

    /// Rows that the oldest step in flight samples.
    pub(super) fn sampled_rows(&self) -> Vec<u32> {
        let rows = self.steps.front().map_or(&[][..], |step| &step.rows);
        (0..)
            .zip(rows)
            .filter(|(_, row)| row.samples)
            .map(|(index, _)| index)
            .collect()
    }

    /// When the oldest step in flight had all that it needed to begin.
    pub(super) fn late_sent_at(&self) -> Option<Instant> {
        self.steps.front().map(|step| step.began)
    }

    #[cfg(test)]
    pub(super) fn load(&self) -> LoadSnapshot {
        self.load.snapshot(false)
    }

    #[cfg(test)]
    pub(super) fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }
}

/// The last sentence for the client of a request that brought down members.
fn too_many(error: &str) -> String {
    format!(
        "members of this group were lost {MOST_LOSSES} times in a row while they worked on this request, with fewer than \
         {ENOUGH_TOKENS} tokens between, the last time because {error}. The request itself is the likely cause, so it is not \
         tried again; the workers' logs tell more"
    )
}
