//! The TCP collective over loopback.

use std::time::Duration;

use super::local::local_mesh;
use super::tcp_collective::{TcpCollective, Waits};
use crate::collective::{Collective, CollectiveError, LeafLayout};
use crate::leaf_tree::{self, Subtree};
use crate::step::Era;

const ERA: Era = Era {
    generation: 3,
    epoch: 2,
};

fn mesh(world: u32, deadline: Duration) -> Vec<TcpCollective> {
    local_mesh(world, ERA, Waits::new(deadline)).unwrap()
}

/// Run `work` on every rank in its own thread; results in rank order.
fn on_all<T: Send>(mesh: Vec<TcpCollective>, work: impl Fn(TcpCollective) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = mesh.into_iter().map(|one| scope.spawn(|| work(one))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn layout(leaves: u32, world: u32) -> LeafLayout {
    LeafLayout {
        owners: (0..world)
            .map(|r| r * leaves / world..(r + 1) * leaves / world)
            .collect(),
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

fn sum(collective: &mut TcpCollective, layout: &LeafLayout, rows: usize, width: usize) -> Vec<f32> {
    let leaves = layout.owners.last().unwrap().end;
    let owned = &layout.owners[collective.rank() as usize];
    let roots: Vec<f32> = leaf_tree::maximal_subtrees(leaves, owned)
        .iter()
        .flat_map(|tree| (0..rows * width).map(|element| node(tree, element)))
        .collect();
    let mut out = vec![0.0; rows * width];
    collective
        .reduce_tree(layout, rows, width, &roots, &mut out)
        .unwrap();
    out
}

#[test]
fn sums_have_the_same_bits_in_every_world_and_both_ways() {
    for (leaves, rows, width) in [(9, 1, 1), (9, 1, 576), (24, 3, 577), (32, 2, 2048)] {
        let whole: Vec<u32> = (0..rows * width)
            .map(|element| node(&(0..leaves), element).to_bits())
            .collect();
        for world in 1..=5 {
            for scatter_bytes in [0, usize::MAX] {
                let sums = on_all(mesh(world, Duration::from_secs(20)), |mut collective| {
                    collective.set_scatter_bytes(scatter_bytes);
                    collective.begin_step(1);
                    sum(&mut collective, &layout(leaves, world), rows, width)
                });
                for sum in sums {
                    let bits: Vec<u32> = sum.iter().map(|value| value.to_bits()).collect();
                    assert!(
                        bits == whole,
                        "{leaves} leaves of [{rows}, {width}], world {world}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_rank_without_leaves_takes_part() {
    let layout = LeafLayout {
        owners: vec![0..2, 2..2, 2..3],
    };
    let sums = on_all(mesh(3, Duration::from_secs(20)), |mut collective| {
        sum(&mut collective, &layout, 1, 4)
    });
    let whole: Vec<f32> = (0..4).map(|element| node(&(0..3), element)).collect();
    assert!(sums.iter().all(|sum| *sum == whole));
}

#[test]
fn more_than_the_sockets_hold_goes_both_ways_at_once() {
    const MANY: usize = 4 << 20;
    let ends = on_all(mesh(3, Duration::from_secs(60)), |mut collective| {
        collective.begin_step(1);
        let mine = vec![collective.rank() as f32 + 1.0; MANY];
        let mut out = vec![0.0; 3 * MANY];
        collective.all_gather(&[MANY; 3], &mine, &mut out).unwrap();
        [out[0], out[MANY - 1], out[MANY], out[3 * MANY - 1]]
    });
    assert!(ends.iter().all(|ends| *ends == [1.0, 1.0, 2.0, 3.0]));
}

#[test]
fn uneven_and_empty_parts_are_gathered() {
    let all = on_all(mesh(3, Duration::from_secs(20)), |mut collective| {
        let mine: &[f32] = [&[1.0, 2.0, 3.0][..], &[], &[4.0]][collective.rank() as usize];
        let mut out = vec![0.0; 4];
        collective.all_gather(&[3, 0, 1], mine, &mut out).unwrap();
        out
    });
    assert!(all.iter().all(|out| *out == [1.0, 2.0, 3.0, 4.0]));
}

#[test]
fn stages_pass_data_on() {
    let got = on_all(mesh(3, Duration::from_secs(20)), |mut collective| {
        let mut data = [5.0, 6.0];
        let rank = collective.rank();
        if rank > 0 {
            collective.recv(rank - 1, &mut data).unwrap();
            data[0] += 1.0;
        }
        if rank < 2 {
            collective.send(rank + 1, &data).unwrap();
        }
        data[0]
    });
    assert_eq!(got, [5.0, 6.0, 7.0]);
}

#[test]
fn a_stalled_peer_is_named_by_everybody() {
    // Rank 2 keeps its links open and takes no part until the others are done.
    let done = std::sync::Barrier::new(3);
    let errors = on_all(mesh(3, Duration::from_millis(200)), |mut collective| {
        collective.begin_step(1);
        if collective.rank() == 2 {
            done.wait();
            return None;
        }
        let error = collective.all_gather(&[1; 3], &[0.0], &mut [0.0; 3]).unwrap_err();
        done.wait();
        Some(error)
    });
    let late = Some(CollectiveError::Deadline { rank: 2, millis: 200 });
    assert_eq!(errors, [late.clone(), late, None]);
}

#[test]
fn who_is_to_blame_is_passed_on() {
    // Rank 0 gives up soon; rank 1, which has rank 0's part already and would wait for minutes, hears of it.
    let done = std::sync::Barrier::new(3);
    let mut mesh = mesh(3, Duration::from_millis(200));
    mesh[1].set_deadline(Duration::from_secs(600));
    let errors = on_all(mesh, |mut collective| {
        let error = (collective.rank() < 2)
            .then(|| collective.all_gather(&[1; 3], &[0.0], &mut [0.0; 3]).unwrap_err());
        done.wait();
        error
    });
    let late = Some(CollectiveError::Deadline { rank: 2, millis: 200 });
    assert_eq!(errors, [late.clone(), late, None]);
}

#[test]
fn a_lost_peer_is_an_error_everywhere() {
    let seen = std::sync::Barrier::new(3);
    let errors = on_all(mesh(4, Duration::from_secs(20)), |mut collective| {
        if collective.rank() == 3 {
            drop(collective);
            return None;
        }
        let error = collective.all_gather(&[1; 4], &[0.0], &mut [0.0; 4]).unwrap_err();
        assert_eq!(
            collective.all_gather(&[1; 4], &[0.0], &mut [0.0; 4]),
            Err(error.clone()),
            "it stays failed"
        );
        seen.wait();
        Some(error)
    });
    for error in &errors[..3] {
        assert!(
            matches!(error, Some(CollectiveError::PeerLost { rank: 3, .. })),
            "{error:?}"
        );
    }
}

#[test]
fn ranks_that_diverge_are_found() {
    let errors = on_all(mesh(2, Duration::from_secs(20)), |mut collective| {
        collective.begin_step(7 + u64::from(collective.rank()));
        collective.all_gather(&[1; 2], &[0.0], &mut [0.0; 2]).unwrap_err()
    });
    assert!(
        errors
            .iter()
            .any(|error| matches!(error, CollectiveError::Protocol { .. })),
        "{errors:?}"
    );
}

#[test]
fn abort_ends_a_wait() {
    let mut mesh = mesh(2, Duration::from_secs(600));
    let _silent = mesh.pop();
    let mut waiting = mesh.pop().unwrap();
    let abort = waiting.abort_handle();
    let thread = std::thread::spawn(move || waiting.recv(1, &mut [0.0]));
    abort.abort();
    assert_eq!(thread.join().unwrap(), Err(CollectiveError::Aborted));
}

#[test]
fn buffers_of_wrong_size_are_refused() {
    let mut alone = mesh(1, Duration::from_secs(1)).pop().unwrap();
    let layout = layout(4, 1);
    assert!(
        alone
            .reduce_tree(&layout, 2, 3, &[0.0; 5], &mut [0.0; 6])
            .is_err()
    );
    assert!(alone.all_gather(&[2], &[0.0], &mut [0.0; 2]).is_err());
    assert!(alone.send(0, &[0.0]).is_err());
}
