//! What arrives on the links of an era, sealed by keys that somebody between the ranks does not have. Whatever is changed, what comes out is
//! what was sent, from the beginning on, and then an error.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use llamero_engine::mesh::{
    Connection, ControlLink, DataLink, Label, LinkKind, Mesh as _, Message, TcpMesh, Topology, Transfer, Wait,
};
use llamero_fuzz::{Shape, Target, drive};
use rustix::net::sockopt::set_socket_linger;

use crate::ranks::{ERA, messages};

const LONG: Duration = Duration::from_secs(60);
/// Payloads of a data link: within what is read ahead, of a decode step, and beyond.
const LENGTHS: [usize; 3] = [40, 2304, 20_000];

/// Both ends of a connection. Closing them leaves no port that waits, since there are thousands of them in a run.
fn streams(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    for end in [&dialled, &accepted] {
        set_socket_linger(end, Some(Duration::ZERO)).unwrap();
    }
    (dialled, accepted)
}

fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

fn end(stream: TcpStream, ranks: (u32, u32), link: LinkKind) -> Connection {
    Connection::without_handshake(stream, ranks, ERA, link).unwrap()
}

/// The end of rank 1, to which somebody says `input` and then closes. The other end is to be kept until all of it is read.
fn heard(listener: &TcpListener, input: &[u8], link: LinkKind) -> (Connection, TcpStream) {
    let (mut sender, receiver) = streams(listener);
    sender.set_write_timeout(Some(LONG)).unwrap();
    sender.write_all(input).unwrap();
    sender.shutdown(Shutdown::Write).unwrap();
    (end(receiver, (1, 0), link), sender)
}

/// What rank 0 says on a link.
fn said(link: LinkKind, say: impl FnOnce(Connection)) -> Vec<u8> {
    let (sender, mut receiver) = streams(&listener());
    // Its socket is closed by what `say` drops, so that all must be read before.
    receiver
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let kept = sender.try_clone().unwrap();
    say(end(sender, (0, 1), link));
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = receiver.read(&mut piece) {
        bytes.extend_from_slice(piece.get(..count).unwrap_or_default());
    }
    drop(kept);
    bytes
}

fn target(name: &'static str) -> Target {
    Target {
        name,
        shape: Shape::Bytes,
        factor: 300,
        constant: 256 << 10,
        threads: false,
    }
}

#[test]
fn sealed_messages() {
    let messages: Vec<(u64, Message)> = (1..).zip(messages()).collect();
    let stream = said(LinkKind::Plan, |connection| {
        let link = ControlLink::new(connection, 1, ERA, Arc::default());
        for (step, message) in &messages {
            link.send(*step, message.clone(), LONG).unwrap();
        }
    });
    let part = stream.get(..stream.len() / 2).unwrap_or_default().to_vec();
    drive(target("plan-link"), || {
        let listener = listener();
        let whole = stream.clone();
        (vec![stream, part], move |input: &[u8]| {
            let (connection, _sender) = heard(&listener, input, LinkKind::Plan);
            let link = ControlLink::new(connection, 0, ERA, Arc::default());
            let mut words = String::new();
            for sent in &messages {
                match link.receive() {
                    Ok(message) => {
                        // NaN is among them, so they are compared as they are written.
                        assert_eq!(format!("{message:?}"), format!("{sent:?}"), "it was not sent so");
                        words += "m";
                    }
                    Err(error) => return format!("{words} {error}"),
                }
            }
            assert!(input.starts_with(&whole), "all came, and not all was sent");
            link.receive().expect_err("more came than was sent").to_string()
        })
    });
}

fn payload(step: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + step) as u8).collect()
}

fn mesh(rank: u32, connection: Connection) -> TcpMesh {
    let link = DataLink::new(connection, 1 - rank);
    TcpMesh::new(rank, Topology::tensor(2).into(), ERA, vec![link], Arc::default()).unwrap()
}

fn label(step: usize) -> Label {
    Label {
        step: step as u64,
        tag: 0,
    }
}

fn wait() -> Wait {
    Wait {
        until: Instant::now() + LONG,
        spin: Duration::ZERO,
    }
}

#[test]
fn sealed_data() {
    let frames: Vec<Vec<u8>> = (0..)
        .zip(LENGTHS)
        .map(|(step, length)| payload(step, length))
        .collect();
    let stream = said(LinkKind::Data, |connection| {
        let mut mesh = mesh(0, connection);
        for (step, frame) in frames.iter().enumerate() {
            let transfer = Transfer {
                peer: 1,
                out: Some(frame),
                into: None,
            };
            mesh.exchange(label(step), &mut [transfer], wait()).unwrap();
        }
    });
    let part = stream.get(..2000).unwrap_or_default().to_vec();
    drive(target("data-link"), || {
        let listener = listener();
        let whole = stream.clone();
        (vec![stream, part], move |input: &[u8]| {
            let (connection, _sender) = heard(&listener, input, LinkKind::Data);
            let mut mesh = mesh(1, connection);
            let mut words = String::new();
            for (step, frame) in frames.iter().enumerate() {
                let mut bytes = vec![0; frame.len()];
                let transfer = Transfer {
                    peer: 0,
                    out: None,
                    into: Some(&mut bytes),
                };
                match mesh.exchange(label(step), &mut [transfer], wait()) {
                    Ok(()) => {
                        assert_eq!(&bytes, frame, "it was not sent so");
                        words += "f";
                    }
                    Err(error) => return format!("{words} {error}"),
                }
            }
            assert!(input.starts_with(&whole), "all came, and not all was sent");
            words
        })
    });
}
