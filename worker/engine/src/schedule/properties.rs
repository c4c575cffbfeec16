//! Invariants of the scheduler under arbitrary traffic, checked against a mirror that knows only the plans.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::block_tables::BlockTables;
use crate::step::{SampleKey, TokenRef};

const KEY: SampleKey = SampleKey {
    seed: 0,
    temperature: 0.0,
    logprobs: false,
};

#[derive(Debug, Clone)]
enum Act {
    Arrive { prompt: u32, output: u32 },
    Step,
    Cancel(usize),
    Era,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (1_u32..30, 1_u32..12).prop_map(|(prompt, output)| Act::Arrive { prompt, output }),
        8 => Just(Act::Step),
        1 => any::<usize>().prop_map(Act::Cancel),
        1 => Just(Act::Era),
    ]
}

/// The token every "model" here says next: a function of the history alone, as greedy decoding is.
fn next_token(history: &[u32]) -> u32 {
    history
        .iter()
        .fold(7_u32, |hash, token| hash.wrapping_mul(31).wrapping_add(*token))
        % 1000
}

/// A group that executes plans literally: KV is the token written at each physical position.
struct Mirror {
    limits: Limits,
    tables: BlockTables,
    kv: BTreeMap<(u32, u32), u32>,
    in_use: BTreeSet<u32>,
}

impl Mirror {
    fn new(limits: Limits) -> Self {
        let tables = BlockTables::new(limits.max_sequences, limits.blocks);
        Self {
            limits,
            tables,
            kv: BTreeMap::new(),
            in_use: BTreeSet::new(),
        }
    }

    /// Execute a batch; returns the sampled token of each row.
    fn run(&mut self, batch: &Batch) -> Vec<Option<u32>> {
        for slot in &batch.blocks.frees {
            for block in self.tables.table(*slot) {
                self.in_use.remove(block);
            }
        }
        for (_, blocks) in &batch.blocks.appends {
            for block in blocks {
                assert!(self.in_use.insert(*block), "block {block} has two owners");
            }
        }
        self.tables.apply(&batch.blocks).unwrap();
        assert_eq!(self.tables.hash(), batch.state_hash);
        let tokens: usize = batch.rows.iter().map(|row| row.tokens.len()).sum();
        assert!(tokens <= self.limits.max_batched_tokens as usize);
        assert!(batch.rows.len() <= self.limits.max_sequences as usize);
        let slots: BTreeSet<u32> = batch.rows.iter().map(|row| row.slot).collect();
        assert_eq!(slots.len(), batch.rows.len(), "a slot has two rows");
        batch
            .rows
            .iter()
            .map(|row| {
                for (position, token) in (row.start..).zip(&row.tokens) {
                    let TokenRef::Known(token) = token else {
                        panic!("all tokens are known here")
                    };
                    self.kv.insert(self.place(row.slot, position), *token);
                }
                let end = row.start + u32::try_from(row.tokens.len()).unwrap();
                row.sample.map(|_| {
                    let history: Vec<u32> = (0..end).map(|at| self.kv[&self.place(row.slot, at)]).collect();
                    next_token(&history)
                })
            })
            .collect()
    }

    fn place(&self, slot: u32, position: u32) -> (u32, u32) {
        let block = self.tables.table(slot)[(position / self.limits.block_size) as usize];
        (block, position % self.limits.block_size)
    }
}

struct World {
    scheduler: Scheduler,
    mirror: Mirror,
    alive: BTreeMap<SequenceId, (Vec<u32>, u32)>,
    first_token: Vec<SequenceId>,
    next_id: u64,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self {
            scheduler: Scheduler::new(limits),
            mirror: Mirror::new(limits),
            alive: BTreeMap::new(),
            first_token: Vec::new(),
            next_id: 0,
        }
    }

    fn arrive(&mut self, prompt: u32, output: u32) {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let tokens: Vec<u32> = (0..prompt)
            .map(|i| i * 3 + u32::try_from(id.0).unwrap())
            .collect();
        let longest = prompt + output;
        let fits = longest <= self.mirror.limits.longest();
        let taken = self
            .scheduler
            .add(Sequence::new(id, tokens.clone(), longest, KEY));
        assert_eq!(taken.is_ok(), fits, "exactly what can never fit is refused");
        if fits {
            self.alive.insert(id, (tokens, longest));
        }
    }

    /// One step; false when there was nothing to do.
    fn step(&mut self) -> bool {
        let batch = self.scheduler.batch();
        let sampled = self.mirror.run(&batch);
        let (used, total) = self.scheduler.kv_blocks();
        assert_eq!(used as usize, self.mirror.in_use.len(), "blocks are conserved");
        assert_eq!(total, self.mirror.limits.blocks);
        for (id, token) in batch.sequences.iter().zip(sampled) {
            let Some(token) = token else { continue };
            let (history, longest) = self.alive.get_mut(id).expect("only live sequences run");
            assert_eq!(token, next_token(history), "the KV is the history");
            if !self.first_token.contains(id) {
                self.first_token.push(*id);
            }
            history.push(token);
            let length = self.scheduler.push(*id, token).unwrap();
            if length == *longest {
                let done = self.scheduler.remove(*id).unwrap();
                assert_eq!(done.tokens, *history, "no token lost or repeated");
                self.alive.remove(id);
            }
        }
        !batch.rows.is_empty()
    }

    fn cancel(&mut self, pick: usize) {
        if self.alive.is_empty() {
            return;
        }
        let id = *self.alive.keys().nth(pick % self.alive.len()).unwrap();
        assert!(self.scheduler.remove(id).is_some());
        assert!(self.scheduler.remove(id).is_none());
        self.alive.remove(&id);
    }

    fn era(&mut self) {
        let before: Vec<(SequenceId, Vec<u32>)> = self
            .scheduler
            .sequences()
            .map(|sequence| (sequence.id, sequence.tokens.clone()))
            .collect();
        assert!(self.scheduler.requeue_all(self.mirror.limits).is_empty());
        let after: Vec<(SequenceId, Vec<u32>)> = self
            .scheduler
            .sequences()
            .map(|sequence| (sequence.id, sequence.tokens.clone()))
            .collect();
        assert_eq!(before, after);
        assert_eq!(self.scheduler.running(), 0);
        self.mirror = Mirror::new(self.mirror.limits);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn holds_its_invariants(
        acts in proptest::collection::vec(act(), 1..120),
        max_sequences in 1_u32..6,
        max_batched_tokens in 1_u32..20,
        block_size in 1_u32..6,
        blocks in 1_u32..14,
    ) {
        let mut world = World::new(Limits { max_sequences, max_batched_tokens, max_context: 40, block_size, blocks });
        for act in acts {
            match act {
                Act::Arrive { prompt, output } => world.arrive(prompt, output),
                Act::Step => { world.step(); }
                Act::Cancel(pick) => world.cancel(pick),
                Act::Era => world.era(),
            }
        }
        // Everything finishes, and a step without a row means that nothing is left.
        let mut steps = 0;
        while !world.alive.is_empty() {
            assert!(world.step(), "stuck with {:?}", world.alive.keys());
            steps += 1;
            assert!(steps < 100_000, "does not finish");
        }
        world.step();
        prop_assert_eq!(world.scheduler.kv_blocks().0, 0);
        prop_assert!(!world.scheduler.has_work());
    }

    #[test]
    fn first_come_first_served(prompts in proptest::collection::vec((1_u32..30, 1_u32..12), 1..20), blocks in 9_u32..30) {
        let limits = Limits { max_sequences: 4, max_batched_tokens: 8, max_context: 64, block_size: 5, blocks };
        let mut world = World::new(limits);
        for (prompt, output) in prompts {
            world.arrive(prompt, output);
        }
        while !world.alive.is_empty() {
            world.step();
        }
        prop_assert!(world.first_token.is_sorted(), "first tokens came as {:?}", world.first_token);
    }
}

#[test]
fn decode_goes_before_prefill() {
    let mut scheduler = Scheduler::new(Limits {
        max_sequences: 4,
        max_batched_tokens: 4,
        max_context: 64,
        block_size: 4,
        blocks: 16,
    });
    scheduler
        .add(Sequence::new(SequenceId(1), vec![1, 2], 10, KEY))
        .unwrap();
    scheduler
        .add(Sequence::new(SequenceId(2), vec![5; 9], 20, KEY))
        .unwrap();
    let spans = |batch: &Batch| -> Vec<(u64, u32, usize, bool)> {
        let rows = batch.rows.iter().zip(&batch.sequences);
        rows.map(|(row, id)| (id.0, row.start, row.tokens.len(), row.sample.is_some()))
            .collect()
    };
    assert_eq!(spans(&scheduler.batch()), [(1, 0, 2, true), (2, 0, 2, false)]);
    scheduler.push(SequenceId(1), 3);
    assert_eq!(spans(&scheduler.batch()), [(1, 2, 1, true), (2, 2, 3, false)]);
    scheduler.push(SequenceId(1), 4);
    assert_eq!(spans(&scheduler.batch()), [(1, 3, 1, true), (2, 5, 3, false)]);
    scheduler.push(SequenceId(1), 5);
    assert_eq!(spans(&scheduler.batch()), [(1, 4, 1, true), (2, 8, 1, true)]);
}

#[test]
fn the_youngest_gives_way() {
    let mut scheduler = Scheduler::new(Limits {
        max_sequences: 2,
        max_batched_tokens: 16,
        max_context: 64,
        block_size: 2,
        blocks: 4,
    });
    scheduler
        .add(Sequence::new(SequenceId(1), vec![1, 2, 3], 8, KEY))
        .unwrap();
    scheduler
        .add(Sequence::new(SequenceId(2), vec![1, 2, 3], 8, KEY))
        .unwrap();
    assert_eq!(scheduler.batch().rows.len(), 2);
    for id in [1, 2] {
        scheduler.push(SequenceId(id), 9);
    }
    assert_eq!(scheduler.batch().rows.len(), 2);
    for id in [1, 2] {
        scheduler.push(SequenceId(id), 9);
    }
    let batch = scheduler.batch();
    assert_eq!(batch.preempted, [SequenceId(2)]);
    assert_eq!(batch.sequences, [SequenceId(1)]);
    assert_eq!((scheduler.running(), scheduler.waiting()), (1, 1));
}

#[test]
fn what_could_never_fit_is_refused_with_a_sentence() {
    let limits = Limits {
        max_sequences: 2,
        max_batched_tokens: 16,
        max_context: 64,
        block_size: 2,
        blocks: 4,
    };
    let mut scheduler = Scheduler::new(limits);
    let refusal = scheduler
        .add(Sequence::new(SequenceId(1), vec![1; 5], 10, KEY))
        .unwrap_err();
    assert_eq!(
        refusal,
        Refusal::TooLong {
            wanted: 10,
            longest: 9
        }
    );
    assert!(
        refusal
            .to_string()
            .contains("shorten the prompt or lower max_tokens")
    );
    assert_eq!(
        scheduler.add(Sequence::new(SequenceId(2), vec![], 10, KEY)),
        Err(Refusal::Empty)
    );
    assert_eq!(
        scheduler.add(Sequence::new(SequenceId(3), vec![1; 5], 5, KEY)),
        Err(Refusal::NothingToGenerate)
    );
}

#[test]
fn a_smaller_group_gives_back_what_it_cannot_hold() {
    let limits = Limits {
        max_sequences: 2,
        max_batched_tokens: 16,
        max_context: 64,
        block_size: 2,
        blocks: 8,
    };
    let mut scheduler = Scheduler::new(limits);
    scheduler
        .add(Sequence::new(SequenceId(1), vec![1; 5], 17, KEY))
        .unwrap();
    scheduler
        .add(Sequence::new(SequenceId(2), vec![1; 5], 8, KEY))
        .unwrap();
    let refused = scheduler.requeue_all(Limits { blocks: 4, ..limits });
    assert_eq!(
        refused
            .iter()
            .map(|(sequence, _)| sequence.id)
            .collect::<Vec<_>>(),
        [SequenceId(1)]
    );
    assert_eq!(scheduler.waiting(), 1);
}
