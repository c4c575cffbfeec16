//! Drive a group of ranks in threads through a fixed list of plans.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use llamero_checkpoint::{Members, Runs, Topology};
use llamero_engine::mesh::local::local_mesh;
use llamero_engine::step::{BlockDeltas, SampleKey};
use llamero_engine::{
    AdapterSource, Backend, BackendError, BlockTables, Era, FormLimits, FormSpec, KvDtype, Late, Plan,
    PlanRow, RowOutput, StepOutput, Ticket, TokenRef, Unwatched, Waited,
};

use crate::collective::Waits;
use crate::{CpuBackend, CpuOptions, Kernel, Level};

/// Positions that the longest other sequence reaches, at most.
const PEERS_REACH: usize = 128;

/// How the same tokens are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    /// Tokens of the main sequence per step.
    pub(super) chunk: usize,
    /// Other sequences in the batch.
    pub(super) peers: u32,
    /// Tokens of a KV block.
    pub(super) block: u32,
    /// Steps submitted before the first is waited for; with more than one, tokens come late.
    pub(super) in_flight: usize,
    /// Whether ranks exchange through shared memory.
    pub(super) shared: bool,
    /// Type of the KV cache.
    pub(super) kv: KvDtype,
    /// Who has which adapter.
    pub(super) adapters: Adapters,
}

/// Who has which adapter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Adapters {
    /// How many are loaded, from number 1 on.
    pub(super) loaded: u32,
    /// That of the main sequence.
    pub(super) main: Option<u32>,
}

impl Adapters {
    /// Of the sequence in a slot: the others have one after the other, and none.
    fn of(self, slot: u32) -> Option<u32> {
        match slot {
            0 => self.main,
            slot => Some(slot % (self.loaded + 1)).filter(|number| *number > 0),
        }
    }
}

/// The largest rank of an adapter, where there are any.
const ADAPTER_RANK: u32 = 8;

impl Way {
    /// One step at a time, in blocks of the default size.
    pub(super) fn new(chunk: usize, peers: u32) -> Self {
        Self {
            chunk,
            peers,
            block: 16,
            in_flight: 1,
            shared: false,
            kv: KvDtype::Bf16,
            adapters: Adapters::default(),
        }
    }
}

/// Ranks that have loaded their weights.
pub(super) struct Group {
    /// In rank order; some may be lost.
    pub(super) ranks: Vec<CpuBackend>,
    members: Members,
    epoch: u64,
}

pub(super) fn options(tensor: u32, rank: u32, threads: usize, level: Level) -> CpuOptions {
    CpuOptions {
        members: Topology::tensor(tensor).into(),
        rank,
        former: None,
        memory: None,
        pod: None,
        threads,
        kernel: Kernel::new(level).unwrap(),
        // Ranks and threads are more than processors.
        waits: Waits::new(Duration::from_secs(120), true),
        shared_memory: false,
    }
}

impl Group {
    pub(super) fn load(folder: &Path, members: impl Into<Members>, threads: usize, level: Level) -> Self {
        let members = members.into();
        let rank = |rank: &u32| {
            let options = CpuOptions {
                members: members.clone(),
                ..options(1, *rank, threads, level)
            };
            let mut backend = CpuBackend::new(folder, options).unwrap();
            backend.load(&Unwatched).unwrap();
            backend
        };
        Self {
            ranks: members.ranks().iter().map(rank).collect(),
            members,
            epoch: 0,
        }
    }

    /// Give all ranks these adapters, numbered from 1 on.
    pub(super) fn adapt(&mut self, folders: &[&Path]) {
        for (number, folder) in (1..).zip(folders) {
            let source = AdapterSource {
                number,
                name: format!("a{number}"),
                path: String::new(),
                identity: None,
            };
            for rank in &self.ranks {
                let store = rank.adapters();
                let reading = store.begin(&source);
                store.load(reading, &source, folder, ADAPTER_RANK).unwrap();
            }
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
        let limits = FormLimits {
            block_size: way.block,
            steps_in_flight: way.in_flight as u32,
            kv_dtype: way.kv,
            max_adapters: way.adapters.loaded,
            max_adapter_rank: if way.adapters.loaded > 0 { ADAPTER_RANK } else { 0 },
            ..limits(main.len())
        };
        let spec = &FormSpec {
            limits,
            ..spec(era, main.len())
        };
        let heads = self.ranks.iter().filter(|rank| rank.shape.has_head);
        let vocabularies: Vec<Runs> = heads.map(|rank| rank.shape.vocab.clone()).collect();
        let earlier = self.ranks.len() - vocabularies.len();
        let shards = self.formed(spec, way.shared, |rank| run(rank, plans, way.in_flight));
        let whole = |i: usize| {
            let mut row = vec![f32::NAN; vocab as usize];
            for (vocabulary, shard) in vocabularies.iter().zip(&shards[earlier..]) {
                assert_eq!(vocabulary.len() as usize, shard[i].len());
                for (token, logit) in vocabulary.iter().zip(&shard[i]) {
                    row[token as usize] = *logit;
                }
            }
            row
        };
        (0..main.len()).map(whole).collect()
    }

    /// What the ranks answer to one step, in rank order.
    pub(super) fn answers(
        &mut self,
        rows: &[PlanRow],
        blocks: &BlockDeltas,
        shared: bool,
    ) -> Vec<StepOutput> {
        self.epoch += 1;
        let era = Era {
            generation: 1,
            epoch: self.epoch,
        };
        let spec = spec(era, PEERS_REACH);
        let mut tables = BlockTables::new(spec.limits.max_sequences, 4096);
        tables.apply(blocks).unwrap();
        let plan = Plan {
            era,
            step: 1,
            rows: rows.to_vec(),
            blocks: blocks.clone(),
            late_tokens: 0,
            late_sampling: false,
            state_hash: tables.hash(),
        };
        self.formed(&spec, shared, |rank| {
            let ticket = rank.submit(&plan).unwrap();
            let output = done(rank, ticket).unwrap();
            rank.release(ticket);
            output
        })
    }

    /// Form all ranks and do the same with each; what comes of it, in rank order.
    fn formed<T: Send>(
        &mut self,
        spec: &FormSpec,
        shared: bool,
        run: impl Fn(&mut CpuBackend) -> T + Sync,
    ) -> Vec<T> {
        let (meshes, run) = (local_mesh(&self.members, spec.era).unwrap(), &run);
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (rank, mesh) in self.ranks.iter_mut().zip(meshes) {
                rank.shared_memory = shared;
                threads.push(scope.spawn(move || {
                    rank.form(spec, Box::new(mesh), &mut |_| {}).unwrap();
                    run(rank)
                }));
            }
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }
}

pub(super) fn spec(era: Era, tokens: usize) -> FormSpec {
    FormSpec {
        era,
        limits: limits(tokens),
        kv_bytes: 1 << 30,
    }
}

pub(super) fn limits(tokens: usize) -> FormLimits {
    FormLimits {
        max_sequences: 6,
        max_batched_tokens: 600,
        max_context: tokens.max(PEERS_REACH) as u32,
        block_size: 16,
        steps_in_flight: 3,
        kv_dtype: KvDtype::Bf16,
        max_adapters: 0,
        max_adapter_rank: 0,
    }
}

/// Wait for a step that waits for nothing else.
pub(super) fn done(rank: &mut CpuBackend, ticket: Ticket) -> Result<StepOutput, BackendError> {
    match rank.wait(ticket, Instant::now())? {
        Waited::Done(output) => Ok(output),
        other => panic!("{other:?}"),
    }
}

/// Compute all plans; the rank's logits of all positions of slot 0.
fn run(rank: &mut CpuBackend, plans: &[(Plan, Vec<u32>)], in_flight: usize) -> Vec<Vec<f32>> {
    let (mut rows, mut flying) = (Vec::new(), VecDeque::new());
    for step in plans {
        flying.push_back((rank.submit(&step.0).unwrap(), step));
        if flying.len() == in_flight {
            rows.extend(
                flying
                    .pop_front()
                    .map(|(ticket, step)| finish(rank, ticket, step)),
            );
        }
    }
    rows.extend(
        flying
            .into_iter()
            .map(|(ticket, step)| finish(rank, ticket, step)),
    );
    rows.into_iter().flatten().collect()
}

fn finish(rank: &mut CpuBackend, ticket: Ticket, (plan, late): &(Plan, Vec<u32>)) -> Vec<Vec<f32>> {
    if !late.is_empty() {
        rank.late(ticket, &Late::Tokens(late.clone())).unwrap();
    }
    let output = done(rank, ticket).unwrap();
    if !rank.shape.has_head {
        assert_eq!(output, StepOutput::default());
        assert!(rank.fetch(ticket, 0, 0).is_err());
        rank.release(ticket);
        return Vec::new();
    }
    let answered = |row: &PlanRow| match row.output {
        RowOutput::Sample { last, .. } => usize::from(last),
        _ => 0,
    };
    let sampled: usize = plan.rows.iter().map(answered).sum();
    assert_eq!(output.candidates.len(), sampled);
    let main = plan.rows.first().filter(|row| row.slot == 0).map_or(0, answered);
    let logits = (0..main).map(|offset| {
        let shard = rank.fetch(ticket, 0, offset as u32).unwrap();
        // What was sampled from are the same bits.
        let best = &output.candidates[offset].top;
        for (token, logit) in best {
            let at = shard.tokens.position(*token).unwrap() as usize;
            assert_eq!(shard.logits[at].to_bits(), logit.to_bits());
        }
        assert!(!best.is_empty());
        shard.logits
    });
    let logits = logits.collect();
    rank.release(ticket);
    logits
}

/// Steps that compute `main` in slot 0 by chunks, beside peers that come and go in the others; and their late tokens.
fn plans(main: &[u32], way: Way, era: Era, vocab: u32) -> Vec<(Plan, Vec<u32>)> {
    let mut tables = BlockTables::new(6, 4096);
    let mut next_block = 0;
    let mut computed = [0u32; 6];
    let mut plans = Vec::new();
    for (step, chunk) in (1u64..).zip(main.chunks(way.chunk)) {
        let mut rows = vec![row(0, computed[0], chunk.to_vec())];
        let mut blocks = BlockDeltas::default();
        for slot in 1..=way.peers {
            // Lengths differ by slot; a peer that reached its end is replaced by a new one.
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
        for row in &mut rows {
            row.adapter = way.adapters.of(row.slot);
            let end = row.start + row.tokens.len() as u32;
            let has = if blocks.frees.contains(&row.slot) {
                0
            } else {
                tables.table(row.slot).len() as u32
            };
            let new: Vec<u32> = (has..end.div_ceil(way.block))
                .map(|_| take(&mut next_block))
                .collect();
            if !new.is_empty() {
                blocks.appends.push((row.slot, new));
            }
            computed[row.slot as usize] = end;
        }
        tables.apply(&blocks).unwrap();
        let mut late = Vec::new();
        if way.in_flight > 1 {
            late.push(chunk[0]);
            rows[0].tokens[0] = TokenRef::Late(0);
        }
        let plan = Plan {
            era,
            step,
            rows,
            blocks,
            late_tokens: late.len() as u32,
            late_sampling: false,
            state_hash: tables.hash(),
        };
        plans.push((plan, late));
    }
    plans
}

/// Blocks in an order that is not ascending.
fn take(next: &mut u32) -> u32 {
    let block = *next ^ 5;
    *next += 1;
    block
}

pub(super) const GREEDY: SampleKey = SampleKey {
    seed: 1,
    temperature: 0.0,
    top: 4,
    mass: false,
    logprobs: false,
};

/// All positions are sampled, as if all but the first were drafts.
pub(super) fn row(slot: u32, start: u32, tokens: Vec<u32>) -> PlanRow {
    PlanRow {
        slot,
        start,
        output: RowOutput::Sample {
            last: tokens.len() as u16,
            key: GREEDY,
        },
        tokens: tokens.into_iter().map(TokenRef::Known).collect(),
        adapter: None,
    }
}
