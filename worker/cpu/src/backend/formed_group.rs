//! What a rank has from forming a group until leaving it.

use std::collections::VecDeque;
use std::time::Instant;

use llamero_engine::kv_state::{KvState, resolve};
use llamero_engine::{
    BackendError, Era, FormSpec, KvCapacity, Late, LogitShard, MemoryPlan, Plan, StepProgress, Ticket, Waited,
};

use super::step::{Phase, Step};
use crate::attention::Span;
use crate::collective::Collective;
use crate::forward::{Batch, Machine, Model};
use crate::kv::{KvCache, KvShape};
use crate::lora;
use crate::lora::store::CpuAdapters;
use crate::pool::Pool;
use crate::workspace::Workspace;

/// The KV blocks of an era that is over.
pub(super) struct KeptBlocks {
    cache: KvCache,
    /// Positions of each block that hold keys and values.
    filled: Vec<u32>,
    /// The era in which steps were last submitted, if there was one.
    filled_in: Option<Era>,
}

impl KeptBlocks {
    fn fit(&self, kv: KvShape, blocks: u32) -> bool {
        self.cache.shape() == kv && self.filled.len() == blocks as usize
    }
}

/// Membership, cache, workspace and steps under way.
pub(super) struct FormedGroup {
    spec: FormSpec,
    collective: Collective,
    cache: KvCache,
    blocks: u32,
    /// The era in which steps were last submitted; none when there was none since the cache was made.
    filled_in: Option<Era>,
    state: KvState,
    work: Workspace,
    next_step: u64,
    /// Submitted and not released, in order.
    steps: VecDeque<Step>,
}

impl FormedGroup {
    pub(super) fn new(
        spec: &FormSpec,
        collective: Collective,
        kv: KvShape,
        plan: &MemoryPlan,
        work: Workspace,
        kept: Option<KeptBlocks>,
    ) -> Result<Self, BackendError> {
        let blocks = plan.blocks(spec.kv_bytes);
        let needed = spec.limits.max_context.div_ceil(spec.limits.block_size);
        if blocks < needed {
            return Err(BackendError::Unusable(format!(
                "{} bytes of KV cache hold {} tokens on this rank, one sequence of {} needs {} bytes: \
                 raise the KV memory or lower maxContextLength",
                spec.kv_bytes,
                u64::from(blocks) * u64::from(spec.limits.block_size),
                spec.limits.max_context,
                u64::from(needed).saturating_mul(plan.kv_block)
            )));
        }
        // Blocks that do not fit are dropped before others are made: there is no room for both.
        let kept = match kept.filter(|kept| kept.fit(kv, blocks)) {
            Some(kept) => kept,
            None => KeptBlocks {
                cache: KvCache::new(kv, blocks as usize).map_err(|error| {
                    BackendError::Unusable(format!(
                        "cannot map {} bytes of KV cache: {error}",
                        u64::from(blocks) * plan.kv_block
                    ))
                })?,
                filled: vec![0; blocks as usize],
                filled_in: None,
            },
        };
        Ok(Self {
            spec: *spec,
            collective,
            cache: kept.cache,
            blocks,
            filled_in: kept.filled_in,
            state: KvState::new(&spec.limits, kept.filled),
            work,
            next_step: 1,
            steps: VecDeque::new(),
        })
    }

    pub(super) fn capacity(&self) -> KvCapacity {
        KvCapacity {
            blocks: self.blocks,
            kept: self.filled_in,
        }
    }

    /// Leave the era and keep its blocks.
    pub(super) fn into_blocks(self) -> KeptBlocks {
        KeptBlocks {
            cache: self.cache,
            filled: self.state.into_filled(),
            filled_in: self.filled_in,
        }
    }

    pub(super) fn submit(
        &mut self,
        plan: &Plan,
        vocab: usize,
        adapters: &CpuAdapters,
    ) -> Result<Ticket, BackendError> {
        let bug = |reason: String| BackendError::Bug(format!("step {} is refused: {reason}", plan.step));
        if plan.era != self.spec.era {
            return Err(bug(format!(
                "it is of {:?}, this rank is in {:?}",
                plan.era, self.spec.era
            )));
        }
        if plan.step != self.next_step {
            return Err(bug(format!("step {} was expected", self.next_step)));
        }
        if self.steps.len() >= self.spec.limits.steps_in_flight as usize {
            return Err(bug(format!(
                "{} steps are in flight, as many as were agreed on",
                self.steps.len()
            )));
        }
        // Never without an adapter that a row asks for.
        let adapters = plan.rows.iter().map(|row| {
            let found = row.adapter.map(|number| adapters.get(number).ok_or(number));
            found.transpose()
        });
        let adapters: Vec<_> = adapters
            .collect::<Result<_, u32>>()
            .map_err(|number| bug(format!("this rank does not have adapter {number}")))?;
        self.state.advance(plan, &self.spec.limits, vocab).map_err(bug)?;
        self.next_step += 1;
        self.filled_in = Some(self.spec.era);
        let mut first = 0;
        let spans = plan.rows.iter().map(|row| {
            let span = Span {
                first,
                len: row.tokens.len(),
                start: row.start as usize,
                table: self.state.table(row.slot),
            };
            first += span.len;
            span
        });
        let ticket = Ticket(plan.step);
        let spans: Vec<Span> = spans.collect();
        let segments = lora::segments(&spans, adapters);
        let step = Step::new(ticket, plan, spans, segments);
        self.steps.push_back(step);
        Ok(ticket)
    }

    pub(super) fn late(&mut self, ticket: Ticket, late: &Late, vocab: usize) -> Result<(), BackendError> {
        let bug = |reason: String| BackendError::Bug(format!("late values of step {}: {reason}", ticket.0));
        let step = self.steps.iter_mut().find(|step| step.ticket == ticket);
        let step = step.ok_or_else(|| bug("it was not submitted, or is released".into()))?;
        step.late.take(&step.plan, late, vocab).map_err(bug)
    }

    /// Compute every step up to `ticket`, in order.
    pub(super) fn wait(
        &mut self,
        ticket: Ticket,
        until: Instant,
        model: &Model<'_>,
        pool: &mut Pool,
        progress: &StepProgress,
    ) -> Result<Waited, BackendError> {
        let index = self.steps.iter().position(|step| step.ticket == ticket);
        let index = index.ok_or_else(|| not_submitted(ticket))?;
        let mut computed = false;
        for step in self.steps.iter_mut().take(index + 1) {
            if computed && Instant::now() >= until {
                return Ok(Waited::Pending);
            }
            if matches!(step.phase, Phase::Submitted) {
                let machine = Machine {
                    pool,
                    collective: &mut self.collective,
                    cache: &mut self.cache,
                    work: &mut self.work,
                    progress,
                    is_warm_up: false,
                };
                step.phase = Phase::Forwarded(forward(model, machine, step)?);
                computed = true;
            }
            if !step.is_done() && !step.sample(model, pool, &mut self.work.logits) {
                return Ok(Waited::NeedsSampling);
            }
        }
        match self.steps.get(index).map(|step| &step.phase) {
            Some(Phase::Done(_, output)) => Ok(Waited::Done(output.clone())),
            Some(Phase::Submitted | Phase::Forwarded(_)) | None => Ok(Waited::Pending),
        }
    }

    pub(super) fn fetch(
        &mut self,
        ticket: Ticket,
        place: (u32, u32),
        model: &Model<'_>,
        pool: &mut Pool,
    ) -> Result<LogitShard, BackendError> {
        let step = self.steps.iter().find(|step| step.ticket == ticket);
        step.ok_or_else(|| not_submitted(ticket))?
            .fetch(model, pool, place, &mut self.work.logits)
            .map_err(|why| BackendError::Bug(format!("logits of step {}: {why}", ticket.0)))
    }

    pub(super) fn save(&mut self, block: u32) -> Result<Vec<u8>, BackendError> {
        let Some(mut bytes) = self.state.begin_saved(block, self.cache.shape().block_bytes()) else {
            return Err(self.no_block(block));
        };
        let block_size = self.spec.limits.block_size as usize;
        if let Some(step) = self.steps.iter().find(|step| step.writes(block, block_size)) {
            return Err(BackendError::Bug(format!(
                "KV block {block} is saved before step {}, which writes it, is computed",
                step.ticket.0
            )));
        }
        self.cache.save(block, &mut bytes);
        Ok(bytes)
    }

    pub(super) fn restore(&mut self, block: u32, bytes: &[u8]) -> Result<(), BackendError> {
        if self.state.filled(block).is_none() {
            return Err(self.no_block(block));
        }
        let block_bytes = self.cache.shape().block_bytes();
        let (filled, data) = self
            .state
            .read_saved(bytes, block_bytes)
            .map_err(BackendError::Bug)?;
        if let Some(step) = self.steps.iter().find(|step| step.uses(block)) {
            return Err(BackendError::Bug(format!(
                "KV block {block} is restored before step {}, which uses it, is computed",
                step.ticket.0
            )));
        }
        self.cache.restore(block, data);
        self.state.set_filled(block, filled);
        Ok(())
    }

    fn no_block(&self, block: u32) -> BackendError {
        BackendError::Bug(format!(
            "KV block {block} does not exist: there are {}",
            self.blocks
        ))
    }

    pub(super) fn release(&mut self, ticket: Ticket) {
        self.steps.retain(|step| step.ticket != ticket);
    }
}

fn not_submitted(ticket: Ticket) -> BackendError {
    BackendError::Bug(format!("step {} was not submitted, or is released", ticket.0))
}

/// Pass a number through all ranks: every stage gathers it, and gives it to the next.
fn heartbeat(collective: &mut Collective, number: f32) -> Result<(), BackendError> {
    let mut number = [number];
    if collective.has_stage_before() {
        collective.take_over(&mut number)?;
    }
    let world = collective.world();
    collective.all_gather(&vec![1; world], &number, &mut vec![0.0; world])?;
    if collective.has_stage_behind() {
        collective.pass_on(&number)?;
    }
    Ok(())
}

/// Run a step through the layers: the final norms of its answered positions.
fn forward(model: &Model<'_>, mut machine: Machine<'_>, step: &Step) -> Result<Vec<u32>, BackendError> {
    let plan = &step.plan;
    let Some(late) = step.late.tokens() else {
        return Err(BackendError::Bug(format!(
            "step {} is waited for before its {} late tokens are there",
            plan.step, plan.late_tokens
        )));
    };
    machine.collective.begin_step(plan.step);
    for (from, to) in &plan.blocks.copies {
        machine.cache.copy(*from, *to);
    }
    if plan.rows.is_empty() {
        // A heartbeat proves that every rank still reaches every other.
        heartbeat(machine.collective, plan.step as f32)?;
        return Ok(Vec::new());
    }
    let batch = Batch {
        tokens: &resolve(plan, late),
        spans: &step.spans,
        segments: &step.segments,
    };
    model.run(&mut machine, &batch)?;
    Ok(model.final_norm(machine.work, &step.answered_tokens()))
}
