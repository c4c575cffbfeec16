//! Drive a group of ranks in threads through a fixed list of plans.

use std::path::Path;
use std::time::Duration;

use llamero_engine::step::{BlockDeltas, SampleKey};
use llamero_engine::{Backend, BlockTables, Era, FormSpec, Late, Plan, PlanRow, TokenRef};

use crate::collective::local_group;
use crate::{CpuBackend, CpuOptions, Kernel, Level};

pub(super) const BLOCK: u32 = 32;
/// Positions that the longest mate reaches, at most.
const MATES_REACH: usize = 128;

/// How the same tokens are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    /// Tokens of the main sequence per step.
    pub(super) chunk: usize,
    /// Other sequences in the batch.
    pub(super) mates: u32,
}

/// Ranks that have loaded their weights.
pub(super) struct Group {
    pub(super) ranks: Vec<CpuBackend>,
    epoch: u64,
}

impl Group {
    pub(super) fn load(folder: &Path, tensor: u32, threads: usize, level: Level) -> Self {
        let rank = |rank| {
            let kernel = Kernel::new(level).unwrap();
            let options = CpuOptions {
                tensor,
                rank,
                memory: None,
                threads,
                kernel,
            };
            let mut backend = CpuBackend::new(folder, options).unwrap();
            backend.load(&mut |_| {}).unwrap();
            backend
        };
        Self {
            ranks: (0..tensor).map(rank).collect(),
            epoch: 0,
        }
    }

    /// The logits of every position of `main`: `[position][vocabulary]`.
    pub(super) fn logits(&mut self, main: &[u32], way: Way) -> Vec<Vec<f32>> {
        self.epoch += 1;
        let era = Era {
            generation: 1,
            epoch: self.epoch,
        };
        let vocab = self.ranks[0].shape.vocab_size as u32;
        let plans = &plans(main, way, era, vocab);
        let spec = &spec(era, main.len());
        let ends = local_group(self.ranks.len(), era, Duration::from_secs(120));
        let shards: Vec<Vec<Vec<f32>>> = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (rank, end) in self.ranks.iter_mut().zip(ends) {
                threads.push(scope.spawn(move || {
                    rank.form(spec, Box::new(end)).unwrap();
                    plans
                        .iter()
                        .flat_map(|plan| main_row(rank, plan))
                        .collect::<Vec<_>>()
                }));
            }
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        (0..main.len())
            .map(|i| shards.iter().flat_map(|shard| shard[i].iter().copied()).collect())
            .collect()
    }
}

pub(super) fn spec(era: Era, tokens: usize) -> FormSpec {
    FormSpec {
        era,
        max_sequences: 6,
        max_batched_tokens: 600,
        max_context: tokens.max(MATES_REACH) as u32,
        block_size: BLOCK,
        kv_bytes: 1 << 30,
    }
}

/// Compute one step; the rank's logits of all positions of the first row, if that is slot 0.
fn main_row(rank: &mut CpuBackend, plan: &Plan) -> Vec<Vec<f32>> {
    let ticket = rank.submit(plan).unwrap();
    rank.bind(ticket, &Late::default()).unwrap();
    let output = rank.poll(ticket).unwrap().unwrap();
    let sampled: usize = plan.rows.iter().map(|row| usize::from(row.drafts) + 1).sum();
    assert_eq!(output.candidates.len(), sampled);
    let width = rank.shape.vocab.len();
    let all = rank.era.as_ref().unwrap().all_logits(ticket);
    let main = plan
        .rows
        .first()
        .filter(|row| row.slot == 0)
        .map_or(0, |row| row.tokens.len());
    let rows = all.chunks_exact(width).take(main).map(<[f32]>::to_vec).collect();
    rank.release(ticket);
    rows
}

/// Steps that compute `main` in slot 0 by chunks, beside mates that come and go in the others.
fn plans(main: &[u32], way: Way, era: Era, vocab: u32) -> Vec<Plan> {
    let mut tables = BlockTables::new(6, 4096);
    let mut next_block = 0;
    let mut computed = [0u32; 6];
    let mut plans = Vec::new();
    for (step, chunk) in (1u64..).zip(main.chunks(way.chunk)) {
        let mut rows = vec![row(0, computed[0], chunk.to_vec())];
        let mut blocks = BlockDeltas::default();
        for slot in 1..=way.mates {
            // Lengths differ by slot; a mate that reached its end is replaced by a new one.
            let tokens = if computed[slot as usize] == 0 { 7 * slot } else { 1 };
            if computed[slot as usize] + tokens > 20 * slot + 10 {
                blocks.frees.push(slot);
                computed[slot as usize] = 0;
            }
            let start = computed[slot as usize];
            let tokens = (0..tokens)
                .map(|i| (slot * 97 + (start + i) * 13) % vocab)
                .collect();
            rows.push(row(slot, start, tokens));
        }
        for row in &rows {
            let end = row.start + row.tokens.len() as u32;
            let has = if blocks.frees.contains(&row.slot) {
                0
            } else {
                tables.table(row.slot).len() as u32
            };
            let new: Vec<u32> = (has..end.div_ceil(BLOCK))
                .map(|_| take(&mut next_block))
                .collect();
            if !new.is_empty() {
                blocks.appends.push((row.slot, new));
            }
            computed[row.slot as usize] = end;
        }
        tables.apply(&blocks).unwrap();
        plans.push(Plan {
            era,
            step,
            micro_batch: 0,
            rows,
            blocks,
            state_hash: tables.hash(),
        });
    }
    plans
}

/// Blocks in an order that is not ascending.
fn take(next: &mut u32) -> u32 {
    let block = *next ^ 5;
    *next += 1;
    block
}

/// All positions are sampled, as if all but the first were drafts.
pub(super) fn row(slot: u32, start: u32, tokens: Vec<u32>) -> PlanRow {
    PlanRow {
        slot,
        start,
        drafts: tokens.len() as u16 - 1,
        tokens: tokens.into_iter().map(TokenRef::Known).collect(),
        sample: Some(SampleKey {
            seed: 1,
            temperature: 0.0,
            logprobs: false,
        }),
    }
}
