//! Invariants of the scheduler under arbitrary traffic, checked against a mirror that knows only the plans.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::block_tables::BlockTables;
use crate::step::{PlanRow, RowOutput, SampleKey, TokenRef};

mod shared;

use shared::FirstComputers;

const KEY: SampleKey = SampleKey {
    seed: 0,
    temperature: 0.0,
    top: 1,
    mass: false,
    logprobs: false,
};

#[derive(Debug, Clone)]
enum Act {
    Arrive {
        /// Prompts of one family begin alike.
        family: u32,
        prompt: u32,
        output: u32,
        /// Whether it shares blocks at all.
        shares: bool,
        priority: i32,
        /// Whether its prompt is scored.
        scores: bool,
    },
    /// Make a batch and send it.
    Plan,
    /// The oldest batch in flight is done.
    Done,
    Cancel(usize),
    Era {
        /// All ranks have their blocks as they were.
        kept: bool,
        /// The group has so many from here on; none: as before.
        blocks: Option<u32>,
    },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0_u32..3, 1_u32..30, 1_u32..12, prop::bool::weighted(0.8), -1_i32..2, prop::bool::weighted(0.3))
            .prop_map(|(family, prompt, output, shares, priority, scores)| Act::Arrive { family, prompt, output, shares, priority, scores }),
        8 => Just(Act::Plan),
        8 => Just(Act::Done),
        1 => any::<usize>().prop_map(Act::Cancel),
        1 => (any::<bool>(), prop::option::weighted(0.3, 1_u32..14))
            .prop_map(|(kept, blocks)| Act::Era { kept, blocks }),
    ]
}

/// The token every "model" here says next: a function of the history alone, as greedy decoding is. Those of one family repeat what
/// they said, with mistakes; the others never do.
fn next_token(history: &[u32]) -> u32 {
    let hash = history
        .iter()
        .fold(7_u32, |hash, token| hash.wrapping_mul(31).wrapping_add(*token));
    let repeats = history.first() == Some(&REPEATING);
    if repeats && hash % 5 > 0 {
        return history.last().map_or(0, |last| (last + 1) % 4);
    }
    hash % 1000
}

/// The family whose answers repeat what they said.
const REPEATING: u32 = 1;

/// A group that executes plans literally: KV is the token written at each physical position.
struct Mirror {
    limits: Limits,
    tables: BlockTables,
    kv: BTreeMap<(u32, u32), u32>,
    /// How many slots hold each block.
    users: BTreeMap<u32, u32>,
}

impl Mirror {
    fn new(limits: Limits) -> Self {
        let tables = BlockTables::new(limits.max_sequences, limits.blocks);
        Self {
            limits,
            tables,
            kv: BTreeMap::new(),
            users: BTreeMap::new(),
        }
    }

    /// Take a batch: its block changes hold from here on, for batches in flight too.
    fn submit(&mut self, batch: &Batch) {
        for slot in &batch.blocks.frees {
            for block in self.tables.table(*slot) {
                let users = self.users.get_mut(block).unwrap();
                *users -= 1;
                if *users == 0 {
                    self.users.remove(block);
                }
            }
        }
        for block in batch.blocks.appends.iter().flat_map(|(_, blocks)| blocks) {
            *self.users.entry(*block).or_default() += 1;
        }
        self.tables.apply(&batch.blocks).unwrap();
        // What a row writes, nobody else may hold, now or in a batch that is in flight.
        for row in &batch.rows {
            let end = row.start + u32::try_from(row.tokens.len()).unwrap();
            for position in row.start..end {
                let (block, _) = self.place(row.slot, position);
                assert_eq!(self.users[&block], 1, "block {block} is written and shared");
            }
        }
        assert_eq!(self.tables.hash(), batch.state_hash);
        assert!(batch.tokens() <= self.limits.max_batched_tokens);
        assert!(batch.rows.len() <= self.limits.max_sequences as usize);
        let slots: BTreeSet<u32> = batch.rows.iter().map(|row| row.slot).collect();
        assert_eq!(slots.len(), batch.rows.len(), "a slot has two rows");
    }

    /// Execute a batch with the values of its late tokens; returns the sampled tokens of each row, with those behind right drafts.
    fn run(&mut self, batch: &Batch, late: &[u32]) -> Vec<Vec<u32>> {
        for (from, to) in &batch.blocks.copies {
            for offset in 0..self.limits.block_size {
                if let Some(token) = self.kv.get(&(*from, offset)).copied() {
                    self.kv.insert((*to, offset), token);
                }
            }
        }
        batch
            .rows
            .iter()
            .map(|row| {
                for (position, token) in (row.start..).zip(&row.tokens) {
                    let token = match token {
                        TokenRef::Known(token) => *token,
                        TokenRef::Late(index) => late[*index as usize],
                    };
                    self.kv.insert(self.place(row.slot, position), token);
                }
                let end = row.start + u32::try_from(row.tokens.len()).unwrap();
                let RowOutput::Sample { last, .. } = row.output else {
                    return Vec::new();
                };
                let history: Vec<u32> = (0..end).map(|at| self.kv[&self.place(row.slot, at)]).collect();
                let mut sampled = Vec::new();
                for drafts in (0..usize::from(last)).rev() {
                    let (before, drafts) = history.split_at(history.len() - drafts);
                    sampled.push(next_token(before));
                    if drafts.first() != sampled.last() {
                        break;
                    }
                }
                sampled
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
    in_flight: VecDeque<Batch>,
    depth: usize,
    /// What each name stands for: the tokens of its block.
    named: HashMap<PrefixHash, Vec<u32>>,
    /// Positions of prompts that were scored so far, of those that want it.
    scored: BTreeMap<SequenceId, (u32, u32)>,
    /// Drafts so far, and those that were right.
    drafted: u32,
    accepted: u32,
    firsts: FirstComputers,
}

impl World {
    fn new(limits: Limits, depth: usize) -> Self {
        Self::staged(limits, depth, 1)
    }

    fn staged(limits: Limits, depth: usize, stages: u32) -> Self {
        Self {
            in_flight: VecDeque::new(),
            depth,
            scheduler: Scheduler::staged(limits, stages),
            mirror: Mirror::new(limits),
            alive: BTreeMap::new(),
            first_token: Vec::new(),
            next_id: 0,
            named: HashMap::new(),
            scored: BTreeMap::new(),
            drafted: 0,
            accepted: 0,
            firsts: FirstComputers::default(),
        }
    }

    /// The same, and every guess is drafted.
    fn drafting(mut self, max_drafts: u32) -> Self {
        let speculation = (max_drafts > 0).then_some(Speculation {
            max_drafts,
            drafted: Drafted::All,
        });
        self.scheduler = self.scheduler.with_speculation(speculation);
        self
    }

    /// The same, and sequences wait for a batch when that spares them so many tokens.
    fn waiting_for(mut self, tokens: u32) -> Self {
        self.scheduler = self.scheduler.with_worth_waiting(tokens);
        self.firsts.are_followed = tokens <= self.mirror.limits.block_size;
        self
    }

    fn arrive(
        &mut self,
        (family, prompt, output): (u32, u32, u32),
        shares: bool,
        priority: i32,
        scores: bool,
    ) {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let tokens: Vec<u32> = (0..prompt).map(|i| i * 3 + family).collect();
        learn(&mut self.named, &tokens, self.mirror.limits.block_size);
        let longest = prompt + output;
        let fits = longest <= self.mirror.limits.longest();
        let taken = self.scheduler.add(
            Sequence::new(id, tokens.clone(), longest, KEY)
                .with_root(shares.then(root))
                .with_priority(priority)
                .with_scores(scores.then_some(1), prompt),
        );
        assert_eq!(taken.is_ok(), fits, "exactly what can never fit is refused");
        if fits {
            if scores {
                self.scored.insert(id, (0, prompt - 1));
            }
            if shares {
                self.firsts.may_share(id, !scores);
            }
            self.alive.insert(id, (tokens, longest));
        }
    }

    /// Send one batch, if one more may be in flight; false when there is none.
    fn plan(&mut self) -> bool {
        let planned = self.in_flight.len();
        // As the planner does it.
        let ahead = planned == 0 || !self.scheduler.awaits_tokens() || planned < self.scheduler.stages();
        if planned >= self.depth || !ahead {
            return false;
        }
        let Some(batch) = self.scheduler.batch(u32::MAX) else {
            // Some may have been preempted, which no batch tells.
            self.firsts.preempted();
            return false;
        };
        assert!(!batch.rows.is_empty());
        self.mirror.submit(&batch);
        self.firsts
            .note(&batch, &self.alive, self.mirror.limits.block_size);
        let mut all = self.scheduler.sequences();
        assert!(
            all.all(|sequence| sequence.overtaken <= MOST_OVERTAKEN),
            "somebody starves"
        );
        for (row, id) in batch.rows.iter().zip(&batch.sequences) {
            let (history, longest) = &self.alive[id];
            let end = row.start + u32::try_from(row.tokens.len()).unwrap();
            assert!(end < *longest, "what surely ended by its length is not planned");
            match row.output {
                RowOutput::Sample { last, .. } if last > 1 => {
                    self.drafted += u32::from(last) - 1;
                    assert_eq!(end as usize, history.len() + usize::from(last) - 1);
                    let others = self.in_flight.iter().flat_map(|batch| &batch.sequences);
                    assert_eq!(others.filter(|other| *other == id).count(), 0, "it has one row");
                }
                _ => assert!(end as usize <= history.len() + self.in_flight.len()),
            }
        }
        self.in_flight.push_back(batch);
        true
    }

    fn done(&mut self) -> bool {
        let Some(batch) = self.in_flight.pop_front() else {
            return false;
        };
        // Whoever has ended gets a row that nobody looks at.
        let value = |late: &LateToken| self.scheduler.token(late.sequence, late.position);
        let late: Vec<u32> = batch.late.iter().map(|late| value(late).unwrap_or(0)).collect();
        for late in &batch.late {
            if let Some((history, _)) = self.alive.get(&late.sequence) {
                assert!(
                    (late.position as usize) < history.len(),
                    "sampled by an earlier batch"
                );
            }
        }
        let sampled = self.mirror.run(&batch, &late);
        for ((id, sampled), row) in batch.sequences.iter().zip(sampled).zip(&batch.rows) {
            self.score(*id, row);
            let length = self.scheduler.row_done(*id, &sampled);
            let Some((history, longest)) = self.alive.get_mut(id) else {
                assert_eq!(length, None);
                continue;
            };
            if sampled.is_empty() {
                continue;
            }
            if let Some((scored, all)) = self.scored.get(id) {
                assert_eq!(scored, all, "a prompt is scored before its answer begins");
            }
            if !self.first_token.contains(id) {
                self.first_token.push(*id);
            }
            self.accepted += sampled.len() as u32 - 1;
            for token in sampled {
                assert_eq!(token, next_token(history), "the KV is the history");
                history.push(token);
            }
            learn(&mut self.named, history, self.mirror.limits.block_size);
            assert_eq!(length.unwrap() as usize, history.len());
            assert_eq!(self.scheduler.is_full(*id), length == Some(*longest));
            if length == Some(*longest) {
                let done = self.scheduler.remove(*id).unwrap();
                assert_eq!(done, *history, "no token lost or repeated");
                self.alive.remove(id);
            }
        }
        self.check_names();
        if self.in_flight.is_empty() && !self.scheduler.has_frees() {
            let (used, total) = self.scheduler.kv_blocks();
            assert_eq!(used as usize, self.mirror.users.len(), "blocks are conserved");
            for (block, users) in &self.mirror.users {
                assert_eq!(
                    self.scheduler.pool().users(*block),
                    *users,
                    "users of block {block}"
                );
            }
            assert_eq!(total, self.mirror.limits.blocks);
        }
        true
    }

    /// A row's scores are those that come next.
    fn score(&mut self, id: SequenceId, row: &PlanRow) {
        let RowOutput::Score { ids, top: 1 } = &row.output else {
            assert!(!matches!(row.output, RowOutput::Score { .. }));
            return;
        };
        let Some((history, _)) = self.alive.get(&id) else {
            return;
        };
        let (scored, all) = self.scored.get_mut(&id).unwrap();
        let end = row.start + u32::try_from(row.tokens.len()).unwrap();
        assert_eq!(
            end - u32::try_from(ids.len()).unwrap(),
            *scored,
            "each is scored once and in order"
        );
        assert_eq!(ids[..], history[*scored as usize + 1..=end as usize]);
        assert!(end <= *all);
        *scored = end;
    }

    /// Every block that can be found holds what its name stands for.
    fn check_names(&self) {
        for (block, name) in self.scheduler.pool().names() {
            let held: Vec<u32> = (0..self.mirror.limits.block_size)
                .map(|offset| self.mirror.kv[&(block, offset)])
                .collect();
            assert_eq!(held, self.named[&name], "block {block}");
        }
    }

    /// Plan as much as may be, and finish one batch.
    fn step(&mut self) -> bool {
        while self.plan() {}
        self.done()
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

    fn era(&mut self, kept: bool, blocks: Option<u32>) {
        let histories = |world: &Self| -> Vec<(SequenceId, Vec<u32>)> {
            let sequences = world.scheduler.sequences();
            sequences
                .map(|sequence| (sequence.id, sequence.tokens.clone()))
                .collect()
        };
        let mut before = histories(self);
        let limits = Limits {
            blocks: blocks.unwrap_or(self.mirror.limits.blocks),
            ..self.mirror.limits
        };
        for (refused, _) in self.scheduler.requeue_all(limits, kept) {
            let (_, longest) = self.alive.remove(&refused.id).unwrap();
            assert!(
                longest > limits.longest(),
                "exactly what can never fit is refused"
            );
            before.retain(|(id, _)| *id != refused.id);
        }
        self.firsts.forget();
        let after = histories(self);
        assert!(after.is_sorted_by_key(|(id, _)| *id), "first come, first served");
        before.sort();
        assert_eq!(before, after);
        assert_eq!((self.scheduler.running(), self.scheduler.kv_blocks().0), (0, 0));
        // Ranks may have computed some of what was in flight, with whatever came late.
        for batch in std::mem::take(&mut self.in_flight) {
            self.mirror.run(&batch, &vec![999; batch.late.len()]);
        }
        let kv = std::mem::take(&mut self.mirror.kv);
        self.mirror = Mirror::new(limits);
        if kept {
            self.mirror.kv = kv;
        }
        self.check_names();
    }
}

/// Note what the names of a history's blocks stand for.
fn learn(named: &mut HashMap<PrefixHash, Vec<u32>>, history: &[u32], block_size: u32) {
    let mut name = root();
    for block in history.chunks_exact(block_size as usize) {
        name = name.followed_by(block);
        named.insert(name, block.to_vec());
    }
}

fn root() -> PrefixHash {
    PrefixHash::of_group("weights", "numerics", 0)
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
        depth in 1_usize..5,
        stages in 1_u32..5,
        drafts in 0_u32..6,
        worth_waiting in 1_u32..9,
    ) {
        let limits = Limits { max_sequences, max_batched_tokens, max_context: 40, block_size, blocks };
        let mut world = World::staged(limits, depth, stages).drafting(drafts).waiting_for(worth_waiting);
        for act in acts {
            match act {
                Act::Arrive { family, prompt, output, shares, priority, scores } => {
                    world.arrive((family, prompt, output), shares, priority, scores);
                }
                Act::Plan => { world.plan(); }
                Act::Done => { world.done(); }
                Act::Cancel(pick) => world.cancel(pick),
                Act::Era { kept, blocks } => world.era(kept, blocks),
            }
        }
        // Everything finishes, and a step without a row means that nothing is left.
        let mut steps = 0;
        while !world.alive.is_empty() {
            assert!(world.step(), "stuck with {:?}", world.alive.keys());
            steps += 1;
            assert!(steps < 100_000, "does not finish");
        }
        while world.done() {}
        let last = world.scheduler.heartbeat();
        world.mirror.submit(&last);
        prop_assert_eq!(world.scheduler.kv_blocks().0, 0);
        prop_assert!(world.mirror.users.is_empty());
        prop_assert_eq!(world.scheduler.pool().available(), world.mirror.limits.blocks);
        prop_assert!(world.scheduler.is_idle() && !world.scheduler.has_frees());
    }

    #[test]
    fn first_come_first_served(prompts in proptest::collection::vec((1_u32..30, 1_u32..12), 1..20), blocks in 9_u32..30) {
        let limits = Limits { max_sequences: 4, max_batched_tokens: 8, max_context: 64, block_size: 5, blocks };
        let mut world = World::new(limits, 1);
        for (prompt, output) in prompts {
            world.arrive((0, prompt, output), true, 0, false);
        }
        while !world.alive.is_empty() {
            world.step();
        }
        prop_assert!(world.first_token.is_sorted(), "first tokens came as {:?}", world.first_token);
    }
}

#[test]
fn drafts_make_fewer_steps_of_the_same_tokens() {
    let limits = Limits {
        max_sequences: 4,
        max_batched_tokens: 64,
        max_context: 200,
        block_size: 4,
        blocks: 200,
    };
    let steps = |drafts: u32, family: u32| {
        let mut world = World::new(limits, 1).drafting(drafts);
        for _ in 0..3 {
            world.arrive((family, 9, 120), true, 0, false);
        }
        let mut steps = 0;
        while world.step() {
            steps += 1;
        }
        assert!(world.alive.is_empty());
        assert!(world.accepted <= world.drafted);
        (steps, world.drafted, world.accepted)
    };
    let (plain, none, _) = steps(0, REPEATING);
    assert_eq!((plain, none), (120, 0));
    let (fewer, drafted, accepted) = steps(4, REPEATING);
    assert!(
        fewer < 90 && accepted > 100,
        "{fewer} steps, {accepted} of {drafted}"
    );
    // Hardly anything is said twice, and nothing comes of it.
    let (same, _, accepted) = steps(4, 0);
    assert_eq!((same, accepted), (120, 0));
}

#[test]
fn a_sequence_whose_drafts_are_in_flight_waits_for_them_and_the_others_have_their_turn() {
    let limits = Limits {
        max_sequences: 8,
        max_batched_tokens: 64,
        max_context: 400,
        block_size: 4,
        blocks: 400,
    };
    let mut world = World::staged(limits, 2, 2).drafting(3);
    for _ in 0..4 {
        world.arrive((REPEATING, 9, 200), true, 0, false);
    }
    let mut rows = BTreeMap::<SequenceId, u32>::new();
    for _ in 0..40 {
        while world.plan() {
            for id in &world.in_flight.back().unwrap().sequences {
                *rows.entry(*id).or_default() += 1;
            }
        }
        world.done();
    }
    assert!(world.drafted > 50, "{}", world.drafted);
    let (most, least) = (rows.values().max().unwrap(), rows.values().min().unwrap());
    assert!(rows.len() == 4 && most - least < 5, "{rows:?}");
}

#[test]
fn lower_priorities_go_first_and_starve_nobody() {
    let mut scheduler = Scheduler::new(Limits {
        max_sequences: 1,
        max_batched_tokens: 8,
        max_context: 64,
        block_size: 4,
        blocks: 16,
    });
    let add = |scheduler: &mut Scheduler, id: u64, priority: i32| {
        let sequence = Sequence::new(SequenceId(id), vec![1, 2], 3, KEY);
        scheduler.add(sequence.with_priority(priority)).unwrap();
    };
    let next = |scheduler: &mut Scheduler| {
        let id = scheduler.batch(u32::MAX).unwrap().sequences[0];
        scheduler.row_done(id, &[9]);
        scheduler.remove(id);
        id.0
    };
    for (id, priority) in [(0, 5), (1, 0), (2, -3), (3, 0)] {
        add(&mut scheduler, id, priority);
    }
    let order = [(); 4].map(|()| next(&mut scheduler));
    assert_eq!(order, [2, 1, 3, 0]);
    add(&mut scheduler, 4, 1);
    for id in 5.. {
        add(&mut scheduler, id, 0);
        if next(&mut scheduler) == 4 {
            assert_eq!(id, u64::from(MOST_OVERTAKEN) + 5);
            break;
        }
        assert!(id < 200, "it starves");
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
    let spans = |batch: Option<Batch>| -> Vec<(u64, u32, usize, bool)> {
        let batch = batch.unwrap();
        let rows = batch.rows.iter().zip(&batch.sequences);
        rows.map(|(row, id)| (id.0, row.start, row.tokens.len(), row.output != RowOutput::None))
            .collect()
    };
    let mut next = |done: &[(u64, Option<u32>)]| {
        for (id, token) in done {
            scheduler.row_done(SequenceId(*id), token.as_slice());
        }
        spans(scheduler.batch(u32::MAX))
    };
    assert_eq!(next(&[]), [(1, 0, 2, true), (2, 0, 2, false)]);
    assert_eq!(
        next(&[(1, Some(3)), (2, None)]),
        [(1, 2, 1, true), (2, 2, 3, false)]
    );
    assert_eq!(
        next(&[(1, Some(4)), (2, None)]),
        [(1, 3, 1, true), (2, 5, 3, false)]
    );
    assert_eq!(
        next(&[(1, Some(5)), (2, None)]),
        [(1, 4, 1, true), (2, 8, 1, true)]
    );
    // While that one is in flight the next holds what it samples.
    assert_eq!(next(&[]), [(1, 5, 1, true), (2, 9, 1, true)]);
}

#[test]
fn a_short_budget_shortens_prefill_and_not_decode() {
    let mut scheduler = Scheduler::new(Limits {
        max_sequences: 40,
        max_batched_tokens: 512,
        max_context: 1000,
        block_size: 16,
        blocks: 200,
    });
    for id in 0..30 {
        scheduler
            .add(Sequence::new(SequenceId(id), vec![1], 100, KEY))
            .unwrap();
    }
    assert_eq!(scheduler.batch(64).unwrap().rows.len(), 30);
    scheduler
        .add(Sequence::new(SequenceId(30), vec![1; 400], 500, KEY))
        .unwrap();
    let lengths = |batch: Option<Batch>| -> Vec<usize> {
        batch.unwrap().rows.iter().map(|row| row.tokens.len()).collect()
    };
    assert_eq!(lengths(scheduler.batch(64)), [vec![1; 30], vec![34]].concat());
    assert_eq!(lengths(scheduler.batch(16)), [vec![1; 30], vec![16]].concat());
    assert_eq!(lengths(scheduler.batch(512)), [vec![1; 30], vec![350]].concat());
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
    for _ in 0..2 {
        assert_eq!(scheduler.batch(64).unwrap().rows.len(), 2);
        for id in [1, 2] {
            scheduler.row_done(SequenceId(id), &[9]);
        }
    }
    let batch = scheduler.batch(64).unwrap();
    assert_eq!(batch.preempted, [SequenceId(2)]);
    assert_eq!(batch.sequences, [SequenceId(1)]);
    assert_eq!((scheduler.running(), scheduler.waiting()), (1, 1));
}

#[test]
fn blocks_are_kept_while_a_row_is_in_flight() {
    let mut scheduler = Scheduler::new(Limits {
        max_sequences: 2,
        max_batched_tokens: 16,
        max_context: 64,
        block_size: 2,
        blocks: 4,
    });
    for id in [1, 2] {
        scheduler
            .add(Sequence::new(SequenceId(id), vec![1, 2, 3], 8, KEY))
            .unwrap();
    }
    assert_eq!(scheduler.batch(64).unwrap().rows.len(), 2);
    assert_eq!(scheduler.batch(64).unwrap().rows.len(), 2);
    // The third token of each needs a block. The younger one gives way, but its rows are in flight.
    assert_eq!(scheduler.batch(64), None);
    assert_eq!(
        (scheduler.running(), scheduler.waiting(), scheduler.kv_blocks().0),
        (1, 1, 4)
    );
    assert_eq!(scheduler.row_done(SequenceId(2), &[9]), Some(4));
    assert_eq!(scheduler.kv_blocks().0, 4);
    assert_eq!(scheduler.row_done(SequenceId(2), &[9]), Some(5));
    assert_eq!(scheduler.kv_blocks().0, 2);
    let batch = scheduler.batch(64).unwrap();
    assert_eq!(
        (batch.sequences, batch.blocks.frees.len()),
        (vec![SequenceId(1)], 1)
    );
    assert!(batch.admitted.is_empty(), "five tokens do not fit beside it");
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
fn suspected_sequences_run_one_at_a_time_and_hold_up_nobody_else() {
    let limits = Limits {
        max_sequences: 8,
        max_batched_tokens: 16,
        max_context: 64,
        block_size: 2,
        blocks: 32,
    };
    let mut scheduler = Scheduler::new(limits);
    for id in 0..5 {
        scheduler
            .add(Sequence::new(SequenceId(id), vec![1; 2], 17, KEY))
            .unwrap();
    }
    for id in [0, 1, 3] {
        scheduler.suspect(SequenceId(id), true);
    }
    let admitted = |scheduler: &mut Scheduler| -> Vec<u64> {
        let batch = scheduler.batch(16).unwrap();
        for id in &batch.sequences {
            scheduler.row_done(*id, &[7]);
        }
        batch
            .admitted
            .iter()
            .map(|admission| admission.sequence.0)
            .collect()
    };
    assert_eq!(admitted(&mut scheduler), [0, 2, 4]);
    assert_eq!(admitted(&mut scheduler), [0; 0]);
    scheduler.suspect(SequenceId(0), false);
    assert_eq!(admitted(&mut scheduler), [1]);
    scheduler.remove(SequenceId(1));
    assert_eq!(admitted(&mut scheduler), [3]);
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
    let refused = scheduler.requeue_all(Limits { blocks: 4, ..limits }, true);
    assert_eq!(
        refused
            .iter()
            .map(|(sequence, _)| sequence.id)
            .collect::<Vec<_>>(),
        [SequenceId(1)]
    );
    assert_eq!(scheduler.waiting(), 1);
}

/// Compute `id` alone to its end; how many tokens each of its rows had.
fn compute(scheduler: &mut Scheduler, id: SequenceId) -> Vec<usize> {
    let mut rows = Vec::new();
    while !scheduler.is_full(id) {
        let batch = scheduler.batch(64).unwrap();
        let row = &batch.rows[0];
        rows.push(row.tokens.len());
        let sampled = row.output != RowOutput::None;
        scheduler.row_done(id, if sampled { &[7] } else { &[] });
    }
    scheduler.remove(id);
    rows
}

#[test]
fn a_common_beginning_is_computed_once() {
    let limits = Limits {
        max_sequences: 2,
        max_batched_tokens: 64,
        max_context: 64,
        block_size: 4,
        blocks: 8,
    };
    let mut scheduler = Scheduler::new(limits);
    let mut next = 0;
    let mut add = |scheduler: &mut Scheduler, tokens: &[u32]| {
        next += 1;
        let longest = u32::try_from(tokens.len()).unwrap() + 2;
        let sequence = Sequence::new(SequenceId(next), tokens.to_vec(), longest, KEY);
        scheduler.add(sequence.with_root(Some(root()))).unwrap();
        SequenceId(next)
    };
    let prompt: Vec<u32> = (0..12).collect();
    let id = add(&mut scheduler, &prompt[..10]);
    assert_eq!(compute(&mut scheduler, id), [10, 1]);
    let id = add(&mut scheduler, &prompt[..10]);
    assert_eq!(compute(&mut scheduler, id), [2, 1], "two full blocks are there");
    // 8 tokens are two blocks: the last token is computed on a copy of the second.
    let id = add(&mut scheduler, &prompt[..8]);
    let batch = scheduler.batch(64).unwrap();
    assert_eq!((batch.rows[0].start, batch.rows[0].tokens.len()), (7, 1));
    let blocks = &batch.blocks.appends[0].1;
    assert_eq!(batch.blocks.copies, [(1, blocks[1])]);
    assert_eq!(
        batch.admitted,
        [Admission {
            sequence: id,
            looked_up: 8,
            cached: 7
        }]
    );
    // While that one is computed another shares its first block, and writes its own.
    let other = add(&mut scheduler, &[&prompt[..4], &[50; 5][..]].concat());
    let batch = scheduler.batch(64).unwrap();
    assert_eq!(batch.admitted[0].cached, 4);
    assert_eq!(
        scheduler.pool().users(batch.blocks.appends.last().unwrap().1[0]),
        2
    );
    scheduler.remove(other);
    scheduler.remove(id);
    for id in [id, id, other] {
        scheduler.row_done(id, &[1]);
    }
    assert_eq!(scheduler.kv_blocks().0, 0);
    // A sequence that needs all blocks gets them, and what they held is gone.
    let id = add(&mut scheduler, &[9; 30]);
    assert_eq!(compute(&mut scheduler, id), [30, 1]);
    let id = add(&mut scheduler, &prompt[..10]);
    assert_eq!(compute(&mut scheduler, id), [10, 1]);
}

#[test]
fn a_preempted_sequence_finds_its_own_blocks() {
    let mut scheduler = Scheduler::new(Limits {
        max_sequences: 2,
        max_batched_tokens: 16,
        max_context: 64,
        block_size: 2,
        blocks: 5,
    });
    for id in [1, 2] {
        let tokens = vec![u32::try_from(id).unwrap(); 3];
        let sequence = Sequence::new(SequenceId(id), tokens, 8, KEY);
        scheduler.add(sequence.with_root(Some(root()))).unwrap();
    }
    for _ in 0..2 {
        assert_eq!(scheduler.batch(64).unwrap().rows.len(), 2);
        for id in [1, 2] {
            scheduler.row_done(SequenceId(id), &[9]);
        }
    }
    // Both have five tokens and need a third block, and one is left.
    let batch = scheduler.batch(64).unwrap();
    assert_eq!(
        (batch.sequences, batch.preempted),
        (vec![SequenceId(1)], vec![SequenceId(2)])
    );
    scheduler.row_done(SequenceId(1), &[9]);
    scheduler.remove(SequenceId(1));
    let batch = scheduler.batch(64).unwrap();
    assert_eq!(
        batch.admitted,
        [Admission {
            sequence: SequenceId(2),
            looked_up: 5,
            cached: 4
        }]
    );
    assert_eq!((batch.rows[0].start, batch.rows[0].tokens.len()), (4, 1));
}
