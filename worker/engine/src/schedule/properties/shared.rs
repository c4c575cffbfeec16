//! What has one beginning is computed once, and nobody loses by waiting for it.

use std::collections::{BTreeMap, HashMap};

use super::KEY;
use super::world::root;
use crate::schedule::{Admission, Batch, Limits, PrefixHash, Scheduler, Sequence, SequenceId};
use crate::step::RowOutput;

/// Who computed each block first, of those that live and were not preempted since.
#[derive(Default)]
pub(super) struct FirstComputers {
    /// Whether even one block is waited for, so that none is computed twice.
    pub(super) are_followed: bool,
    /// Whether each sequence that shares blocks takes those of others.
    sharing: BTreeMap<SequenceId, bool>,
    first: HashMap<PrefixHash, SequenceId>,
    /// Tokens that were known and not to be computed when each was admitted last.
    admitted: BTreeMap<SequenceId, (u32, u32)>,
}

impl FirstComputers {
    pub(super) fn may_share(&mut self, id: SequenceId, takes: bool) {
        self.sharing.insert(id, takes);
    }

    /// Somebody was preempted with less than a block of its own computed, and others may have begun that block, too: from here on it may be computed twice.
    pub(super) fn preempted(&mut self) {
        self.are_followed = false;
        self.forget();
    }

    /// The era ended, and with it what was not answered.
    pub(super) fn forget(&mut self) {
        self.first.clear();
    }

    pub(super) fn note(
        &mut self,
        batch: &Batch,
        alive: &BTreeMap<SequenceId, (Vec<u32>, u32)>,
        block_size: u32,
    ) {
        if !batch.preempted.is_empty() {
            self.preempted();
        }
        self.first.retain(|_, by| alive.contains_key(by));
        for Admission { sequence, cached, .. } in &batch.admitted {
            let known = alive[sequence].0.len() as u32;
            self.admitted.insert(*sequence, (known, *cached));
        }
        for (row, id) in batch.rows.iter().zip(&batch.sequences) {
            let (Some(takes), (known, cached)) = (self.sharing.get(id), self.admitted[id]) else {
                continue;
            };
            let end = (row.start + row.tokens.len() as u32).min(known);
            let mut name = root();
            for (nth, block) in (0..).zip(alive[id].0.chunks_exact(block_size as usize)) {
                name = name.followed_by(block);
                let (from, to) = (nth * block_size, (nth + 1) * block_size);
                let is_copied = cached + 1 == known && to == known;
                if to <= row.start || to > end || from < cached || is_copied {
                    continue;
                }
                let first = *self.first.entry(name).or_insert(*id);
                assert!(
                    first == *id || !takes || !self.are_followed,
                    "{id:?} computes block {nth}, which {first:?} has computed"
                );
            }
        }
    }
}

const BLOCK: u32 = 16;

fn limits(max_batched_tokens: u32) -> Limits {
    Limits {
        max_sequences: 32,
        max_batched_tokens,
        max_context: 2048,
        block_size: BLOCK,
        blocks: 1024,
    }
}

fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|at| at * 7 % 1000).collect()
}

fn sequence(id: u64, tokens: Vec<u32>) -> Sequence {
    let longest = u32::try_from(tokens.len()).unwrap() + 50;
    Sequence::new(SequenceId(id), tokens, longest, KEY).with_root(Some(root()))
}

fn add(scheduler: &mut Scheduler, id: u64, tokens: Vec<u32>) {
    scheduler.add(sequence(id, tokens)).unwrap();
}

/// Of each row: whose, where it begins, how many tokens it has.
fn rows(batch: &Batch) -> Vec<(u64, u32, usize)> {
    let rows = batch.rows.iter().zip(&batch.sequences);
    rows.map(|(row, id)| (id.0, row.start, row.tokens.len()))
        .collect()
}

fn answer(scheduler: &mut Scheduler, batch: &Batch) {
    for (row, id) in batch.rows.iter().zip(&batch.sequences) {
        let sampled = matches!(row.output, RowOutput::Sample { .. });
        scheduler.row_done(*id, if sampled { &[9] } else { &[] });
    }
}

#[test]
fn many_with_one_prompt_compute_it_once() {
    let mut scheduler = Scheduler::new(limits(512));
    for id in 0..8 {
        add(&mut scheduler, id, prompt(200));
    }
    let first = scheduler.batch(512).unwrap();
    assert_eq!(rows(&first), [(0, 0, 200)]);
    // Made ahead: the first batch is not answered yet.
    let second = scheduler.batch(512).unwrap();
    let behind: Vec<(u64, u32, usize)> = (1..8).map(|id| (id, 192, 8)).collect();
    assert_eq!(rows(&second), [vec![(0, 200, 1)], behind].concat());
    assert!(
        second
            .admitted
            .iter()
            .all(|one| (one.looked_up, one.cached) == (200, 192))
    );
    // 12 blocks for all, and the last one for each.
    assert_eq!(scheduler.kv_blocks().0, 12 + 8);
    answer(&mut scheduler, &first);
    answer(&mut scheduler, &second);
    for id in 0..8 {
        scheduler.remove(SequenceId(id));
    }
    assert_eq!(scheduler.kv_blocks().0, 0);
}

#[test]
fn of_a_prompt_that_ends_with_a_block_the_last_token_is_computed_on_a_copy() {
    let mut scheduler = Scheduler::new(limits(512));
    for id in 0..3 {
        add(&mut scheduler, id, prompt(160));
    }
    let first = scheduler.batch(512).unwrap();
    let second = scheduler.batch(512).unwrap();
    assert_eq!(rows(&second), [(0, 160, 1), (1, 159, 1), (2, 159, 1)]);
    let source = first.blocks.appends[0].1[9];
    assert_eq!(second.blocks.copies.len(), 2);
    assert!(second.blocks.copies.iter().all(|(from, _)| *from == source));
}

#[test]
fn a_prompt_in_chunks_is_followed_where_it_stands() {
    let mut scheduler = Scheduler::new(limits(96));
    for id in 0..3 {
        add(&mut scheduler, id, prompt(200));
    }
    // Who turns off after 64 tokens.
    add(&mut scheduler, 3, [&prompt(64)[..], &[5; 40]].concat());
    assert_eq!(rows(&scheduler.batch(96).unwrap()), [(0, 0, 96)]);
    assert_eq!(rows(&scheduler.batch(96).unwrap()), [(0, 96, 96)]);
    // The last chunk holds no whole block, so that nothing is left to wait for.
    assert_eq!(
        rows(&scheduler.batch(96).unwrap()),
        [(0, 192, 8), (1, 192, 8), (2, 192, 8), (3, 64, 40)]
    );
}

#[test]
fn little_is_not_waited_for() {
    for (length, together) in [(64, 1), (63, 2), (40, 2)] {
        let mut scheduler = Scheduler::new(limits(512));
        add(&mut scheduler, 0, prompt(length));
        add(&mut scheduler, 1, [prompt(length), vec![3]].concat());
        let batch = scheduler.batch(512).unwrap();
        assert_eq!(batch.rows.len(), together, "{length} tokens in common");
    }
}

#[test]
fn those_behind_wait_for_that_batch_too_and_take_nothing_from_who_waits() {
    let mut scheduler = Scheduler::new(limits(512));
    add(&mut scheduler, 0, prompt(200));
    add(&mut scheduler, 1, prompt(200));
    add(&mut scheduler, 2, vec![4; 1500]);
    assert_eq!(rows(&scheduler.batch(512).unwrap()), [(0, 0, 200)]);
    let second = rows(&scheduler.batch(512).unwrap());
    assert!(second.contains(&(1, 192, 8)), "{second:?}");
    assert!(second.iter().any(|row| row.0 == 2), "{second:?}");
}

#[test]
fn who_was_followed_may_go_away() {
    // Cancelled while its row is in flight: what it was to compute is there for the others.
    let mut scheduler = Scheduler::new(limits(512));
    for id in 0..3 {
        add(&mut scheduler, id, prompt(200));
    }
    let first = scheduler.batch(512).unwrap();
    scheduler.remove(SequenceId(0));
    let second = scheduler.batch(512).unwrap();
    assert_eq!(rows(&second), [(1, 192, 8), (2, 192, 8)]);
    answer(&mut scheduler, &first);
    answer(&mut scheduler, &second);
    // It has no names from who went away, but from those who took it.
    add(&mut scheduler, 3, prompt(150));
    assert_eq!(scheduler.batch(512).unwrap().admitted[0].cached, 144);

    // Gone with half of its prompt: one of the others computes the rest, and is followed in turn.
    let mut scheduler = Scheduler::new(limits(512));
    for id in 0..3 {
        add(&mut scheduler, id, prompt(200));
    }
    assert_eq!(rows(&scheduler.batch(96).unwrap()), [(0, 0, 96)]);
    scheduler.remove(SequenceId(0));
    assert_eq!(rows(&scheduler.batch(512).unwrap()), [(1, 96, 104)]);
    assert_eq!(rows(&scheduler.batch(512).unwrap()), [(1, 200, 1), (2, 192, 8)]);

    // With the era, nothing of what was in flight is there.
    let mut scheduler = Scheduler::new(limits(512));
    for id in 0..3 {
        add(&mut scheduler, id, prompt(200));
    }
    for _ in 0..2 {
        assert_eq!(rows(&scheduler.batch(512).unwrap()), [(0, 0, 200)]);
        assert_eq!(scheduler.batch(512).unwrap().rows.len(), 3);
        assert_eq!(scheduler.requeue_all(limits(512), true).len(), 0);
    }
}

#[test]
fn generated_tokens_are_taken_when_they_are_answered() {
    let mut scheduler = Scheduler::new(limits(512));
    add(&mut scheduler, 0, prompt(15));
    let first = scheduler.batch(512).unwrap();
    let second = scheduler.batch(512).unwrap();
    answer(&mut scheduler, &first);
    // The 16th token is known, and its row is in flight with whatever was sent for it.
    add(&mut scheduler, 1, [prompt(15), vec![9; 100]].concat());
    let third = scheduler.batch(512).unwrap();
    assert_eq!(third.admitted[0].cached, 0);
    answer(&mut scheduler, &second);
    answer(&mut scheduler, &third);
    add(&mut scheduler, 2, [prompt(15), vec![9, 8]].concat());
    assert_eq!(scheduler.batch(512).unwrap().admitted[0].cached, 16);
}

/// When each of `count` equal prompts has its first token, and when all have: in tokens that could have been computed until
/// then, where every step costs as much as 32 of them. Steps are made ahead.
fn first_tokens(count: u64, length: u32, budget: u32, shares: bool) -> Vec<u32> {
    let mut scheduler = Scheduler::new(limits(budget));
    for id in 0..count {
        let sequence = sequence(id, prompt(length)).with_root(shares.then(root));
        scheduler.add(sequence).unwrap();
    }
    let (mut cost, mut first) = (0, BTreeMap::new());
    let mut before: Option<Batch> = None;
    while first.len() < count as usize {
        let batch = scheduler.batch(budget);
        for (row, id) in batch
            .iter()
            .flat_map(|batch| batch.rows.iter().zip(&batch.sequences))
        {
            if row.output != RowOutput::None {
                first
                    .entry(*id)
                    .or_insert(cost + 32 + batch.as_ref().unwrap().tokens());
            }
        }
        cost += batch.as_ref().map_or(0, |batch| 32 + batch.tokens());
        // None where somebody who was preempted has a row in flight.
        let Some(before) = std::mem::replace(&mut before, batch) else {
            continue;
        };
        answer(&mut scheduler, &before);
        for id in before.sequences {
            if scheduler.is_full(id) {
                scheduler.remove(id);
            }
        }
    }
    first.into_values().collect()
}

#[test]
fn nobody_has_the_first_token_later_than_if_each_computed_its_own() {
    for count in [2, 3, 8, 20] {
        for length in [20, 63, 64, 72, 100, 129, 500, 1900] {
            for budget in [32, 64, 512, 8192] {
                let (shared, alone) = (
                    first_tokens(count, length, budget, true),
                    first_tokens(count, length, budget, false),
                );
                let what = format!("{count} of {length} with {budget} a step: {shared:?}, {alone:?}");
                assert!(
                    shared.iter().zip(&alone).all(|(with, without)| with <= without),
                    "{what}"
                );
                if length >= 100 {
                    let (with, without) = (shared.last().unwrap(), alone.last().unwrap());
                    assert!(f64::from(*with) < 0.9 * f64::from(*without), "{what}");
                }
            }
        }
    }
}
