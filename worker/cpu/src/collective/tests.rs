//! Collectives over loopback.

use std::ops::Range;
use std::time::{Duration, Instant};

use llamero_checkpoint::Runs;
use llamero_engine::leaf_tree::{self, LeafLayout, Subtree};
use llamero_engine::mesh::TcpMesh;
use llamero_engine::mesh::local::local_mesh;
use llamero_engine::{BackendError, Era, Members, Mesh, MeshError, Topology};

use super::{Collective, Reduction, SharedMesh, Waits};

const ERA: Era = Era {
    generation: 3,
    epoch: 2,
};

/// A group whose collectives wait so long.
struct Group {
    members: Members,
    deadline: Duration,
}

fn group(world: u32, deadline: Duration) -> Group {
    of_members(&Topology::tensor(world).into(), deadline)
}

fn of_members(members: &Members, deadline: Duration) -> Group {
    Group {
        members: members.clone(),
        deadline,
    }
}

/// Run `work` on every rank in its own thread, over TCP and then through shared memory; results in rank order, of either way.
fn on_all<T: Send>(group: Group, work: impl Fn(Collective) -> T + Sync) -> [Vec<T>; 2] {
    [false, true].map(|is_shared| {
        let run = |mesh: TcpMesh| {
            let mut mesh: Box<dyn Mesh> = Box::new(mesh);
            if is_shared {
                mesh = SharedMesh::over(mesh, Instant::now() + Duration::from_secs(60)).unwrap();
            }
            work(Collective::new(mesh, Waits::new(group.deadline, false)))
        };
        std::thread::scope(|scope| {
            let meshes = local_mesh(&group.members, ERA).unwrap();
            let threads: Vec<_> = meshes.into_iter().map(|mesh| scope.spawn(|| run(mesh))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    })
}

fn even(leaves: u32, world: u32) -> LeafLayout {
    layout(
        leaves,
        (0..world)
            .map(|r| std::iter::once(r * leaves / world..(r + 1) * leaves / world).collect())
            .collect(),
    )
}

fn layout(leaves: u32, owners: Vec<Vec<Range<u32>>>) -> LeafLayout {
    LeafLayout {
        leaves,
        owners: owners.into_iter().map(Runs::new).collect(),
    }
}

/// Values whose sum depends on the order in every bit.
fn leaf(leaf: u32, element: usize) -> f32 {
    let x = (u64::from(leaf) * 7919 + element as u64 * 104_729) % 1009;
    (x as f32 - 504.0) * 1.7_f32.powi((x % 37) as i32)
}

fn node(tree: &Subtree, element: usize) -> f32 {
    let mut leaves = (tree.start..tree.end).map(|i| (i..i + 1, leaf(i, element)));
    leaf_tree::join(tree, &mut leaves, &mut |a, b| a + b).unwrap()
}

fn sum(collective: &mut Collective, layout: &LeafLayout, n: usize) -> Vec<f32> {
    let owned = &layout.owners[collective.index()];
    let roots: Vec<f32> = leaf_tree::maximal_subtrees(layout.leaves, owned)
        .iter()
        .flat_map(|tree| (0..n).map(|element| node(tree, element)))
        .collect();
    let mut out = vec![0.0; n];
    collective
        .reduce_tree(&Reduction::new(layout), &roots, &mut out)
        .unwrap();
    out
}

#[test]
fn sums_have_the_same_bits_in_every_world_and_both_ways() {
    for (leaves, n) in [(9, 1), (9, 576), (24, 3 * 577), (32, 4096)] {
        let whole: Vec<u32> = (0..n)
            .map(|element| node(&(0..leaves), element).to_bits())
            .collect();
        for world in 1..=5 {
            for scatter_bytes in [0, usize::MAX] {
                let sums = on_all(group(world, Duration::from_secs(20)), |mut collective| {
                    collective.set_scatter_bytes(scatter_bytes);
                    collective.begin_step(1);
                    sum(&mut collective, &even(leaves, world), n)
                });
                for sum in sums.into_iter().flatten() {
                    let bits: Vec<u32> = sum.iter().map(|value| value.to_bits()).collect();
                    assert!(bits == whole, "{leaves} leaves of {n} values, world {world}");
                }
            }
        }
    }
}

#[test]
fn shares_may_have_gaps_or_be_empty() {
    // The second rank took over parts at both ends, as after a loss; the third one has nothing.
    let layouts = [
        layout(9, vec![vec![2..4, 5..6], vec![0..2, 4..5, 6..9], vec![]]),
        layout(3, vec![vec![0..2], vec![], vec![2..3]]),
    ];
    for layout in layouts {
        for scatter_bytes in [0, usize::MAX] {
            let sums = on_all(group(3, Duration::from_secs(20)), |mut collective| {
                collective.set_scatter_bytes(scatter_bytes);
                sum(&mut collective, &layout, 40)
            });
            let whole: Vec<f32> = (0..40)
                .map(|element| node(&(0..layout.leaves), element))
                .collect();
            assert!(sums.iter().flatten().all(|sum| *sum == whole));
        }
    }
}

#[test]
fn survivors_of_each_stage_sum_among_themselves() {
    let topology = Topology {
        tensor: 3,
        pipeline: 2,
    };
    let members = Members::new(topology, &[1, 5]).unwrap();
    let sums = on_all(of_members(&members, Duration::from_secs(20)), |mut collective| {
        assert_eq!(collective.world(), 2);
        sum(&mut collective, &even(9, 2), 40)
    });
    let whole: Vec<f32> = (0..40).map(|element| node(&(0..9), element)).collect();
    assert_eq!(sums, [vec![whole.clone(); 4], vec![whole; 4]]);
}

#[test]
fn uneven_and_empty_parts_are_gathered() {
    let all = on_all(group(3, Duration::from_secs(20)), |mut collective| {
        let mine: &[f32] = [&[1.0, 2.0, 3.0][..], &[], &[4.0]][collective.index()];
        let mut out = vec![0.0; 4];
        collective.all_gather(&[3, 0, 1], mine, &mut out).unwrap();
        out
    });
    assert!(all.iter().flatten().all(|out| *out == [1.0, 2.0, 3.0, 4.0]));
}

#[test]
fn stages_gather_apart_and_pass_values_on() {
    let topology = Topology {
        tensor: 3,
        pipeline: 3,
    };
    // As many ranks in every stage, fewer in the one in the middle, and more than in the one before.
    for lost in [&[][..], &[4], &[1, 2, 8]] {
        let members = Members::new(topology, lost).unwrap();
        for scatter_bytes in [0, usize::MAX] {
            for n in [1, 2, 50] {
                let got = on_all(of_members(&members, Duration::from_secs(20)), |mut collective| {
                    collective.set_scatter_bytes(scatter_bytes);
                    through_three_stages(&mut collective, n)
                });
                let want: Vec<f32> = (0..n).map(|element| element as f32 * 8.0 + 7.0).collect();
                for got in got {
                    let last = &got[got.len() - members.last_stage().len()..];
                    assert!(
                        last.iter().all(|values| *values == want),
                        "{members}, {n} values: {got:?}"
                    );
                }
            }
        }
    }
}

/// Every stage doubles what it is given and adds one; all ranks of a stage agree before that.
fn through_three_stages(collective: &mut Collective, n: usize) -> Vec<f32> {
    let mut values: Vec<f32> = (0..n).map(|element| element as f32).collect();
    if collective.has_stage_before() {
        values.fill(f32::NAN);
        collective.take_over(&mut values).unwrap();
    }
    let world = collective.world();
    let mut all = vec![0.0; world];
    collective
        .all_gather(&vec![1; world], &values[..1], &mut all)
        .unwrap();
    assert!(all.iter().all(|first| *first == values[0]));
    values.iter_mut().for_each(|value| *value = *value * 2.0 + 1.0);
    if collective.has_stage_behind() {
        collective.pass_on(&values).unwrap();
    }
    values
}

/// A stage computes many layers before it has something to pass on, and each of them may take as long as ranks wait for each other.
#[test]
fn a_stage_that_computes_for_long_has_not_stalled() {
    let deadline = Duration::from_millis(200);
    let stages = Topology {
        tensor: 1,
        pipeline: 2,
    };
    let got = on_all(of_members(&stages.into(), deadline), |mut collective| {
        let mut value = [7.0];
        if collective.has_stage_before() {
            collective.take_over(&mut value).unwrap();
        } else {
            let began = std::time::Instant::now();
            while began.elapsed() < deadline * 2 {
                std::thread::yield_now();
            }
            collective.pass_on(&[8.0]).unwrap();
        }
        value
    });
    assert_eq!(got, [[[7.0], [8.0]], [[7.0], [8.0]]]);
}

#[test]
fn a_stalled_peer_is_named() {
    let done = std::sync::Barrier::new(2);
    let errors = on_all(group(2, Duration::from_millis(100)), |mut collective| {
        let error = (collective.index() == 0).then(|| collective.all_gather(&[1; 2], &[0.0], &mut [0.0; 2]));
        done.wait();
        error
    });
    for errors in errors {
        assert!(
            matches!(
                errors[0],
                Some(Err(BackendError::Lost(MeshError::Deadline {
                    rank: 1,
                    millis: 1..=100
                })))
            ),
            "{:?}",
            errors[0]
        );
    }
}

#[test]
fn buffers_of_wrong_size_are_bugs() {
    let mesh = Box::new(TcpMesh::alone(ERA));
    let mut alone = Collective::new(mesh, Waits::new(Duration::from_secs(1), false));
    let reduction = Reduction::new(&even(4, 1));
    assert!(matches!(
        alone.reduce_tree(&reduction, &[0.0; 5], &mut [0.0; 6]),
        Err(BackendError::Bug(_))
    ));
    assert!(matches!(
        alone.all_gather(&[2], &[0.0], &mut [0.0; 2]),
        Err(BackendError::Bug(_))
    ));
}
