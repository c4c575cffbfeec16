//! Ranks of a tensor group, each on a GPU of its own in one process: the bits of one rank, and what a lost peer leads to.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{TINY_SPEC, checkpoint, cpu, options, prompt};
use llamero_checkpoint::{Members, Topology};
use llamero_cuda::{CudaBackend, CudaOptions, ExchangeOptions, Gpu};
use llamero_engine::mesh::TcpMesh;
use llamero_engine::mesh::local::local_mesh;
use llamero_engine::{Backend, BackendError, Mesh as _, MeshError, Unwatched};
use llamero_gpu_check::agree::{Agreement, best};
use llamero_gpu_check::drive::{self, ERA, Leader, Way, done, row, sample, sequence};
use llamero_gpu_check::model::{Model, TINY};
use llamero_gpu_emulator::emulated;

/// Long enough for an interpreted step of a machine that many programs share.
const PATIENCE: ExchangeOptions = ExchangeOptions {
    limit: Duration::from_secs(100),
    by_parts: usize::MAX,
    same_gpu: false,
};
/// Every sum that can goes by parts.
const BY_PARTS: ExchangeOptions = ExchangeOptions {
    by_parts: 0,
    ..PATIENCE
};

fn meshes(world: u32) -> Vec<TcpMesh> {
    local_mesh(&Topology::tensor(world).into(), ERA).unwrap()
}

/// Rank `rank` of `world`, with its weights.
fn member(folder: &Path, (rank, world): (u32, u32), exchange: ExchangeOptions) -> CudaBackend {
    let members: Members = Topology::tensor(world).into();
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

/// Do the same on every rank of a formed group; what they give, in order of rank.
fn on_all<T: Send>(
    folder: &Path,
    world: u32,
    exchange: ExchangeOptions,
    work: impl Fn(&mut CudaBackend, u32) -> T + Sync,
) -> Vec<T> {
    let one = |mesh: TcpMesh| {
        let mut backend = member(folder, (mesh.rank(), world), exchange);
        let capacity = backend.form(&TINY_SPEC, Box::new(mesh), &mut |_| {}).unwrap();
        work(&mut backend, capacity.blocks)
    };
    std::thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = meshes(world)
            .into_iter()
            .map(|mesh| scope.spawn(move || one(mesh)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The logits of every position over the whole vocabulary: ranks have parts that follow each other.
fn logits(folder: &Path, world: u32, exchange: ExchangeOptions, tokens: &[u32], way: Way) -> Vec<Vec<f32>> {
    let parts = on_all(folder, world, exchange, |backend, blocks| {
        sequence(backend, &mut Leader::new(&TINY_SPEC, blocks), tokens, way).unwrap()
    });
    let position = |at: usize| parts.iter().flat_map(|part| part[at].clone()).collect();
    (0..tokens.len()).map(position).collect()
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter()
        .map(|row| row.iter().map(|x| x.to_bits()).collect())
        .collect()
}

/// Groups of these sizes have the bits of one rank.
fn one_set_of_bits(
    model: &Model,
    tokens: &[u32],
    way: Way,
    groups: &[(u32, ExchangeOptions)],
) -> Vec<Vec<f32>> {
    let folder = checkpoint(model);
    let alone = logits(folder.path(), 1, PATIENCE, tokens, way);
    assert_eq!(alone[0].len(), model.vocab);
    for (world, exchange) in groups {
        let found = logits(folder.path(), *world, *exchange, tokens, way);
        let other = bits(&found)
            .iter()
            .zip(bits(&alone))
            .position(|(found, alone)| *found != alone);
        assert_eq!(
            other, None,
            "the first position that differs, {world} ranks, {exchange:?}"
        );
    }
    alone
}

emulated! {
    fn two_and_three_ranks_have_the_bits_of_one_and_the_tokens_of_the_cpu() on ["devices=3,memory=256MiB"], {
        let folder = checkpoint(&TINY);
        let mut reference = cpu(folder.path());
        let blocks = drive::form(&mut reference, &TINY_SPEC).unwrap();
        let mut leader = Leader::new(&TINY_SPEC, blocks);
        let mut tokens = prompt(5);
        let mut wanted = sequence(&mut reference, &mut leader, &tokens, Way { chunk: 5, peers: 0 }).unwrap();
        for _ in 0..3 {
            let next = best(wanted.last().unwrap()) as u32;
            let plan = leader.plan(vec![row(0, tokens.len() as u32, &[next], sample(1))]);
            wanted.extend(drive::logits(&mut reference, &plan).unwrap());
            tokens.push(next);
        }
        // Prefill of seven tokens, then one is decoded.
        let way = Way { chunk: 7, peers: 0 };
        let found = one_set_of_bits(&TINY, &tokens, way, &[(2, PATIENCE), (3, PATIENCE), (3, BY_PARTS)]);
        let mut all = Agreement::default();
        wanted.iter().zip(&found).for_each(|(wanted, found)| all.add(wanted, found));
        assert!(all.positions == 8 && all.holds(), "{all:?}");
    }

    fn batches_of_graphs_have_the_bits_of_one_rank() on ["devices=3,memory=256MiB,order=reverse", "devices=3,memory=256MiB,streams=deferred"], {
        let model = Model { layers: 1, ..TINY };
        // Three rows, and one that fills up the graph's batch.
        one_set_of_bits(&model, &prompt(2), Way { chunk: 1, peers: 2 }, &[(3, BY_PARTS)]);
    }

    fn nine_ranks_have_the_bits_of_one() on ["devices=9,memory=128MiB,threads=1"], {
        // As uneven as it gets: nine ranks with a head and a leaf each; four with five query heads and less, some of whose kv
        // heads are shared by two ranks.
        let nine = Model { layers: 1, q_heads: 9, kv_heads: 9, ffn: 9 * 64, vocab: 1152, ..TINY };
        one_set_of_bits(&nine, &prompt(3), Way { chunk: 3, peers: 0 }, &[(9, PATIENCE), (9, BY_PARTS)]);
        let shared = Model { layers: 1, q_heads: 18, kv_heads: 6, ffn: 7 * 64, ..TINY };
        one_set_of_bits(&shared, &prompt(3), Way { chunk: 3, peers: 0 }, &[(4, PATIENCE), (7, BY_PARTS)]);
    }

    #[ignore = "minutes on a small machine"]
    fn sixty_four_greedy_tokens_are_those_of_the_cpu_on_three_ranks() on ["devices=3,memory=256MiB,order=seed:1"], {
        let folder = checkpoint(&TINY);
        let mut reference = cpu(folder.path());
        let blocks = drive::form(&mut reference, &TINY_SPEC).unwrap();
        let mut leader = Leader::new(&TINY_SPEC, blocks);
        let mut tokens = prompt(300);
        let mut wanted = sequence(&mut reference, &mut leader, &tokens, Way { chunk: 300, peers: 0 }).unwrap();
        for _ in 0..64 {
            let next = best(wanted.last().unwrap()) as u32;
            let plan = leader.plan(vec![row(0, tokens.len() as u32, &[next], sample(1))]);
            wanted.extend(drive::logits(&mut reference, &plan).unwrap());
            tokens.push(next);
        }
        let way = Way { chunk: 70, peers: 0 };
        let found = one_set_of_bits(&TINY, &tokens, way, &[(2, PATIENCE), (3, BY_PARTS)]);
        let mut all = Agreement::default();
        wanted.iter().zip(&found).for_each(|(wanted, found)| all.add(wanted, found));
        assert!(all.holds(), "{all:?}");
    }

    fn a_late_peer_is_named_on_every_rank_and_the_group_forms_again() on ["devices=2,memory=256MiB"], {
        let model = Model { layers: 1, ..TINY };
        let folder = checkpoint(&model);
        let short = ExchangeOptions { limit: Duration::from_millis(300), ..PATIENCE };
        let [mut first, mut second] = [0, 1].map(|rank| member(folder.path(), (rank, 2), short));
        let form = |first: &mut CudaBackend, second: &mut CudaBackend| {
            let [one, other] = meshes(2).try_into().ok().unwrap();
            std::thread::scope(|scope| {
                let there = scope.spawn(|| second.form(&TINY_SPEC, Box::new(other), &mut |_| {}).unwrap());
                let blocks = first.form(&TINY_SPEC, Box::new(one), &mut |_| {}).unwrap().blocks;
                there.join().unwrap();
                Leader::new(&TINY_SPEC, blocks)
            })
        };
        let plan = form(&mut first, &mut second).plan(vec![row(0, 0, &[5, 6, 7], sample(1))]);
        let blamed = |error: anyhow::Error| match error.downcast::<BackendError>() {
            Ok(BackendError::Lost(MeshError::Deadline { rank, .. })) => rank,
            other => panic!("{other:?}"),
        };
        // The second rank is given nothing to do.
        let ticket = first.submit(&plan).unwrap();
        assert_eq!(blamed(done(&mut first, ticket).unwrap_err()), 1);
        // It hears of that, and what it is given afterwards ends at once.
        let ticket = second.submit(&plan).unwrap();
        assert_eq!(blamed(done(&mut second, ticket).unwrap_err()), 1);
        first.dissolve();
        second.dissolve();
        // Weights were kept; waits are long enough now, as everybody comes.
        let mut leader = form(&mut first, &mut second);
        let plan = leader.plan(vec![]);
        let met = |backend: &mut CudaBackend| { let ticket = backend.submit(&plan).unwrap(); done(backend, ticket).unwrap() };
        std::thread::scope(|scope| {
            let there = scope.spawn(|| met(&mut second));
            met(&mut first);
            there.join().unwrap();
        });
    }

    fn a_peer_that_is_gone_ends_a_wait_long_before_its_time() on ["devices=2,memory=256MiB", "devices=2,memory=256MiB,streams=deferred"], {
        let folder = checkpoint(&Model { layers: 1, ..TINY });
        let started = Instant::now();
        let gone = on_all(folder.path(), 2, PATIENCE, |backend, blocks| {
            let plan = Leader::new(&TINY_SPEC, blocks).plan(vec![row(0, 0, &[5, 6, 7], sample(1))]);
            // The second one leaves when the first may be waiting for it.
            let ticket = (backend.members().topology().tensor == 2 && is_first(backend)).then(|| backend.submit(&plan).unwrap());
            ticket.map(|ticket| done(backend, ticket).unwrap_err())
        });
        let lost = gone.into_iter().flatten().next().unwrap().downcast::<BackendError>().unwrap();
        assert!(matches!(lost, BackendError::Lost(MeshError::PeerLost { rank: 1, .. })), "{lost:?}");
        assert!(started.elapsed() < PATIENCE.limit, "{:?}", started.elapsed());
    }

    fn a_stopped_step_ends_on_the_device() on ["devices=2,memory=256MiB"], {
        let folder = checkpoint(&Model { layers: 1, ..TINY });
        let both = std::sync::Barrier::new(2);
        let ended = on_all(folder.path(), 2, PATIENCE, |backend, blocks| {
            let plan = Leader::new(&TINY_SPEC, blocks).plan(vec![row(0, 0, &[5], sample(1))]);
            let is_first = is_first(backend);
            let error = is_first.then(|| {
                let progress = backend.progress();
                std::thread::scope(|scope| {
                    scope.spawn(move || progress.stop(true));
                    let ticket = backend.submit(&plan).unwrap();
                    done(backend, ticket).unwrap_err()
                })
            });
            both.wait();
            error
        });
        let error = ended.into_iter().flatten().next().unwrap();
        assert!(error.to_string().contains("aborted"), "{error}");
    }

    fn gpus_that_do_not_reach_each_other_are_refused() on ["devices=2,memory=256MiB,peers=no"], {
        let refused = refusals(|rank| rank as usize);
        assert!(refused.iter().all(|why| why.contains("do not reach each other's memory")), "{refused:?}");
    }

    fn gpus_whose_writes_are_lost_are_named_on_every_rank() on ["devices=2,memory=256MiB,peers=lost"], {
        let refused = refusals(|rank| rank as usize);
        let wanted = "GPU-6c6c616d-6572-6f2d-656d-756c61746501 of rank 1 writes to the memory of GPU-6c6c616d-6572-6f2d-656d-756c61746500 of rank 0 is lost";
        assert!(refused.iter().all(|why| why.contains(wanted)), "{refused:?}");
    }

    fn two_ranks_on_one_gpu_are_refused() on ["devices=2,memory=256MiB"], {
        let refused = refusals(|_| 1);
        assert!(refused.iter().all(|why| why.contains("each rank needs a GPU of its own")), "{refused:?}");
    }
}

/// What two ranks on GPUs of these numbers say when they form.
fn refusals(gpu: fn(u32) -> usize) -> Vec<String> {
    let folder = checkpoint(&Model { layers: 1, ..TINY });
    let one = |mesh: TcpMesh| {
        let options = CudaOptions {
            members: Topology::tensor(2).into(),
            rank: mesh.rank(),
            gpu: Gpu::Number(gpu(mesh.rank())),
            exchange: PATIENCE,
            ..options()
        };
        let mut backend = CudaBackend::new(folder.path(), options).unwrap();
        backend.load(&Unwatched).unwrap();
        backend
            .form(&TINY_SPEC, Box::new(mesh), &mut |_| {})
            .unwrap_err()
            .to_string()
    };
    std::thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = meshes(2)
            .into_iter()
            .map(|mesh| scope.spawn(move || one(mesh)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn is_first(backend: &CudaBackend) -> bool {
    backend.device().context.ordinal() == 0
}
