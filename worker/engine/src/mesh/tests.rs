//! Exchanges over loopback, and files between ranks of one pod.

use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::local::{all_to_all, local_mesh};
use super::{Label, Members, Mesh, MeshError, TcpMesh, Topology, Transfer, Wait};
use crate::step::Era;

const ERA: Era = Era {
    generation: 3,
    epoch: 2,
};
const LONG: Duration = Duration::from_secs(60);

fn mesh(world: u32) -> Vec<TcpMesh> {
    local_mesh(&Topology::tensor(world).into(), ERA).unwrap()
}

/// Run `work` on every rank in its own thread; results in rank order.
fn on_all<T: Send>(mesh: Vec<TcpMesh>, work: impl Fn(TcpMesh) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = mesh.into_iter().map(|one| scope.spawn(|| work(one))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn more_than_the_sockets_hold_goes_both_ways_at_once() {
    const MANY: usize = 16 << 20;
    let ends = on_all(mesh(3), |mut mesh| {
        let label = Label { step: 1, tag: 0 };
        let mine = vec![mesh.rank() as u8 + 1; MANY];
        all_to_all(&mut mesh, label, &mine, LONG)
            .unwrap()
            .iter()
            .map(|theirs| (theirs[0], theirs[MANY - 1]))
            .collect::<Vec<_>>()
    });
    assert_eq!(ends, [[(2, 2), (3, 3)], [(1, 1), (3, 3)], [(1, 1), (2, 2)]]);
}

#[test]
fn ranks_that_diverge_are_found() {
    let diverged = |label: fn(u32) -> Label| {
        let errors = on_all(mesh(2), |mut mesh| {
            let label = label(mesh.rank());
            all_to_all(&mut mesh, label, &[0], LONG).unwrap_err()
        });
        assert!(
            errors
                .iter()
                .any(|error| matches!(error, MeshError::Protocol { .. })),
            "{errors:?}"
        );
    };
    diverged(|rank| Label {
        step: 7 + u64::from(rank),
        tag: 0,
    });
    diverged(|rank| Label {
        step: 7,
        tag: rank as u16,
    });
}

#[test]
fn a_stalled_peer_is_named_by_everybody() {
    // Rank 2 keeps its links open and takes no part until the others are done; rank 1, which has rank 0's part already
    // and would wait for minutes, hears of it from rank 0.
    let done = std::sync::Barrier::new(3);
    let errors = on_all(mesh(3), |mut mesh| {
        let error = (mesh.rank() < 2).then(|| {
            let wait = [Duration::from_secs(2), Duration::from_secs(600)][mesh.rank() as usize];
            all_to_all(&mut mesh, Label::default(), &[0], wait).unwrap_err()
        });
        done.wait();
        error
    });
    // What was left of the wait when the exchange began, which a busy machine begins late.
    assert!(
        matches!(
            errors[0],
            Some(MeshError::Deadline {
                rank: 2,
                millis: 1000..=2000
            })
        ),
        "{errors:?}"
    );
    assert_eq!((&errors[1], &errors[2]), (&errors[0], &None));
}

#[test]
fn a_lost_peer_is_an_error_everywhere_and_stays_one() {
    let seen = std::sync::Barrier::new(3);
    let errors = on_all(mesh(4), |mut mesh| {
        if mesh.rank() == 3 {
            drop(mesh);
            return None;
        }
        let error = all_to_all(&mut mesh, Label::default(), &[0], LONG).unwrap_err();
        assert_eq!(
            all_to_all(&mut mesh, Label::default(), &[0], LONG),
            Err(error.clone()),
            "it stays failed"
        );
        seen.wait();
        Some(error)
    });
    for error in &errors[..3] {
        assert!(
            matches!(error, Some(MeshError::PeerLost { rank: 3, .. })),
            "{error:?}"
        );
    }
}

#[test]
fn abort_ends_a_wait() {
    let mut both = mesh(2);
    let _silent = both.pop();
    let mut waiting = both.pop().unwrap();
    let abort = waiting.abort_handle();
    let thread = std::thread::spawn(move || {
        all_to_all(&mut waiting, Label::default(), &[0], Duration::from_secs(600))
    });
    abort.abort();
    assert_eq!(thread.join().unwrap(), Err(MeshError::Aborted));
}

/// Who has other work asks first whether a frame comes. One that has begun to is not missed, and the end of the peer is told.
#[test]
fn whether_a_frame_has_begun_to_come_is_known_without_waiting() {
    let both = std::sync::Barrier::new(2);
    on_all(mesh(2), |mut mesh| {
        let (label, wait) = (
            Label { step: 3, tag: 4 },
            Wait {
                until: Instant::now() + LONG,
                spin: Duration::ZERO,
            },
        );
        let transfer = |mesh: &mut TcpMesh, out, into| {
            let peer = 1 - mesh.rank();
            mesh.exchange(label, &mut [Transfer { peer, out, into }], wait)
        };
        if mesh.rank() == 0 {
            both.wait();
            transfer(&mut mesh, Some(&[7; 100_000]), None).unwrap();
            return;
        }
        assert_eq!(mesh.has_begun(0), Ok(false));
        both.wait();
        while !mesh.has_begun(0).unwrap() {
            std::thread::yield_now();
        }
        let mut into = vec![0; 100_000];
        transfer(&mut mesh, None, Some(&mut into)).unwrap();
        assert!(into.iter().all(|byte| *byte == 7));
        let error = loop {
            match mesh.has_begun(0) {
                Ok(begun) => assert!(!begun),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, MeshError::PeerLost { rank: 0, .. }), "{error:?}");
        assert_eq!(mesh.has_begun(0), Err(error), "it stays failed");
    });
}

#[test]
fn survivors_keep_their_numbers() {
    let members = Members::new(Topology::tensor(5), &[3, 1]).unwrap();
    let heard = on_all(local_mesh(&members, ERA).unwrap(), |mut mesh| {
        let mine = [mesh.rank() as u8];
        (
            mesh.rank(),
            all_to_all(&mut mesh, Label::default(), &mine, LONG)
                .unwrap()
                .concat(),
        )
    });
    assert_eq!(heard, [(0, vec![2, 4]), (2, vec![0, 4]), (4, vec![0, 2])]);
}

#[test]
fn unknown_and_unordered_peers_are_refused() {
    let wait = Wait {
        until: Instant::now() + LONG,
        spin: Duration::ZERO,
    };
    for peers in [&[0][..], &[3], &[2, 1], &[1, 1]] {
        let mut mesh = mesh(3).remove(0);
        let mut frames: Vec<Transfer<'_>> = peers
            .iter()
            .map(|peer| Transfer {
                peer: *peer,
                out: Some(&[1]),
                into: None,
            })
            .collect();
        let error = mesh.exchange(Label::default(), &mut frames, wait).unwrap_err();
        assert!(matches!(error, MeshError::Protocol { .. }), "{peers:?}: {error}");
    }
}

#[test]
fn files_cross_inside_a_pod() {
    let texts = on_all(mesh(2), |mut mesh| {
        let until = Instant::now() + LONG;
        if mesh.rank() == 0 {
            let mut files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
            for (file, text) in files.iter_mut().zip(["one", "two"]) {
                file.write_all(text.as_bytes()).unwrap();
            }
            mesh.send_files(1, &files.each_ref().map(AsFd::as_fd), until)
                .unwrap();
            return vec![];
        }
        let files = mesh.receive_files(0, 2, until).unwrap();
        let read = |file| {
            let mut file = std::fs::File::from(file);
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        files.into_iter().map(read).collect()
    });
    assert_eq!(texts[1], ["one", "two"]);
}

#[test]
fn another_number_of_files_is_an_error() {
    let errors = on_all(mesh(2), |mut mesh| {
        let until = Instant::now() + LONG;
        if mesh.rank() == 0 {
            let file = tempfile::tempfile().unwrap();
            mesh.send_files(1, &[file.as_fd()], until).unwrap();
            // The peer closes the link once it has seen what came.
            return all_to_all(&mut mesh, Label::default(), &[0], LONG).unwrap_err();
        }
        mesh.receive_files(0, 2, until).unwrap_err()
    });
    assert!(
        matches!(errors[1], MeshError::Protocol { rank: 0, .. }),
        "{}",
        errors[1]
    );
}

#[test]
fn a_rank_alone_has_nobody_to_pass_files_to() {
    let mut mesh = TcpMesh::alone(ERA);
    let file = tempfile::tempfile().unwrap();
    let until = Instant::now() + LONG;
    assert_eq!(
        mesh.send_files(1, &[file.as_fd()], until),
        Err(MeshError::NotLocal { rank: 1 })
    );
    assert_eq!(
        mesh.receive_files(1, 1, until).unwrap_err(),
        MeshError::NotLocal { rank: 1 }
    );
    assert_eq!(
        mesh.exchange(
            Label::default(),
            &mut [],
            Wait {
                until,
                spin: Duration::ZERO
            }
        ),
        Ok(())
    );
}
