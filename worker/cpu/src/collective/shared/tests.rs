//! Exchanges through shared memory.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use llamero_engine::mesh::TcpMesh;
use llamero_engine::mesh::local::{all_to_all, local_mesh};
use llamero_engine::{Abort, Era, Label, Members, Mesh, MeshError, Topology, Transfer, Wait};

use super::SharedMesh;

const ERA: Era = Era {
    generation: 3,
    epoch: 2,
};
const LONG: Duration = Duration::from_secs(60);

/// Run `work` on every rank in its own thread; results in rank order.
fn on_all<T: Send>(world: u32, work: impl Fn(Box<dyn Mesh>) -> T + Sync) -> Vec<T> {
    on_all_of(world, |mesh| mesh, work)
}

fn on_all_of<M: Mesh + 'static, T: Send>(
    world: u32,
    below: impl Fn(TcpMesh) -> M + Sync,
    work: impl Fn(Box<dyn Mesh>) -> T + Sync,
) -> Vec<T> {
    let meshes = local_mesh(&Topology::tensor(world).into(), ERA).unwrap();
    let run = |mesh| work(SharedMesh::over(Box::new(below(mesh)), Instant::now() + LONG).unwrap());
    std::thread::scope(|scope| {
        let threads: Vec<_> = meshes.into_iter().map(|mesh| scope.spawn(|| run(mesh))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn waiting(wait: Duration) -> Wait {
    Wait {
        until: Instant::now() + wait,
        spin: Duration::from_micros(30),
    }
}

#[test]
fn frames_of_any_length_go_both_ways_at_once() {
    // Nothing, less than a datum, and many times what a ring holds.
    for length in [0, 1, 7, 8, 2304, (256 << 10) - 48, (3 << 20) + 5] {
        let heard = on_all(3, |mut mesh| {
            (1..=4_u8).all(|step| {
                let byte = |at: usize, rank: u32| (at as u8).wrapping_mul(31) ^ (rank as u8) ^ step;
                let mine: Vec<u8> = (0..length).map(|at| byte(at, mesh.rank())).collect();
                let label = Label {
                    step: step.into(),
                    tag: 0,
                };
                let theirs = all_to_all(&mut *mesh, label, &mine, LONG).unwrap();
                let peers = (0..3).filter(|peer| *peer != mesh.rank());
                peers
                    .zip(theirs)
                    .all(|(peer, theirs)| theirs.iter().enumerate().all(|(at, got)| *got == byte(at, peer)))
            })
        });
        assert_eq!(heard, [true; 3], "{length} bytes");
    }
}

#[test]
fn one_way_frames_wait_for_room() {
    const FRAMES: u64 = 2000;
    let heard = on_all(2, |mut mesh| {
        for step in 0..FRAMES {
            let (mine, mut theirs) = (vec![step as u8; 1001], vec![0; 1001]);
            let is_sender = mesh.rank() == 0;
            let transfer = Transfer {
                peer: 1 - mesh.rank(),
                out: is_sender.then_some(mine.as_slice()),
                into: (!is_sender).then_some(theirs.as_mut_slice()),
            };
            mesh.exchange(Label { step, tag: 1 }, &mut [transfer], waiting(LONG))
                .unwrap();
            if !is_sender && theirs != mine {
                return false;
            }
        }
        true
    });
    assert_eq!(heard, [true; 2]);
}

#[test]
fn ranks_that_diverge_are_found() {
    let errors = on_all(2, |mut mesh| {
        let label = Label {
            step: 7 + u64::from(mesh.rank()),
            tag: 0,
        };
        all_to_all(&mut *mesh, label, &[0], LONG).unwrap_err()
    });
    let is_protocol = |error: &MeshError| matches!(error, MeshError::Protocol { .. });
    assert!(errors.iter().any(is_protocol), "{errors:?}");
}

#[test]
fn a_stalled_peer_is_named_by_everybody() {
    let done = std::sync::Barrier::new(3);
    let errors = on_all(3, |mut mesh| {
        let error = (mesh.rank() < 2).then(|| {
            let wait = [Duration::from_secs(2), Duration::from_secs(600)][mesh.rank() as usize];
            all_to_all(&mut *mesh, Label::default(), &[0], wait).unwrap_err()
        });
        done.wait();
        error
    });
    let late = matches!(
        errors[0],
        Some(MeshError::Deadline {
            rank: 2,
            millis: 1000..=2000
        })
    );
    assert!(late, "{errors:?}");
    // It would have waited for minutes, and was told.
    assert_eq!((&errors[1], &errors[2]), (&errors[0], &None));
}

#[test]
fn a_lost_peer_is_an_error_everywhere_and_stays_one() {
    let seen = std::sync::Barrier::new(3);
    let errors = on_all(4, |mut mesh| {
        if mesh.rank() == 3 {
            drop(mesh);
            return None;
        }
        let error = all_to_all(&mut *mesh, Label::default(), &[0], LONG).unwrap_err();
        let again = all_to_all(&mut *mesh, Label::default(), &[0], LONG);
        assert_eq!(again, Err(error.clone()), "it stays failed");
        seen.wait();
        Some(error)
    });
    for error in &errors[..3] {
        let named = matches!(error, Some(MeshError::PeerLost { rank: 3, .. }));
        assert!(named, "{errors:?}");
    }
}

#[test]
fn what_a_peer_gave_before_it_left_counts() {
    let heard = on_all(2, |mut mesh| {
        let (mine, mut theirs) = ([5; 100], [0; 100]);
        let is_sender = mesh.rank() == 0;
        let transfer = Transfer {
            peer: 1 - mesh.rank(),
            out: is_sender.then_some(&mine[..]),
            into: (!is_sender).then_some(&mut theirs[..]),
        };
        mesh.exchange(Label::default(), &mut [transfer], waiting(LONG))
            .unwrap();
        theirs
    });
    assert_eq!(heard[1], [5; 100]);
}

#[test]
fn abort_ends_a_wait() {
    let noticed = std::sync::Barrier::new(2);
    let errors = on_all(2, |mut mesh| {
        let error = (mesh.rank() == 0).then(|| {
            let abort = mesh.abort_handle();
            std::thread::scope(|scope| {
                scope.spawn(|| abort.abort());
                all_to_all(&mut *mesh, Label::default(), &[0], Duration::from_secs(600)).unwrap_err()
            })
        });
        // Rank 1 is silent, and there until then.
        noticed.wait();
        error
    });
    assert_eq!(errors[0], Some(MeshError::Aborted));
}

/// Two pods of two ranks each.
struct TwoPods(TcpMesh);

impl Mesh for TwoPods {
    fn members(&self) -> &Members {
        self.0.members()
    }

    fn rank(&self) -> u32 {
        self.0.rank()
    }

    fn era(&self) -> Era {
        self.0.era()
    }

    fn is_local(&self, peer: u32) -> bool {
        peer / 2 == self.0.rank() / 2
    }

    fn exchange(&mut self, label: Label, frames: &mut [Transfer<'_>], wait: Wait) -> Result<(), MeshError> {
        let inside = frames.iter().any(|frame| self.is_local(frame.peer));
        assert!(!inside, "a frame inside a pod over TCP");
        self.0.exchange(label, frames, wait)
    }

    fn listen(&mut self, owed: &[u32]) -> Result<(), MeshError> {
        self.0.listen(owed)
    }

    fn fail(&mut self, step: u64, error: &MeshError) {
        self.0.fail(step, error);
    }

    fn send_files(&mut self, peer: u32, files: &[BorrowedFd<'_>], until: Instant) -> Result<(), MeshError> {
        self.0.send_files(peer, files, until)
    }

    fn receive_files(&mut self, peer: u32, count: usize, until: Instant) -> Result<Vec<OwnedFd>, MeshError> {
        self.0.receive_files(peer, count, until)
    }

    fn abort_handle(&self) -> Arc<dyn Abort> {
        self.0.abort_handle()
    }
}

#[test]
fn ranks_of_other_pods_are_reached_over_tcp() {
    let lost = std::sync::Barrier::new(3);
    let heard = on_all_of(4, TwoPods, |mut mesh| {
        for length in [8, 2304, 3 << 20] {
            let mine = vec![mesh.rank() as u8; length];
            let theirs = all_to_all(&mut *mesh, Label::default(), &mine, LONG).unwrap();
            let ranks = (0..4_u8).filter(|rank| u32::from(*rank) != mesh.rank());
            assert!(
                ranks
                    .zip(theirs)
                    .all(|(rank, theirs)| theirs == vec![rank; length])
            );
        }
        if mesh.rank() == 3 {
            return None;
        }
        let error = all_to_all(&mut *mesh, Label::default(), &[0], LONG).unwrap_err();
        lost.wait();
        Some(error)
    });
    for error in &heard[..3] {
        let named = matches!(error, Some(MeshError::PeerLost { rank: 3, .. }));
        assert!(named, "{heard:?}");
    }
}

/// `cargo test -p llamero-cpu --release --lib collective::shared -- --ignored --nocapture`
#[test]
#[ignore = "a measurement: run it alone"]
fn speed() {
    for bytes in [2304, 64 << 10] {
        let mut medians = [Vec::new(), Vec::new()];
        for round in 0..10 {
            let meshes = local_mesh(&Topology::tensor(2).into(), ERA).unwrap();
            let is_shared = round % 2 == 1;
            let run = |mesh: TcpMesh| {
                let mut mesh: Box<dyn Mesh> = Box::new(mesh);
                if is_shared {
                    mesh = SharedMesh::over(mesh, Instant::now() + LONG).unwrap();
                }
                let mine = vec![1; bytes];
                let mut times: Vec<Duration> = (0..5000)
                    .map(|step| {
                        let start = Instant::now();
                        all_to_all(&mut *mesh, Label { step, tag: 0 }, &mine, LONG).unwrap();
                        start.elapsed()
                    })
                    .collect();
                times.sort_unstable();
                times[times.len() / 2]
            };
            let median = std::thread::scope(|scope| {
                let threads: Vec<_> = meshes.into_iter().map(|mesh| scope.spawn(|| run(mesh))).collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .max()
                    .unwrap()
            });
            medians[usize::from(is_shared)].push(median);
        }
        let [tcp, shared] = medians.map(|mut all| {
            all.sort_unstable();
            all[all.len() / 2]
        });
        println!(
            "{bytes} bytes each way: TCP {tcp:?}, shared memory {shared:?} (medians of medians, alternated)"
        );
    }
}
