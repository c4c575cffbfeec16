//! Somebody between two ranks who reads, changes and sends what crosses their links.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::key::SECRET_BYTES;
use super::seal::{HEAD, LinkContext, RECORD, TAG};
use super::{
    Connection, ControlLink, DataLink, EraAbort, GroupKey, Label, LinkKind, Mesh, MeshError, Message,
    TcpMesh, Topology, Transfer, Wait,
};
use crate::step::Era;

const ERA: Era = Era {
    generation: 3,
    epoch: 2,
};
const LONG: Duration = Duration::from_secs(60);
/// A frame of a decode step, and what it is on the way.
const BYTES: usize = 2304;
const FRAME: usize = HEAD + BYTES + TAG;
const FORGED: MeshError = MeshError::Forged { rank: 0 };

/// Both ends of a connection, and the way from one to the other in somebody's hands.
struct Tapped {
    from: TcpStream,
    to: TcpStream,
}

fn streams() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (dialled, listener.accept().unwrap().0)
}

/// The ends of ranks 0 and 1, each with its era and key, and who sits between them.
fn tapped(link: LinkKind, ends: [(Era, [u8; SECRET_BYTES]); 2]) -> ([Connection; 2], Tapped) {
    let ((one, from), (other, to)) = (streams(), streams());
    let connect = |stream: TcpStream, (era, key), ranks| {
        super::socket::prepare(&stream).unwrap();
        let context = LinkContext {
            era,
            link,
            challenge: [1; SECRET_BYTES],
            nonce: [2; SECRET_BYTES],
        };
        Connection::new(stream, &GroupKey::from(key), &context, ranks).unwrap()
    };
    let ends = [connect(one, ends[0], (0, 1)), connect(other, ends[1], (1, 0))];
    (ends, Tapped { from, to })
}

fn mesh(rank: u32, era: Era, connection: Connection) -> TcpMesh {
    let link = DataLink::new(connection, 1 - rank);
    TcpMesh::new(rank, Topology::tensor(2).into(), era, vec![link], Arc::default()).unwrap()
}

fn data_link() -> (TcpMesh, TcpMesh, Tapped) {
    let ([one, other], tapped) = tapped(LinkKind::Data, [(ERA, [7; SECRET_BYTES]); 2]);
    (mesh(0, ERA, one), mesh(1, ERA, other), tapped)
}

fn wait() -> Wait {
    Wait {
        until: Instant::now() + LONG,
        spin: Duration::ZERO,
    }
}

fn send(mesh: &mut TcpMesh, step: u64, bytes: &[u8]) {
    let transfer = Transfer {
        peer: 1,
        out: Some(bytes),
        into: None,
    };
    mesh.exchange(Label { step, tag: 0 }, &mut [transfer], wait())
        .unwrap();
}

fn receive(mesh: &mut TcpMesh, step: u64, length: usize) -> Result<Vec<u8>, MeshError> {
    let mut bytes = vec![0; length];
    let transfer = Transfer {
        peer: 0,
        out: None,
        into: Some(&mut bytes),
    };
    mesh.exchange(Label { step, tag: 0 }, &mut [transfer], wait())?;
    Ok(bytes)
}

impl Tapped {
    fn hear(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.from.set_read_timeout(Some(LONG)).unwrap();
        self.from.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn say(&mut self, bytes: &[u8]) {
        self.to.write_all(bytes).unwrap();
    }

    /// The frames of steps 1 and 2, each of its own bytes.
    fn two_frames(&mut self, sender: &mut TcpMesh) -> [Vec<u8>; 2] {
        [1, 2].map(|step| {
            send(sender, step, &[step as u8; BYTES]);
            self.hear(FRAME)
        })
    }
}

#[test]
fn what_is_passed_on_as_it_is_arrives() {
    let (mut sender, mut receiver, mut tapped) = data_link();
    let [one, two] = tapped.two_frames(&mut sender);
    assert!(!one.windows(8).any(|bytes| bytes == [1; 8]), "it is encrypted");
    // In pieces of any size, two frames at once.
    for piece in [one, two].concat().chunks(1000) {
        tapped.say(piece);
    }
    assert_eq!(receive(&mut receiver, 1, BYTES), Ok(vec![1; BYTES]));
    assert_eq!(receive(&mut receiver, 2, BYTES), Ok(vec![2; BYTES]));
}

#[test]
fn a_flipped_bit_anywhere_ends_the_link() {
    for at in [
        0,
        5,
        36,
        HEAD - TAG,
        HEAD - 1,
        HEAD,
        HEAD + BYTES - 1,
        HEAD + BYTES,
        FRAME - 1,
    ] {
        let (mut sender, mut receiver, mut tapped) = data_link();
        send(&mut sender, 1, &[1; BYTES]);
        let mut frame = tapped.hear(FRAME);
        frame[at] ^= 0x10;
        tapped.say(&frame);
        assert_eq!(receive(&mut receiver, 1, BYTES), Err(FORGED), "byte {at}");
        assert_eq!(receive(&mut receiver, 1, BYTES), Err(FORGED), "it stays ended");
    }
}

#[test]
fn replayed_reordered_and_missing_frames_end_the_link() {
    let (mut sender, mut receiver, mut tapped) = data_link();
    let [one, _] = tapped.two_frames(&mut sender);
    tapped.say(&[one.clone(), one].concat());
    assert_eq!(receive(&mut receiver, 1, BYTES), Ok(vec![1; BYTES]));
    // It says step 1, as the one that was opened did.
    assert_eq!(receive(&mut receiver, 1, BYTES), Err(FORGED), "replayed");

    let (mut sender, mut receiver, mut tapped) = data_link();
    let [one, two] = tapped.two_frames(&mut sender);
    tapped.say(&[two, one].concat());
    assert_eq!(receive(&mut receiver, 2, BYTES), Err(FORGED), "reordered");

    let (mut sender, mut receiver, mut tapped) = data_link();
    let [_, two] = tapped.two_frames(&mut sender);
    tapped.say(&two);
    assert_eq!(receive(&mut receiver, 2, BYTES), Err(FORGED), "one left out");
}

#[test]
fn records_of_a_large_frame_cannot_change_places() {
    const LARGE: usize = 2 * RECORD;
    let (mut sender, mut receiver, mut tapped) = data_link();
    let sending = std::thread::spawn(move || {
        send(&mut sender, 1, &[[1; RECORD], [2; RECORD]].concat());
        sender
    });
    let frame = tapped.hear(HEAD + LARGE + 2 * TAG);
    let (head, records) = frame.split_at(HEAD);
    let (one, two) = records.split_at(RECORD + TAG);
    let swapped = [head, two, one].concat();
    let saying = std::thread::spawn(move || {
        // The receiver closes before it has read everything.
        let _ = tapped.to.write_all(&swapped);
        tapped
    });
    assert_eq!(receive(&mut receiver, 1, LARGE), Err(FORGED));
    drop(receiver);
    drop((sending.join().unwrap(), saying.join().unwrap()));
}

#[test]
fn a_frame_that_is_cut_off_is_never_taken_for_a_whole_one() {
    for length in [1, HEAD - 1, HEAD, HEAD + BYTES, FRAME - 1] {
        // Followed by the end of the connection, …
        let (mut sender, mut receiver, mut tapped) = data_link();
        let [one, two] = tapped.two_frames(&mut sender);
        tapped.say(&one[..length]);
        tapped.to.shutdown(Shutdown::Write).unwrap();
        let error = receive(&mut receiver, 1, BYTES).unwrap_err();
        assert!(matches!(error, MeshError::PeerLost { rank: 0, .. }), "{error}");
        // … or by the next frame.
        let (mut again, mut receiver, mut tapped) = data_link();
        drop(tapped.two_frames(&mut again));
        tapped.say(&[&one[..length], &two].concat());
        assert_eq!(receive(&mut receiver, 1, BYTES), Err(FORGED), "{length} bytes");
    }
}

#[test]
fn frames_of_another_era_or_key_end_the_link() {
    const OLDER: Era = Era {
        generation: 3,
        epoch: 1,
    };
    const KEY: [u8; SECRET_BYTES] = [7; SECRET_BYTES];
    for (era, key) in [(OLDER, KEY), (ERA, [8; SECRET_BYTES])] {
        let ([one, other], mut tapped) = tapped(LinkKind::Data, [(era, key), (ERA, KEY)]);
        let (mut sender, mut receiver) = (mesh(0, era, one), mesh(1, ERA, other));
        send(&mut sender, 1, &[1; BYTES]);
        let frame = tapped.hear(FRAME);
        tapped.say(&frame);
        assert_eq!(receive(&mut receiver, 1, BYTES), Err(FORGED), "{era:?}");
    }
}

#[test]
fn a_forged_abort_blames_nobody() {
    let (_sender, mut receiver, mut tapped) = data_link();
    // As it would be without tags: rank 1 would be told that it lost rank 0, or whoever was to be blamed.
    let header = super::frame::Header::of(super::frame::Kind::Abort, ERA, 1);
    tapped.say(&super::socket::frame_bytes(header, &[0; 64]).unwrap());
    assert_eq!(receive(&mut receiver, 1, BYTES), Err(FORGED));
}

#[test]
fn others_hear_which_link_was_tampered_with() {
    let ([one, other], mut tapped) = tapped(LinkKind::Data, [(ERA, [7; SECRET_BYTES]); 2]);
    let _sender = mesh(0, ERA, one);
    let (to_third, third) = Connection::pair((1, 2), ERA, LinkKind::Data).unwrap();
    let (_to_zero, zero) = Connection::pair((0, 2), ERA, LinkKind::Data).unwrap();
    let of =
        |rank, links| TcpMesh::new(rank, Topology::tensor(3).into(), ERA, links, Arc::default()).unwrap();
    let mut receiver = of(1, vec![DataLink::new(other, 0), DataLink::new(to_third, 2)]);
    let mut bystander = of(2, vec![DataLink::new(zero, 0), DataLink::new(third, 1)]);
    tapped.say(&[0; FRAME]);
    assert_eq!(receive(&mut receiver, 1, BYTES), Err(FORGED));
    let mut bytes = [0; BYTES];
    let transfer = Transfer {
        peer: 1,
        out: None,
        into: Some(&mut bytes),
    };
    let heard = bystander.exchange(Label { step: 1, tag: 0 }, &mut [transfer], wait());
    assert_eq!(heard, Err(FORGED));
}

#[test]
fn plans_are_sealed_too() {
    let link = |era, connection, peer| ControlLink::new(connection, peer, era, Arc::new(EraAbort::default()));
    let plan_link = || {
        let ([one, other], tapped) = tapped(LinkKind::Plan, [(ERA, [7; SECRET_BYTES]); 2]);
        (link(ERA, one, 1), link(ERA, other, 0), tapped)
    };
    let heard = |leader: &ControlLink, tapped: &mut Tapped, step| {
        leader.send(step, Message::Release, LONG).unwrap();
        // A header, and a payload of the message's number alone.
        tapped.hear(HEAD + 1 + TAG)
    };
    let (leader, member, mut between) = plan_link();
    let frame = heard(&leader, &mut between, 5);
    between.say(&[frame.clone(), frame.clone()].concat());
    assert_eq!(member.receive(), Ok((5, Message::Release)));
    assert_eq!(member.receive(), Err(FORGED), "replayed");
    for at in 0..frame.len() {
        let (leader, member, mut between) = plan_link();
        let mut frame = heard(&leader, &mut between, 5);
        frame[at] ^= 1;
        between.say(&frame);
        assert_eq!(member.receive(), Err(FORGED), "byte {at}");
    }
    // Nor does a frame of the data link of the same ranks pass for one of the plan link.
    let (mut sender, _receiver, mut tapped) = data_link();
    send(&mut sender, 0, &[0]);
    let (_leader, member, mut between) = plan_link();
    between.say(&tapped.hear(HEAD + 1 + TAG));
    assert_eq!(member.receive(), Err(FORGED));
}
