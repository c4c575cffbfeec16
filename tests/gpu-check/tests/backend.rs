//! The backend against the CPU's, and bit for bit against itself. Also run on real GPUs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{TINY_SPEC, backend, cpu, formed, leader, prompt};
use llamero_engine::step::{BlockDeltas, TokenRef};
use llamero_engine::{Backend, Late, PlanRow, RowOutput, SampleKey, Waited};
use llamero_gpu_check::agree::{self, Agreement, best};
use llamero_gpu_check::drive::{self, ERA, GREEDY, Leader, Way, done, row, sample, sequence};
use llamero_gpu_check::model::{Fp8, Model, TINY};
use llamero_gpu_emulator::emulated;
use std::time::Instant;

/// See [`agree::compare`].
fn compare(model: &Model, prompt: &[u32], steps: usize) -> Agreement {
    let folder = common::checkpoint(model);
    let (mut gpu, mut cpu) = (backend(folder.path()), cpu(folder.path()));
    let all = agree::compare(&mut cpu, &mut gpu, &TINY_SPEC, prompt, steps).unwrap();
    println!("{all:?}");
    all
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter()
        .map(|row| row.iter().map(|x| x.to_bits()).collect())
        .collect()
}

/// The logits of `tokens` have the same bits whatever the chunks and the batch.
fn one_set_of_bits(model: &Model, tokens: &[u32], ways: &[Way]) {
    let folder = common::checkpoint(model);
    let mut gpu = backend(folder.path());
    let mut first: Option<Vec<Vec<u32>>> = None;
    for way in ways {
        let blocks = drive::form(&mut gpu, &TINY_SPEC).unwrap();
        let found = bits(&sequence(&mut gpu, &mut Leader::new(&TINY_SPEC, blocks), tokens, *way).unwrap());
        assert_eq!(found.len(), tokens.len());
        let wanted = first.get_or_insert_with(|| found.clone());
        let same = found
            .iter()
            .zip(&*wanted)
            .position(|(found, wanted)| found != wanted);
        assert_eq!(same, None, "the first position that differs, {way:?}");
    }
}

emulated! {
    fn greedy_tokens_are_those_of_the_cpu() on ["order=forward", "order=reverse,streams=deferred"], {
        let all = compare(&TINY, &prompt(9), 7);
        assert!(all.holds(), "{all:?}");
    }

    // A100, then L4 and L40S, whose blocks have less shared memory: a step of many rows over 32 leaves.
    fn greedy_tokens_of_ampere_and_ada_are_those_of_the_cpu() on ["cc=8.0", "cc=8.9"], {
        let all = compare(&Model { layers: 1, ..TINY }, &prompt(40), 2);
        assert!(all.holds(), "{all:?}");
    }

    fn bf16_and_mixed_weights_are_those_of_the_cpu() on ["order=seed:3"], {
        for fp8 in [Fp8::None, Fp8::Meta] {
            let all = compare(&Model { fp8, layers: 3, ..TINY }, &prompt(7), 2);
            assert!(all.holds(), "{fp8:?} {all:?}");
        }
    }

    fn other_shapes_are_those_of_the_cpu() on ["order=forward"], {
        // Heads of 128 in groups of four; then SmolLM2's uneven numbers.
        let wide = Model { hidden: 512, head_dim: 128, q_heads: 8, kv_heads: 2, ffn: 2048, layers: 1, ..TINY };
        let uneven = Model { hidden: 576, q_heads: 9, kv_heads: 3, ffn: 1536, layers: 1, ..TINY };
        for model in [wide, uneven] {
            let all = compare(&model, &prompt(5), 2);
            assert!(all.holds(), "{model:?} {all:?}");
        }
    }

    #[ignore = "minutes on a small machine"]
    fn sixty_four_steps_are_those_of_the_cpu() on ["order=seed:1"], {
        let all = compare(&TINY, &prompt(300), 64);
        assert!(all.holds(), "{all:?}");
    }

    fn bits_do_not_depend_on_batch_and_chunks() on ["order=forward"], {
        let ways = [Way { chunk: 20, peers: 0 }, Way { chunk: 7, peers: 2 }, Way { chunk: 1, peers: 8 }];
        one_set_of_bits(&Model { layers: 1, ..TINY }, &prompt(20), &ways);
    }

    #[ignore = "minutes on a small machine"]
    fn bits_do_not_depend_on_many_batches_and_chunks() on ["order=forward"], {
        let chunks = [300, 64, 65, 17, 1].map(|chunk| Way { chunk, peers: 0 });
        let batches = [6, 15, 40].map(|peers| Way { chunk: 3, peers });
        one_set_of_bits(&TINY, &prompt(300), &[&chunks[..], &batches].concat());
    }

    fn late_tokens_precede_the_step() on ["order=forward,streams=deferred"], {
        let (mut gpu, mut leader, _folder) = formed(&TINY);
        let first = leader.plan(vec![row(0, 0, &[5, 6, 7], sample(1))]);
        let late = PlanRow { tokens: vec![TokenRef::Late(0)], ..row(0, 3, &[0], sample(1)) };
        let second = leader.plan(vec![late]);
        let tickets = [gpu.submit(&first).unwrap(), gpu.submit(&second).unwrap()];
        assert!(gpu.submit(&second).unwrap_err().to_string().contains("step 3 was expected"));
        let error = gpu.wait(tickets[1], Instant::now()).unwrap_err().to_string();
        assert!(error.contains("before its 1 late tokens"), "{error}");
        let token = done(&mut gpu, tickets[0]).unwrap().candidates[0].top[0].0;
        let before = gpu.progress().layers();
        assert!(gpu.late(tickets[1], &Late::Tokens(vec![TINY.vocab as u32])).is_err());
        gpu.late(tickets[1], &Late::Tokens(vec![token])).unwrap();
        assert!(gpu.late(tickets[1], &Late::Tokens(vec![token])).is_err());
        let got = done(&mut gpu, tickets[1]).unwrap();
        assert_eq!(gpu.progress().layers() - before, TINY.layers as u64);
        let got_logits = gpu.fetch(tickets[1], 0, 0).unwrap().logits;
        assert_eq!(got.candidates[0].top[0].0, best(&got_logits) as u32);
        assert!(gpu.fetch(tickets[1], 1, 0).is_err() && gpu.fetch(tickets[1], 0, 1).is_err());
        gpu.release(tickets[1]);
        assert!(gpu.fetch(tickets[1], 0, 0).is_err());
        let (mut alone, mut leader, _folder) = formed(&TINY);
        let plan = leader.plan(vec![row(0, 0, &[5, 6, 7, token], sample(4))]);
        let wanted = drive::logits(&mut alone, &plan).unwrap();
        assert_eq!(bits(&[got_logits]), bits(&wanted[3..]));
    }

    fn biases_and_masks_hold_up_sampling_only() on ["order=forward,streams=deferred"], {
        let (mut gpu, mut leader, _folder) = formed(&TINY);
        let mut plan = leader.plan(vec![row(0, 0, &[5, 6, 7], sample(3)), row(1, 0, &[5, 6, 7], sample(1))]);
        plan.late_sampling = true;
        let ticket = gpu.submit(&plan).unwrap();
        assert_eq!(gpu.wait(ticket, Instant::now()).unwrap(), Waited::NeedsSampling);
        let only = |tokens: &[usize]| {
            let mut mask = vec![0; TINY.vocab.div_ceil(8)];
            tokens.iter().for_each(|token| mask[token / 8] |= 1 << (token % 8));
            mask
        };
        // Each position has its own: those of drafts come from what is drafted before them.
        let allowed: [&[usize]; 3] = [&[7, 1099], &[41, 1099], &[40, 1099]];
        let mut masks: Vec<_> = (0..).zip(allowed).map(|(offset, tokens)| ((0, offset), only(tokens))).collect();
        masks.push(((0, 2), only(&[1, 40, 1099])));
        let biases = vec![((0, 2), vec![(40, 2.5), (1099, 0.25), (1099, 0.25)])];
        let late = Late::Sampling { biases, masks, repetitions: vec![((0, 2), 1.25, vec![3, 1099])] };
        gpu.late(ticket, &late).unwrap();
        assert!(gpu.late(ticket, &late).is_err(), "given once");
        let output = done(&mut gpu, ticket).unwrap();
        let free = gpu.fetch(ticket, 1, 0).unwrap().logits;
        for (offset, allowed) in (0..).zip(allowed) {
            let adjusted = gpu.fetch(ticket, 0, offset).unwrap().logits;
            assert!(adjusted.iter().enumerate().all(|(token, x)| allowed.contains(&token) == x.is_finite()), "{offset}");
            let (token, logit) = output.candidates[offset as usize].top[0];
            assert_eq!(adjusted[token as usize].to_bits(), logit.to_bits());
            if offset == 2 {
                let penalised = llamero_engine::sampling::penalties::repeated(free[1099], 1.25);
                assert_eq!([adjusted[40], adjusted[1099]], [free[40] + 2.5, penalised + 0.5]);
            }
        }
    }

    fn rows_answer_what_they_are_asked() on ["order=forward"], {
        let (mut gpu, mut leader, folder) = formed(&TINY);
        let everything = SampleKey { temperature: 0.8, top: 7, mass: true, logprobs: true, ..GREEDY };
        let rows = vec![
            row(0, 0, &[5, 6, 7], RowOutput::None),
            row(1, 0, &[5, 6, 7], sample(2)),
            row(2, 0, &[5, 6, 7], RowOutput::Score { ids: vec![9, 1000], top: 2 }),
            row(3, 0, &[5, 6, 7], RowOutput::Hidden),
            row(4, 0, &[5, 6, 7], RowOutput::Sample { last: 1, key: everything }),
            row(5, 0, &[5, 6, 7], sample(1)),
        ];
        let plan = leader.plan(rows);
        let ticket = gpu.submit(&plan).unwrap();
        let output = done(&mut gpu, ticket).unwrap();
        gpu.late(ticket, &Late::Cancel(vec![1])).unwrap();
        assert!(gpu.late(ticket, &Late::Cancel(vec![6])).is_err());
        // The CPU's answers have the same form and, up to rounding, the same numbers.
        let mut reference = cpu(folder.path());
        drive::form(&mut reference, &TINY_SPEC).unwrap();
        let reference_ticket = reference.submit(&plan).unwrap();
        let wanted = done(&mut reference, reference_ticket).unwrap();
        assert_eq!(output.candidates.len(), wanted.candidates.len());
        for (found, wanted) in output.candidates.iter().zip(&wanted.candidates) {
            assert_eq!((found.row, found.offset, found.top.len()), (wanted.row, wanted.offset, wanted.top.len()));
            assert!((found.top[0].1 - wanted.top[0].1).abs() < 0.05);
            assert_eq!(found.gumbel.map(|one| one.0), wanted.gumbel.map(|one| one.0));
            assert_eq!(found.scored.is_some(), wanted.scored.is_some());
            assert!(found.scored.zip(wanted.scored).is_none_or(|(a, b)| (a - b).abs() < 0.05));
            for (found, wanted) in [(&found.mass, &wanted.mass), (&found.mass_raw, &wanted.mass_raw)] {
                assert_eq!(found.len(), wanted.len());
                assert!(found.iter().zip(wanted).all(|(a, b)| a.0 == b.0 && (a.1.ln() - b.1.ln()).abs() < 0.05));
            }
        }
        let ([(3, found)], [(3, wanted)]) = (output.hidden.as_slice(), wanted.hidden.as_slice()) else { panic!() };
        let far = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(found.len() == TINY.hidden && far < 0.1, "{far}");
        assert!(gpu.fetch(ticket, 2, 0).is_err(), "scored is not sampled");
    }

    fn cancelled_rows_are_left_out() on ["order=forward"], {
        let (mut gpu, mut leader, _folder) = formed(&TINY);
        let rows = vec![row(0, 0, &[5], sample(1)), row(1, 0, &[6], sample(1)), row(2, 0, &[7], RowOutput::Hidden)];
        let mut plan = leader.plan(rows);
        plan.late_sampling = true;
        let ticket = gpu.submit(&plan).unwrap();
        gpu.late(ticket, &Late::Cancel(vec![0, 2])).unwrap();
        gpu.late(ticket, &Late::Sampling { biases: vec![], masks: vec![], repetitions: vec![] }).unwrap();
        let output = done(&mut gpu, ticket).unwrap();
        assert_eq!(output.candidates.iter().map(|one| one.row).collect::<Vec<_>>(), [1]);
        assert!(output.hidden.is_empty());
    }

    fn rewinds_copies_and_saved_blocks_leave_no_trace() on ["order=forward,streams=deferred"], {
        let (mut gpu, mut leader, _folder) = formed(&TINY);
        let step = |gpu: &mut dyn Backend, plan| bits(&drive::logits(gpu, &plan).unwrap());
        let append = |slot, block| BlockDeltas { appends: vec![(slot, vec![block])], ..BlockDeltas::default() };
        let (none, last) = (BlockDeltas::default(), sample(1));
        let tokens: Vec<u32> = (10..22).collect();
        step(&mut gpu, leader.plan_with(vec![row(0, 0, &tokens, last.clone())], append(0, 3)));
        let wanted = step(&mut gpu, leader.plan_with(vec![row(0, 12, &[50], last.clone())], none.clone()));
        // Other tokens, then back: the same position gives the same bits.
        step(&mut gpu, leader.plan_with(vec![row(0, 12, &[60, 61], last.clone())], none.clone()));
        let again = step(&mut gpu, leader.plan_with(vec![row(0, 12, &[50], last.clone())], none));
        assert_eq!(again, wanted);
        // A copy of the block serves another slot, and so does one that takes another's place in a table.
        let copy = BlockDeltas { copies: vec![(3, 4)], ..append(1, 4) };
        assert_eq!(step(&mut gpu, leader.plan_with(vec![row(1, 12, &[50], last.clone())], copy)), wanted);
        let replaced = BlockDeltas { replaces: vec![(1, 0, 5)], copies: vec![(3, 5)], ..BlockDeltas::default() };
        assert_eq!(step(&mut gpu, leader.plan_with(vec![row(1, 12, &[50], last.clone())], replaced)), wanted);
        let moved = BlockDeltas { frees: vec![0], ..append(2, 3) };
        assert_eq!(step(&mut gpu, leader.plan_with(vec![row(2, 12, &[50], last.clone())], moved)), wanted);
        // So does a block that was saved and put back in another era.
        let saved = gpu.save(3).unwrap();
        assert!(gpu.save(1 << 30).is_err());
        drive::form(&mut gpu, &TINY_SPEC).unwrap();
        let mut leader = Leader::new(&TINY_SPEC, 64);
        assert!(gpu.restore(7, &saved[1..]).is_err());
        gpu.restore(7, &saved).unwrap();
        let plan = leader.plan_with(vec![row(2, 12, &[50], last)], append(2, 7));
        let ticket = gpu.submit(&plan).unwrap();
        assert!(gpu.save(7).is_err(), "a step that writes it is not done");
        assert!(gpu.restore(7, &saved).is_err());
        assert!(gpu.save(8).is_ok() && gpu.restore(8, &saved).is_ok());
        done(&mut gpu, ticket).unwrap();
        assert_eq!(bits(&[gpu.fetch(ticket, 0, 0).unwrap().logits]), wanted);
    }

    fn a_heartbeat_and_a_stopped_step() on ["order=forward,streams=deferred"], {
        let (mut gpu, mut leader, _folder) = formed(&TINY);
        let ticket = gpu.submit(&leader.plan(vec![])).unwrap();
        assert!(done(&mut gpu, ticket).unwrap().candidates.is_empty());
        gpu.release(ticket);
        let ticket = gpu.submit(&leader.plan(vec![row(0, 0, &[5], sample(1))])).unwrap();
        gpu.progress().stop(true);
        match done(&mut gpu, ticket) {
            Err(error) => assert!(error.to_string().contains("aborted"), "{error}"),
            // A real device may be faster.
            Ok(_) => assert!(!std::env::var("LLAMERO_GPU_EMULATOR").is_ok_and(|machine| machine.contains("deferred"))),
        }
        gpu.progress().stop(false);
        // Weights outlive the era.
        gpu.dissolve();
        assert!(gpu.submit(&leader.plan(vec![])).unwrap_err().to_string().contains("formed first"));
        drive::form(&mut gpu, &TINY_SPEC).unwrap();
        assert_eq!(leader_era(), ERA);
    }
}

fn leader_era() -> llamero_engine::Era {
    leader(64).plan(vec![]).era
}
