//! Invariants of the scheduler under arbitrary traffic, checked against a mirror that knows only the plans.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::step::{RowOutput, SampleKey};

mod mirror;
mod shared;
mod world;

use mirror::REPEATING;
use world::{World, root};

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
