//! What a rank has from forming a group until leaving it.

use std::collections::{BTreeMap, VecDeque};

use llamero_engine::{
    BackendError, Collective, FormSpec, KvCapacity, Late, LogitShard, Plan, StepOutput, Ticket, TokenRef,
};

use crate::attention::Span;
use crate::collective::Solo;
use crate::forward::{Model, Programs, Workspace};
use crate::kernel::Kernel;
use crate::kv::{KvCache, KvShape};
use crate::plan::{KvState, check_late, resolve};
use crate::pool::Pool;
use crate::rope::Rope;
use crate::sample::{adjust, candidates};
use crate::shape::Shape;
use crate::weights::Weights;

/// Membership, cache, workspace and steps under way.
pub(super) struct Era {
    spec: FormSpec,
    collective: Box<dyn Collective<Buffer = [f32]>>,
    rope: Rope,
    cache: KvCache,
    blocks: u32,
    state: KvState,
    work: Workspace,
    next_step: u64,
    waiting: VecDeque<Step>,
    done: BTreeMap<Ticket, Done>,
}

/// A step that is submitted and not yet computed.
struct Step {
    ticket: Ticket,
    plan: Plan,
    /// The tables as of this step: later plans may change them before it is computed.
    spans: Vec<Span>,
    late: Option<Late>,
}

/// A step that is computed and not yet released.
struct Done {
    output: StepOutput,
    /// Plan row of each sampled position.
    rows: Vec<u32>,
    /// `[sampled positions, vocabulary of the rank]`.
    logits: Vec<f32>,
}

impl Era {
    pub(super) fn new(
        spec: &FormSpec,
        collective: Box<dyn Collective<Buffer = [f32]>>,
        shape: &Shape,
        programs: &Programs,
        rope: Rope,
    ) -> Result<Self, BackendError> {
        let kv = KvShape::new(
            shape.layers,
            shape.kv_heads.len(),
            shape.head_dim,
            spec.block_size as usize,
        )?;
        let block_bytes = kv.block_bytes() as u64;
        let blocks = u32::try_from(spec.kv_bytes / block_bytes).unwrap_or(u32::MAX);
        let needed = spec.max_context.div_ceil(spec.block_size);
        if blocks < needed {
            return Err(BackendError::Memory(format!(
                "{} bytes of KV cache hold {} tokens on this rank, one sequence of {} needs {} bytes: \
                 raise the KV memory or lower maxContextLength",
                spec.kv_bytes,
                u64::from(blocks) * u64::from(spec.block_size),
                spec.max_context,
                u64::from(needed) * block_bytes
            )));
        }
        let cache = KvCache::new(kv, blocks as usize).map_err(|error| {
            BackendError::Memory(format!(
                "cannot map {} bytes of KV cache: {error}",
                u64::from(blocks) * block_bytes
            ))
        })?;
        Ok(Self {
            spec: spec.clone(),
            collective,
            rope,
            cache,
            blocks,
            state: KvState::new(spec, blocks),
            work: Workspace::new(shape, programs, spec.max_batched_tokens as usize),
            next_step: 1,
            waiting: VecDeque::new(),
            done: BTreeMap::new(),
        })
    }

    pub(super) fn rope(&self) -> &Rope {
        &self.rope
    }

    pub(super) fn capacity(&self) -> KvCapacity {
        KvCapacity { blocks: self.blocks }
    }

    pub(super) fn submit(&mut self, plan: &Plan, vocab: usize) -> Result<Ticket, BackendError> {
        let broken = |reason: String| BackendError::Plan {
            step: plan.step,
            reason,
        };
        if plan.era != self.spec.era {
            return Err(broken(format!(
                "it is of {:?}, this rank is in {:?}",
                plan.era, self.spec.era
            )));
        }
        if plan.step != self.next_step {
            return Err(broken(format!("step {} was expected", self.next_step)));
        }
        self.state = self.state.after(plan, &self.spec, vocab).map_err(broken)?;
        self.next_step += 1;
        let mut first = 0;
        let spans = plan.rows.iter().map(|row| {
            let span = Span {
                first,
                len: row.tokens.len(),
                start: row.start as usize,
                table: self.state.table(row.slot).to_vec(),
            };
            first += span.len;
            span
        });
        let ticket = Ticket(plan.step);
        let step = Step {
            ticket,
            spans: spans.collect(),
            plan: plan.clone(),
            late: None,
        };
        self.waiting.push_back(step);
        Ok(ticket)
    }

    pub(super) fn bind(&mut self, ticket: Ticket, late: &Late, vocab: usize) -> Result<(), BackendError> {
        let broken = |reason: String| BackendError::Plan {
            step: ticket.0,
            reason,
        };
        let step = self.waiting.iter_mut().find(|step| step.ticket == ticket);
        let step = step.ok_or_else(|| broken("it is not waiting for late values".to_owned()))?;
        check_late(&step.plan, late, vocab)
            .and(resolve(&step.plan, late, vocab))
            .map_err(broken)?;
        step.late = Some(late.clone());
        Ok(())
    }

    /// Compute every step up to `ticket`, in order.
    pub(super) fn poll(
        &mut self,
        ticket: Ticket,
        (shape, programs, kernel, weights): (&Shape, &Programs, Kernel, &Weights),
        pool: &mut Pool,
    ) -> Result<StepOutput, BackendError> {
        let broken = |reason: &str| BackendError::Plan {
            step: ticket.0,
            reason: reason.to_owned(),
        };
        while !self.done.contains_key(&ticket) {
            let step = self
                .waiting
                .pop_front()
                .ok_or_else(|| broken("it was not submitted, or is released"))?;
            let late = match step.late {
                Some(late) => late,
                None if needs_late(&step.plan) => return Err(broken("its late values were not bound")),
                None => Late::default(),
            };
            let step = Bound {
                plan: step.plan,
                spans: step.spans,
                late,
            };
            let model = Model {
                kernel,
                shape,
                weights,
                programs,
                rope: &self.rope,
            };
            let machine = Machine {
                collective: &mut *self.collective,
                cache: &mut self.cache,
                work: &mut self.work,
                pool,
            };
            let done = compute(&model, machine, &step)?;
            self.done.insert(step_ticket(&step.plan), done);
        }
        self.done
            .get(&ticket)
            .map(|done| done.output.clone())
            .ok_or_else(|| broken("it is released"))
    }

    pub(super) fn logits(
        &self,
        ticket: Ticket,
        row: u32,
        first: u32,
        width: usize,
    ) -> Result<LogitShard, BackendError> {
        let broken = |reason: String| BackendError::Plan {
            step: ticket.0,
            reason,
        };
        let done = self
            .done
            .get(&ticket)
            .ok_or_else(|| broken("it is not computed, or released".to_owned()))?;
        let index = done.rows.iter().rposition(|of| *of == row);
        let index = index.ok_or_else(|| broken(format!("row {row} was not sampled")))?;
        Ok(LogitShard {
            first_token: first,
            logits: done.logits[index * width..(index + 1) * width].to_vec(),
        })
    }

    #[cfg(test)]
    pub(super) fn all_logits(&self, ticket: Ticket) -> &[f32] {
        &self.done[&ticket].logits
    }

    pub(super) fn release(&mut self, ticket: Ticket) {
        self.done.remove(&ticket);
    }
}

fn step_ticket(plan: &Plan) -> Ticket {
    Ticket(plan.step)
}

fn needs_late(plan: &Plan) -> bool {
    plan.rows
        .iter()
        .flat_map(|row| &row.tokens)
        .any(|token| matches!(token, TokenRef::Late(_)))
}

/// A step with its late values.
struct Bound {
    plan: Plan,
    spans: Vec<Span>,
    late: Late,
}

/// What a step is computed with.
struct Machine<'a> {
    collective: &'a mut dyn Collective<Buffer = [f32]>,
    cache: &'a mut KvCache,
    work: &'a mut Workspace,
    pool: &'a mut Pool,
}

fn compute(model: &Model<'_>, machine: Machine<'_>, step: &Bound) -> Result<Done, BackendError> {
    let Machine {
        collective,
        cache,
        work,
        pool,
    } = machine;
    let plan = &step.plan;
    collective.begin_step(plan.step);
    for (from, to) in &plan.blocks.copies {
        cache.copy(*from, *to);
    }
    if plan.rows.is_empty() {
        // A heartbeat proves that every rank still reaches every other.
        let world = collective.world() as usize;
        collective.all_gather(&vec![1; world], &[plan.step as f32], &mut vec![0.0; world])?;
        return Ok(Done {
            output: StepOutput::default(),
            rows: Vec::new(),
            logits: Vec::new(),
        });
    }
    let tokens = resolve(plan, &step.late, model.shape.vocab_size).map_err(|reason| BackendError::Plan {
        step: plan.step,
        reason,
    })?;
    model.run(pool, collective, cache, work, &tokens, &step.spans)?;

    // Per sampled position: plan row, index in the batch, absolute position of the token to be sampled.
    let mut sampled = Vec::new();
    for ((number, row), span) in (0u32..).zip(&plan.rows).zip(&step.spans) {
        if row.sample.is_some() {
            let first = span.len - 1 - usize::from(row.drafts);
            sampled.extend((first..span.len).map(|i| (number, span.first + i, (span.start + i + 1) as u32)));
        }
    }
    let width = model.shape.vocab.len();
    let mut logits = vec![0.0; sampled.len() * width];
    let indices: Vec<usize> = sampled.iter().map(|(_, index, _)| *index).collect();
    model.logits(pool, work, &indices, &mut logits);
    let mut output = StepOutput::default();
    for ((row, _, position), logits) in sampled.iter().zip(logits.chunks_exact_mut(width)) {
        adjust(&step.late, *row, model.shape.vocab.start, logits);
        if let Some(key) = &plan.rows[*row as usize].sample {
            let first = model.shape.vocab.start as u32;
            output
                .candidates
                .push(candidates(model.kernel, *row, first, logits, key, *position));
        }
    }
    Ok(Done {
        output,
        rows: sampled.iter().map(|(row, ..)| *row).collect(),
        logits,
    })
}

/// Touch all weights once, so that the first request does not pay for it. Talks to nobody.
pub(super) fn warm_up(model: &Model<'_>, pool: &mut Pool, shape: &Shape) -> Result<(), BackendError> {
    let kv = KvShape::new(shape.layers, shape.kv_heads.len(), shape.head_dim, 32)?;
    let mut cache = KvCache::new(kv, 1).map_err(|error| BackendError::Memory(error.to_string()))?;
    let mut work = Workspace::new(shape, model.programs, 1);
    let span = Span {
        first: 0,
        len: 1,
        start: 0,
        table: vec![0],
    };
    model.run(pool, &mut Solo::default(), &mut cache, &mut work, &[0], &[span])?;
    model.logits(pool, &mut work, &[0], &mut vec![0.0; shape.vocab.len()]);
    Ok(())
}
