//! A member that does not read what the leader sends.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use super::group::LONG;
use crate::mesh::{Connection, ControlLink, EraAbort, LinkKind, MeshError, Message, Outbox, Topology};
use crate::runtime::executor::{Executor, LeaderLink, Patience};
use crate::step::{Era, Late};

const ERA: Era = Era {
    generation: 1,
    epoch: 1,
};
/// Far more than the sockets hold.
const MESSAGES: u64 = 40;
const MESSAGE: usize = 1 << 20;

/// Bytes that a socket is told to hold: the usual ones grow on some machines to more than all messages.
const SOCKET: usize = 256 << 10;

/// Both ends of a plan link to `rank`.
fn link(rank: u32) -> (ControlLink, ControlLink) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    // Connections that are accepted take over what the listener has.
    sockopt::set_socket_recv_buffer_size(&listener, SOCKET).unwrap();
    let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    sockopt::set_socket_send_buffer_size(&here, SOCKET).unwrap();
    let (there, _) = listener.accept().unwrap();
    let link = |stream, own, peer| {
        let connection = Connection::without_handshake(stream, (own, peer), ERA, LinkKind::Plan).unwrap();
        ControlLink::new(connection, peer, ERA, Arc::new(EraAbort::default()))
    };
    (link(here, 0, rank), link(there, rank, 0))
}

/// A leader of three that lets rank 1 read nothing for `stall`, and rank 2 for long; the other ends of its links to them, and
/// what it hears of lost links.
fn leader(stall: Duration) -> (Executor, [ControlLink; 2], Receiver<MeshError>) {
    let (sender, lost) = mpsc::channel();
    let outbox = |link, stall| {
        let sender = sender.clone();
        LeaderLink::Remote(Outbox::new(Arc::new(link), stall, move |error| {
            let _ = sender.send(error);
        }))
    };
    let ((one, end_of_one), (two, end_of_two)) = (link(1), link(2));
    let (own, _) = mpsc::channel();
    let links = vec![LeaderLink::Local(own), outbox(one, stall), outbox(two, LONG)];
    let patience = Patience {
        stall,
        form: LONG,
        progress: LONG,
    };
    let executor = Executor::new(ERA, &Topology::tensor(3).into(), links, patience, Instant::now());
    (executor, [end_of_one, end_of_two], lost)
}

/// A large message that is known by its step.
fn large(step: u64) -> (u64, Late) {
    let masks = vec![((0, 0), vec![step as u8; MESSAGE])];
    let late = Late::Sampling {
        biases: Vec::new(),
        masks,
        repetitions: Vec::new(),
    };
    (step, late)
}

fn send_all(executor: &mut Executor) {
    for step in 1..=MESSAGES {
        executor.late(vec![large(step)], Instant::now()).unwrap();
    }
}

fn receive_all(link: &ControlLink) {
    for step in 1..=MESSAGES {
        let (at, late) = large(step);
        assert_eq!(link.receive().unwrap(), (at, Message::Late(late)));
    }
}

#[test]
fn one_that_does_not_read_holds_up_nobody_else_and_misses_nothing() {
    let (mut executor, [slow, other], lost) = leader(LONG);
    // Everything is sent before anybody reads.
    send_all(&mut executor);
    receive_all(&other);
    // The other one goes on to hear the leader while this one still does not read.
    executor.late(vec![large(99)], Instant::now()).unwrap();
    assert_eq!(other.receive().unwrap().0, 99);
    receive_all(&slow);
    assert_eq!(slow.receive().unwrap().0, 99);
    // Once it has caught up, messages go out at once again.
    executor.leave(Instant::now());
    for link in [&slow, &other] {
        assert_eq!(link.receive().unwrap(), (0, Message::Leave));
    }
    assert!(lost.try_recv().is_err());
}

#[test]
fn one_that_reads_nothing_for_too_long_is_blamed_and_nobody_else() {
    let (mut executor, [_stuck, other], lost) = leader(Duration::from_millis(300));
    let reader = std::thread::spawn(move || {
        receive_all(&other);
        other
    });
    for step in 1..=MESSAGES {
        // Fails once the one that reads nothing is lost; it is behind the other in the order of sending.
        let _ = executor.late(vec![large(step)], Instant::now());
    }
    let late = MeshError::Deadline { rank: 1, millis: 300 };
    assert_eq!(lost.recv_timeout(LONG), Ok(late.clone()));
    let _other = reader.join().unwrap();
    assert_eq!(
        executor.late(vec![large(99)], Instant::now()),
        Err(late),
        "it stays lost"
    );
    assert!(lost.try_recv().is_err());
}

#[test]
fn what_waits_for_one_that_does_not_read_is_bounded() {
    let (mut executor, _ends, _lost) = leader(LONG);
    let error = (1..=200)
        .map(|step| executor.late(vec![large(step)], Instant::now()))
        .find_map(Result::err);
    match error {
        Some(MeshError::PeerLost { rank: 2, reason }) => {
            assert!(reason.contains("does not read"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}
