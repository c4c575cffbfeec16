//! A leader that feeds one backend: block tables, plans, late values, answers.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use llamero_engine::mesh::TcpMesh;
use llamero_engine::step::{BlockDeltas, TokenRef};
use llamero_engine::{
    Backend, BlockTables, Era, FormLimits, FormSpec, KvDtype, Plan, PlanRow, RowOutput, SampleKey,
    StepOutput, Ticket, Unwatched, Waited,
};

/// The era of all plans.
pub const ERA: Era = Era {
    generation: 1,
    epoch: 1,
};

/// How long a step may take.
const STEP: Duration = Duration::from_secs(300);

/// The best four, without noise.
pub const GREEDY: SampleKey = SampleKey {
    seed: 1,
    temperature: 0.0,
    top: 4,
    mass: false,
    logprobs: false,
};

/// What a group of one rank agrees on.
#[must_use]
pub fn spec(max_sequences: u32, max_batched_tokens: u32, max_context: u32) -> FormSpec {
    FormSpec {
        era: ERA,
        limits: FormLimits {
            max_sequences,
            max_batched_tokens,
            max_context,
            block_size: 16,
            steps_in_flight: 2,
            kv_dtype: KvDtype::Bf16,
            max_adapters: 0,
            max_adapter_rank: 0,
        },
        kv_bytes: 1 << 30,
    }
}

/// Load a backend and form a group of it alone.
///
/// # Errors
/// Whatever the backend says.
pub fn form(backend: &mut dyn Backend, spec: &FormSpec) -> anyhow::Result<u32> {
    form_over(backend, spec, TcpMesh::alone(spec.era))
}

/// Load a backend and form the group of `mesh`.
///
/// # Errors
/// Whatever the backend says.
pub fn form_over(backend: &mut dyn Backend, spec: &FormSpec, mesh: TcpMesh) -> anyhow::Result<u32> {
    backend.load(&Unwatched)?;
    let capacity = backend.form(spec, Box::new(mesh), &mut |_| {})?;
    Ok(capacity.blocks)
}

/// Makes plans with the right step, tables and hash.
#[derive(Debug)]
pub struct Leader {
    tables: BlockTables,
    block: u32,
    step: u64,
    next_block: u32,
    scatter: u32,
}

impl Leader {
    /// Of a group formed by `spec`, with `blocks` blocks.
    #[must_use]
    pub fn new(spec: &FormSpec, blocks: u32) -> Self {
        Self {
            tables: BlockTables::new(spec.limits.max_sequences, blocks),
            block: spec.limits.block_size,
            step: 0,
            next_block: 0,
            // Blocks are taken in an order that is not ascending, where there are whole groups of eight.
            scatter: if blocks.is_multiple_of(8) { 5 } else { 0 },
        }
    }

    /// A plan of these rows, with blocks appended for them.
    pub fn plan(&mut self, rows: Vec<PlanRow>) -> Plan {
        let mut blocks = BlockDeltas::default();
        for row in &rows {
            let end = row.start + row.tokens.len() as u32;
            let has = self.tables.table(row.slot).len() as u32;
            let new: Vec<u32> = (has..end.div_ceil(self.block))
                .map(|_| {
                    let block = self.next_block ^ self.scatter;
                    self.next_block += 1;
                    block
                })
                .collect();
            if !new.is_empty() {
                blocks.appends.push((row.slot, new));
            }
        }
        self.plan_with(rows, blocks)
    }

    /// A plan of these rows and deltas.
    ///
    /// # Panics
    /// The deltas do not fit.
    pub fn plan_with(&mut self, rows: Vec<PlanRow>, blocks: BlockDeltas) -> Plan {
        if let Err(error) = self.tables.apply(&blocks) {
            panic!("{error}");
        }
        self.step += 1;
        let late = rows.iter().flat_map(|row| &row.tokens);
        let late_tokens = late.filter(|token| matches!(token, TokenRef::Late(_))).count() as u32;
        Plan {
            era: ERA,
            step: self.step,
            rows,
            blocks,
            late_tokens,
            late_sampling: false,
            state_hash: self.tables.hash(),
        }
    }
}

/// A row of known tokens.
#[must_use]
pub fn row(slot: u32, start: u32, tokens: &[u32], output: RowOutput) -> PlanRow {
    PlanRow {
        slot,
        start,
        tokens: tokens.iter().copied().map(TokenRef::Known).collect(),
        adapter: None,
        output,
    }
}

/// Sample the last positions without noise.
#[must_use]
pub fn sample(last: usize) -> RowOutput {
    RowOutput::Sample {
        last: last as u16,
        key: GREEDY,
    }
}

/// Wait for a step.
///
/// # Errors
/// The backend's, or a step that needs something or takes too long.
pub fn done(backend: &mut dyn Backend, ticket: Ticket) -> anyhow::Result<StepOutput> {
    match backend.wait(ticket, Instant::now() + STEP)? {
        Waited::Done(output) => Ok(output),
        other => bail!("step {} gives {other:?}", ticket.0),
    }
}

/// Compute a plan and release it; the logits of the positions that row 0 samples.
///
/// # Errors
/// The backend's.
pub fn logits(backend: &mut dyn Backend, plan: &Plan) -> anyhow::Result<Vec<Vec<f32>>> {
    let ticket = backend.submit(plan)?;
    let output = done(backend, ticket)?;
    let sampled = match plan.rows.first().map(|row| &row.output) {
        Some(RowOutput::Sample { last, .. }) => u32::from(*last),
        _ => 0,
    };
    let mut rows = Vec::new();
    for offset in 0..sampled {
        let shard = backend.fetch(ticket, 0, offset)?;
        let best = output
            .candidates
            .iter()
            .find(|candidates| (candidates.row, candidates.offset) == (0, offset))
            .and_then(|candidates| candidates.top.first());
        let at = |token: u32| shard.tokens.position(token).map(|at| shard.logits[at as usize]);
        ensure!(
            best.is_some_and(|(token, logit)| at(*token).map(f32::to_bits) == Some(logit.to_bits())),
            "what was sampled from differs from what is fetched"
        );
        rows.push(shard.logits);
    }
    backend.release(ticket);
    Ok(rows)
}

/// Where the main sequence is computed, and beside whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Its tokens in one step.
    pub chunk: usize,
    /// Other sequences in the batch, of one token each.
    pub peers: u32,
}

/// The logits of every position of `tokens` in slot 0. The group must have been formed for `way.peers + 1` sequences.
///
/// # Errors
/// The backend's.
pub fn sequence(
    backend: &mut dyn Backend,
    leader: &mut Leader,
    tokens: &[u32],
    way: Way,
) -> anyhow::Result<Vec<Vec<f32>>> {
    let mut all = Vec::new();
    for plan in plans(leader, tokens, way) {
        all.extend(logits(backend, &plan)?);
    }
    Ok(all)
}

/// The plans by which [`sequence`] goes.
pub fn plans(leader: &mut Leader, tokens: &[u32], way: Way) -> Vec<Plan> {
    let mut all = Vec::new();
    for (number, chunk) in tokens.chunks(way.chunk).enumerate() {
        let start = (number * way.chunk) as u32;
        let mut rows = vec![row(0, start, chunk, sample(chunk.len()))];
        rows.extend((1..=way.peers).map(|slot| {
            let token = (slot * 97 + number as u32 * 13) % 1000;
            row(slot, number as u32, &[token], sample(1))
        }));
        all.push(leader.plan(rows));
    }
    all
}
