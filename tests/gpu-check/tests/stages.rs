//! Pipeline stages, each rank on a GPU of its own in one process: the bits of one stage, and what a lost or late one leads to.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{TINY_LIMITS, TINY_SPEC, checkpoint, options, prompt};
use llamero_checkpoint::{Members, Topology};
use llamero_cuda::{CudaBackend, CudaOptions, ExchangeOptions, Gpu};
use llamero_engine::mesh::TcpMesh;
use llamero_engine::mesh::local::local_mesh;
use llamero_engine::step::TokenRef;
use llamero_engine::{
    Backend, BackendError, FormLimits, FormSpec, Late, Mesh as _, MeshError, Plan, RowOutput, SampleKey,
    StepOutput, Ticket, Unwatched,
};
use llamero_gpu_check::drive::{ERA, Leader, Way, done, logits, plans, row, sample};
use llamero_gpu_check::model::{Model, TINY};
use llamero_gpu_emulator::emulated;

/// Long enough for an interpreted step of a machine that many programs share.
const PATIENCE: ExchangeOptions = ExchangeOptions {
    limit: Duration::from_secs(100),
    by_parts: usize::MAX,
    same_gpu: false,
};
/// Three steps under way, as a group of two stages has.
const SPEC: FormSpec = FormSpec {
    limits: FormLimits {
        steps_in_flight: 3,
        ..TINY_LIMITS
    },
    ..TINY_SPEC
};
const THREE_LAYERS: Model = Model { layers: 3, ..TINY };

fn split(tensor: u32, pipeline: u32) -> Topology {
    Topology { tensor, pipeline }
}

fn meshes(topology: Topology) -> Vec<TcpMesh> {
    local_mesh(&topology.into(), ERA).unwrap()
}

/// A rank with its weights.
fn member(folder: &Path, (rank, topology): (u32, Topology), exchange: ExchangeOptions) -> CudaBackend {
    let members: Members = topology.into();
    let options = CudaOptions {
        members,
        rank,
        gpu: Gpu::Number(rank as usize),
        exchange,
        ..options()
    };
    let mut backend = CudaBackend::new(folder, options).unwrap();
    backend.load(&Unwatched).unwrap();
    backend
}

/// Do the same on every rank at the same time; what they give, in order of rank.
fn at_once<A: Send, T: Send>(ranks: Vec<A>, work: impl Fn(A) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = ranks
            .into_iter()
            .map(|rank| scope.spawn(move || work(rank)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Form a group of ranks that have their weights.
fn form(backends: &mut [CudaBackend], topology: Topology) -> Leader {
    let pairs = backends.iter_mut().zip(meshes(topology)).collect();
    let blocks = at_once(pairs, |(backend, mesh): (&mut CudaBackend, TcpMesh)| {
        backend.form(&SPEC, Box::new(mesh), &mut |_| {}).unwrap().blocks
    });
    Leader::new(&SPEC, blocks.into_iter().min().unwrap())
}

/// Do the same on every rank of a formed group; what those of the last stage give, in order of rank.
fn on_all<T: Send>(
    folder: &Path,
    topology: Topology,
    work: impl Fn(&mut CudaBackend, Leader, bool) -> T + Sync,
) -> Vec<T> {
    let one = |mesh: TcpMesh| {
        let is_last = topology.stage(mesh.rank()) + 1 == topology.pipeline;
        let mut backend = member(folder, (mesh.rank(), topology), PATIENCE);
        let blocks = backend.form(&SPEC, Box::new(mesh), &mut |_| {}).unwrap().blocks;
        let given = work(&mut backend, Leader::new(&SPEC, blocks), is_last);
        (given, backend)
    };
    // Nobody leaves before all are done.
    let (mut given, _backends): (Vec<T>, Vec<CudaBackend>) =
        at_once(meshes(topology), one).into_iter().unzip();
    given.split_off((topology.ranks() - topology.tensor) as usize)
}

/// The bits of the logits of every position over the whole vocabulary.
fn bits(folder: &Path, topology: Topology, tokens: &[u32], way: Way) -> Vec<Vec<u32>> {
    let parts = on_all(folder, topology, |backend, mut leader, is_last| {
        let plans = plans(&mut leader, tokens, way);
        if is_last {
            let rows = plans.iter().flat_map(|plan| logits(backend, plan).unwrap());
            return rows.collect();
        }
        for plan in plans {
            let ticket = backend.submit(&plan).unwrap();
            assert_eq!(done(backend, ticket).unwrap(), StepOutput::default());
            let why = backend.fetch(ticket, 0, 0).unwrap_err().to_string();
            assert!(why.contains("of an earlier one"), "{why}");
            backend.release(ticket);
        }
        Vec::new()
    });
    let position = |at: usize| parts.iter().flat_map(move |part: &Vec<Vec<f32>>| &part[at]);
    let bits = |at: usize| position(at).map(|logit| logit.to_bits()).collect();
    (0..tokens.len()).map(bits).collect()
}

/// With noise, masses and log-probabilities.
const NOISY: RowOutput = RowOutput::Sample {
    last: 1,
    key: SampleKey {
        seed: 11,
        temperature: 0.7,
        top: 5,
        mass: true,
        logprobs: true,
    },
};

/// Prompts of three sequences, one of which takes two chunks; steps of one token each, which come late; a heartbeat; and one whose
/// biases come late.
fn mixed(leader: &mut Leader) -> Vec<Plan> {
    let prompts = [&prompt(66)[..], &[5, 6, 7], &[9]];
    let rows = (0u32..)
        .zip(prompts)
        .map(|(slot, tokens)| row(slot, 0, tokens, NOISY));
    let mut all = vec![leader.plan(rows.collect())];
    for number in 0..3 {
        let rows = (0u32..).zip(prompts).map(|(slot, tokens)| {
            let mut row = row(slot, tokens.len() as u32 + number, &[0], NOISY);
            row.tokens = vec![TokenRef::Late(slot)];
            row
        });
        all.push(leader.plan(rows.collect()));
    }
    all.push(leader.plan(vec![]));
    let mut biased = leader.plan(vec![row(1, 6, &[8], NOISY)]);
    biased.late_sampling = true;
    all.push(biased);
    all
}

/// Run them with three steps under way; the outputs.
fn run_mixed(backend: &mut CudaBackend, mut leader: Leader) -> Vec<StepOutput> {
    let plans = mixed(&mut leader);
    let mut tickets: Vec<Ticket> = Vec::new();
    let mut outputs = Vec::new();
    for number in 0..plans.len() {
        while tickets.len() < plans.len().min(number + 3) {
            tickets.push(backend.submit(&plans[tickets.len()]).unwrap());
        }
        let (plan, ticket) = (&plans[number], tickets[number]);
        if plan.late_tokens > 0 {
            let tokens = (0..plan.late_tokens).map(|slot| slot * 31 + number as u32 * 97);
            backend.late(ticket, &Late::Tokens(tokens.collect())).unwrap();
        }
        if plan.late_sampling {
            let late = Late::Sampling {
                biases: vec![((0, 0), vec![(17, 3.5), (900, -2.0)])],
                masks: Vec::new(),
                repetitions: vec![((0, 0), 1.5, vec![8, 40])],
            };
            backend.late(ticket, &late).unwrap();
        }
        outputs.push(done(backend, ticket).unwrap());
        backend.release(ticket);
    }
    outputs
}

fn blamed(error: anyhow::Error) -> u32 {
    match error.downcast::<BackendError>() {
        Ok(BackendError::Lost(MeshError::Deadline { rank, .. })) => rank,
        other => panic!("{other:?}"),
    }
}

fn met(backend: &mut CudaBackend, plan: &Plan) -> anyhow::Result<StepOutput> {
    let ticket = backend.submit(plan)?;
    done(backend, ticket)
}

emulated! {
    fn stages_have_the_bits_of_one() on ["devices=4,memory=256MiB"], {
        let folder = checkpoint(&THREE_LAYERS);
        // Prefill of four tokens, then one is decoded beside two others.
        for (tokens, way) in [(prompt(5), Way { chunk: 4, peers: 0 }), (prompt(2), Way { chunk: 1, peers: 2 })] {
            let alone = bits(folder.path(), split(1, 1), &tokens, way);
            assert_eq!(alone[0].len(), THREE_LAYERS.vocab);
            for topology in [split(1, 2), split(1, 3), split(2, 2)] {
                let found = bits(folder.path(), topology, &tokens, way);
                let other = found.iter().zip(&alone).position(|(found, alone)| found != alone);
                assert_eq!(other, None, "the first position that differs, {topology}, {way:?}");
            }
        }
    }

    fn steps_under_way_late_values_and_heartbeats_go_through_stages() on ["devices=4,memory=256MiB,streams=deferred"], {
        let folder = checkpoint(&Model { layers: 2, ..TINY });
        for tensor in [1, 2] {
            let run = |pipeline| on_all(folder.path(), split(tensor, pipeline), |backend, leader, is_last| {
                let outputs = run_mixed(backend, leader);
                assert!(is_last || outputs.iter().all(|output| *output == StepOutput::default()));
                outputs
            });
            let wanted = run(1);
            assert_eq!(wanted[0][1].candidates.len(), 3);
            assert_eq!(run(2), wanted, "{tensor} ranks a stage");
        }
    }

    fn a_late_stage_is_named_and_the_group_forms_again() on ["devices=2,memory=256MiB"], {
        let folder = checkpoint(&Model { layers: 2, ..TINY });
        let topology = split(1, 2);
        let short = ExchangeOptions { limit: Duration::from_millis(100), ..PATIENCE };
        let mut all: Vec<_> = (0..2).map(|rank| member(folder.path(), (rank, topology), short)).collect();
        let plan = form(&mut all, topology).plan(vec![row(0, 0, &[5, 6, 7], sample(1))]);
        let started = Instant::now();
        // The first stage is given nothing to do.
        assert_eq!(blamed(met(&mut all[1], &plan).unwrap_err()), 0);
        assert!(started.elapsed() >= Duration::from_secs(2), "stages wait for longer than ranks of one do");
        // It hears of that, and what it is given afterwards ends, too.
        assert_eq!(blamed(met(&mut all[0], &plan).unwrap_err()), 0);
        all.iter_mut().for_each(Backend::dissolve);
        // Weights were kept.
        let plan = form(&mut all, topology).plan(vec![row(0, 0, &[5, 6, 7], sample(1))]);
        let found = at_once(all.iter_mut().collect(), |backend| met(backend, &plan).unwrap());
        assert_eq!((found[0].candidates.len(), found[1].candidates.len()), (0, 1));
    }

    fn a_late_rank_of_another_stage_is_named_by_all() on ["devices=4,memory=256MiB"], {
        let folder = checkpoint(&Model { layers: 2, ..TINY });
        let topology = split(2, 2);
        let short = ExchangeOptions { limit: Duration::from_millis(300), ..PATIENCE };
        let mut all: Vec<_> = (0..4).map(|rank| member(folder.path(), (rank, topology), short)).collect();
        let plan = form(&mut all, topology).plan(vec![row(0, 0, &[5, 6, 7], sample(1))]);
        // Rank 1 is given nothing to do: rank 0 finds it, and tells the second stage before that loses patience.
        let others = all.iter_mut().enumerate().filter(|(rank, _)| *rank != 1).map(|(_, backend)| backend);
        let found = at_once(others.collect(), |backend| blamed(met(backend, &plan).unwrap_err()));
        assert_eq!(found, [1, 1, 1]);
    }

    fn who_gives_nothing_on_is_named_and_not_who_waits_for_that() on ["devices=4,memory=256MiB"], {
        let folder = checkpoint(&Model { layers: 2, ..TINY });
        let topology = split(2, 2);
        let short = ExchangeOptions { limit: Duration::from_millis(700), ..PATIENCE };
        let mut all: Vec<_> = (0..4).map(|rank| member(folder.path(), (rank, topology), short)).collect();
        let mut leader = form(&mut all, topology);
        let plans = [leader.plan(vec![row(0, 0, &[5, 6, 7], sample(1))]), leader.plan(vec![row(0, 3, &[8], sample(1))])];
        // Rank 0 is stopped when it has the first step, which its GPU still computes. Rank 1 gives its part of it, so that rank 3 begins and waits for
        // rank 2, which waits for rank 0.
        all[0].submit(&plans[0]).unwrap();
        let others: Vec<_> = all.iter_mut().skip(1).collect();
        let found = at_once(others, |backend| {
            let tickets = [backend.submit(&plans[0]).unwrap(), backend.submit(&plans[1]).unwrap()];
            blamed(tickets.into_iter().find_map(|ticket| done(backend, ticket).err()).unwrap())
        });
        assert_eq!(found, [0, 0, 0]);
    }

    fn a_stage_that_is_gone_ends_a_wait_long_before_its_time() on ["devices=2,memory=256MiB"], {
        let folder = checkpoint(&Model { layers: 2, ..TINY });
        let started = Instant::now();
        let gone = on_all(folder.path(), split(1, 2), |backend, mut leader, is_last| {
            let plan = leader.plan(vec![row(0, 0, &[5, 6, 7], sample(1))]);
            // The first stage leaves when the second may be waiting for it.
            if !is_last {
                backend.dissolve();
            }
            is_last.then(|| met(backend, &plan).unwrap_err())
        });
        let lost = gone.into_iter().flatten().next().unwrap().downcast::<BackendError>().unwrap();
        assert!(matches!(lost, BackendError::Lost(MeshError::PeerLost { rank: 0, .. })), "{lost:?}");
        assert!(started.elapsed() < PATIENCE.limit, "{:?}", started.elapsed());
    }
}
