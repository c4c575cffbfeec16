//! The engine's scheduler over the CPU's ranks: neither what is found in the KV cache nor what is drafted changes a bit.

use std::collections::BTreeMap;
use std::hash::Hasher as _;
use std::time::Instant;

use llamero_checkpoint::{Members, Topology};
use llamero_engine::mesh::local::local_mesh;
use llamero_engine::schedule::{
    Batch, Drafted, Limits, PrefixHash, Scheduler, Sequence, SequenceId, Speculation,
};
use llamero_engine::{Backend as _, Era, FormLimits, FormSpec, KvDtype, Plan, PlanRow, TokenRef, Waited};
use llamero_settings::hash::Fnv1a;

use super::group::{GREEDY, Group, limits, spec};
use super::tiny;
use crate::{CpuBackend, Kernel};

const ERA: Era = Era {
    generation: 1,
    epoch: 1,
};
const BLOCK: u32 = 16;
const CONTEXT: u32 = 112;

/// A prompt, and how many tokens its answer has.
type Request = (Vec<u32>, u32);

/// Of every sampled position: the token, and a hash over the bits of all logits.
type Answers = BTreeMap<SequenceId, Vec<(u32, u64)>>;

/// How requests are served.
#[derive(Clone)]
struct Service {
    members: Members,
    sequences: u32,
    /// Tokens in one step.
    chunk: u32,
    blocks: u32,
    kv: KvDtype,
    root: Option<PrefixHash>,
    /// Most drafts of a row; every guess is drafted.
    drafts: u32,
}

#[derive(Default)]
struct Served {
    answers: Answers,
    cached: u32,
    copies: usize,
    preempted: usize,
    /// Drafts, and those of them that were right.
    drafted: usize,
    accepted: usize,
}

fn serve(folder: &std::path::Path, service: &Service, rounds: &[Vec<Request>]) -> Served {
    let mut group = Group::load(folder, service.members.clone(), 1, Kernel::detect().level());
    let meshes = local_mesh(&service.members, ERA).unwrap();
    std::thread::scope(|scope| {
        for (rank, mesh) in group.ranks.iter_mut().zip(meshes) {
            scope.spawn(move || form(rank, Box::new(mesh), service));
        }
    });
    let mut scheduler = Scheduler::new(Limits {
        max_sequences: service.sequences,
        max_batched_tokens: service.chunk,
        max_context: CONTEXT,
        block_size: BLOCK,
        blocks: service.blocks,
    })
    .with_speculation((service.drafts > 0).then_some(Speculation {
        max_drafts: service.drafts,
        drafted: Drafted::All,
    }));
    let mut served = Served::default();
    let (mut next, mut step) = (0, 0);
    for round in rounds {
        for (prompt, output) in round {
            next += 1;
            let longest = prompt.len() as u32 + output;
            let sequence = Sequence::new(SequenceId(next), prompt.clone(), longest, GREEDY);
            scheduler.add(sequence.with_root(service.root)).unwrap();
        }
        while let Some(batch) = scheduler.batch(service.chunk) {
            step += 1;
            served.cached += batch.admitted.iter().map(|one| one.cached).sum::<u32>();
            served.copies += batch.blocks.copies.len();
            served.preempted += batch.preempted.len();
            let rows = compute(&mut group.ranks, &batch, step);
            for ((id, row), sampled) in batch.sequences.iter().zip(&batch.rows).zip(rows) {
                let tokens: Vec<u32> = sampled.iter().map(|(token, _)| *token).collect();
                served.drafted += row.answered().saturating_sub(1);
                served.accepted += tokens.len().saturating_sub(1);
                served.answers.entry(*id).or_default().extend(sampled);
                scheduler.row_done(*id, &tokens);
                if scheduler.is_full(*id) {
                    scheduler.remove(*id);
                }
            }
        }
    }
    assert_eq!(scheduler.kv_blocks().0, 0);
    served
}

fn form(rank: &mut CpuBackend, mesh: Box<dyn llamero_engine::Mesh>, service: &Service) {
    let limits = FormLimits {
        max_sequences: service.sequences,
        max_batched_tokens: service.chunk,
        max_context: CONTEXT,
        block_size: BLOCK,
        kv_dtype: service.kv,
        ..limits(0)
    };
    let mut spec = FormSpec {
        limits,
        ..spec(ERA, 0)
    };
    spec.kv_bytes = rank.memory(&spec).unwrap().kv_block * u64::from(service.blocks);
    let capacity = rank.form(&spec, mesh, &mut |_| {}).unwrap();
    assert_eq!(capacity.blocks, service.blocks);
}

/// What each row samples greedily, behind right drafts too, and the hash over the logits of each token.
fn compute(ranks: &mut [CpuBackend], batch: &Batch, step: u64) -> Vec<Vec<(u32, u64)>> {
    let plan = &Plan {
        era: ERA,
        step,
        rows: batch.rows.clone(),
        blocks: batch.blocks.clone(),
        late_tokens: 0,
        late_sampling: false,
        state_hash: batch.state_hash,
    };
    assert!(batch.late.is_empty(), "one step at a time");
    let offsets = |row: u32| (0..plan.rows[row as usize].answered() as u32).map(move |offset| (row, offset));
    let sampled: Vec<(u32, u32)> = (0..plan.rows.len() as u32).flat_map(offsets).collect();
    let sampled = &sampled;
    let shards: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = ranks
            .iter_mut()
            .map(|rank| {
                scope.spawn(move || {
                    let ticket = rank.submit(plan).unwrap();
                    assert!(matches!(
                        rank.wait(ticket, Instant::now()).unwrap(),
                        Waited::Done(_)
                    ));
                    let shard = |(row, offset): &(u32, u32)| rank.fetch(ticket, *row, *offset).unwrap();
                    let shards: Vec<_> = sampled.iter().map(shard).collect();
                    rank.release(ticket);
                    shards
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut rows = vec![Vec::new(); plan.rows.len()];
    for (nth, (row, offset)) in sampled.iter().enumerate() {
        let got: &mut Vec<(u32, u64)> = &mut rows[*row as usize];
        let is_right = offset.checked_sub(1).is_none_or(|draft| {
            let before = got.get(draft as usize);
            before.is_some_and(|(token, _)| *token == drafted(&plan.rows[*row as usize], draft))
        });
        if !is_right {
            continue;
        }
        let mut logits = vec![f32::NAN; tiny::VOCAB as usize];
        for shard in shards.iter().map(|shards| &shards[nth]) {
            for (token, logit) in shard.tokens.iter().zip(&shard.logits) {
                logits[token as usize] = *logit;
            }
        }
        let mut hash = Fnv1a::default();
        logits
            .iter()
            .for_each(|logit| hash.write(&logit.to_bits().to_le_bytes()));
        let best = (0..logits.len())
            .rev()
            .max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        got.push((best.unwrap() as u32, hash.finish()));
    }
    rows
}

/// A row's draft.
fn drafted(row: &PlanRow, number: u32) -> u32 {
    let first = row.tokens.len() + 1 - row.answered();
    match row.tokens[first + number as usize] {
        TokenRef::Known(token) => token,
        TokenRef::Late(_) => panic!("a draft is known"),
    }
}

fn rounds() -> Vec<Vec<Request>> {
    let prompt =
        |len: u32| -> Vec<u32> { (0..len).map(|i| (i * i * 31 + i * 7 + 3) % tiny::VOCAB).collect() };
    let mut turned = prompt(70);
    turned[40..].reverse();
    vec![
        vec![(prompt(70), 20)],
        // The same again, one whose blocks are all there, one that turns off in the third block, and a longer one.
        vec![(prompt(70), 20), (prompt(64), 12), (turned, 20), (prompt(100), 8)],
        // Long enough to say something again.
        vec![(prompt(10), 100), (prompt(12), 90)],
    ]
}

#[test]
fn neither_what_is_cached_nor_what_is_drafted_changes_a_bit() {
    let (alone, root) = (
        Members::whole(Topology::tensor(1)),
        PrefixHash::of_group("tiny", "test", BLOCK),
    );
    for (fp8, kv) in [
        (false, KvDtype::Bf16),
        (true, KvDtype::Bf16),
        (true, KvDtype::Fp8E4m3),
    ] {
        let folder = tiny::checkpoint(fp8);
        // One sequence at a time, each in one step, and nothing is found.
        let plain = Service {
            members: alone.clone(),
            sequences: 1,
            chunk: 128,
            blocks: 7,
            kv,
            root: None,
            drafts: 0,
        };
        let want = serve(folder.path(), &plain, &rounds());
        assert_eq!((want.cached, want.preempted), (0, 0));
        for members in [
            alone.clone(),
            Topology::tensor(3).into(),
            Members::new(Topology::tensor(8), &[6, 3]).unwrap(),
        ] {
            let what = members.to_string();
            // So few blocks that somebody is preempted, and finds its own again.
            let service = Service {
                members,
                sequences: 3,
                chunk: 48,
                blocks: 10,
                kv,
                root: Some(root),
                drafts: 0,
            };
            let got = serve(folder.path(), &service, &rounds());
            assert!(got.answers == want.answers, "{what}: other bits");
            assert!(got.cached >= 64 + 63 + 32, "{what}: {} tokens found", got.cached);
            assert!(got.copies > 0 && got.preempted > 0, "{what}");
            let service = Service { drafts: 5, ..service };
            let got = serve(folder.path(), &service, &rounds());
            assert!(got.answers == want.answers, "{what}: other bits with drafts");
            assert!(got.cached >= 64 + 63 + 32 && got.preempted > 0, "{what}");
            let (drafted, accepted) = (got.drafted, got.accepted);
            assert!(
                accepted > 0 && drafted > accepted,
                "{what}: {accepted} of {drafted} drafts were right"
            );
        }
    }
}
