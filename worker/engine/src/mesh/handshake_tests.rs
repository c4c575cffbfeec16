//! What strangers and members get at the rank port.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};

use super::dial::{DialError, dial};
use super::frame::{HEADER, Header, Kind};
use super::hello::{Challenge, Hello, Identity, LinkKind, Opening, RefusalCode, SignedHello};
use super::key::{GroupKey, Nonce, Purpose, SECRET_BYTES};
use super::{Connection, EraAbort, Inbox, Listener, Membership, Topology};
use crate::step::Era;

const LONG: Duration = Duration::from_secs(60);

struct Rank {
    inbox: Arc<Inbox>,
    listener: Listener,
}

impl Rank {
    /// Rank 1 of 2, ready and not formed.
    fn start() -> Self {
        let inbox = Arc::new(Inbox::new(1, Topology::tensor(2).into(), "n".into(), "c".into()));
        inbox.set_ready(None);
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let listener = Listener::start(socket, Arc::clone(&inbox)).unwrap();
        Self { inbox, listener }
    }

    fn form(&self, generation: u64) -> GroupKey {
        let key = GroupKey::random().unwrap();
        let membership = Membership {
            group_uid: "g".into(),
            generation,
            lost: Vec::new(),
            addresses: Membership::in_rank_order([self.listener.address(); 2]),
            key: key.clone(),
        };
        assert_eq!(self.inbox.form(membership), Ok(true));
        key
    }

    fn dial(&self, hello: &Hello, key: &GroupKey) -> Result<Connection, DialError> {
        dial(self.listener.address(), hello, key, LONG)
    }

    fn refusal(&self, hello: &Hello, key: &GroupKey) -> RefusalCode {
        match self.dial(hello, key) {
            Err(DialError::Refused { code, .. }) => code,
            other => panic!("{other:?}"),
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.listener.address()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    /// A connection that was opened with `key`, and the challenge that came on it.
    fn challenged(&self, key: &GroupKey) -> (TcpStream, Nonce) {
        let mut stream = self.connect();
        stream.write_all(&opening(key)).unwrap();
        let (header, payload) = read_frame(&mut stream);
        assert_eq!((header.kind, header.era), (Kind::Challenge, Era::default()));
        let challenge: Challenge = postcard::from_bytes(&payload).unwrap();
        assert!(key.verifies(
            &challenge.proof,
            Purpose::Challenge,
            &challenge.challenge,
            &NONCE,
            &[]
        ));
        (stream, challenge.challenge)
    }
}

/// The random number of every dialler here, as somebody who replays has one.
const NONCE: Nonce = [9; SECRET_BYTES];

fn frame(kind: Kind, message: &impl serde::Serialize) -> Vec<u8> {
    let payload = postcard::to_stdvec(message).unwrap();
    super::socket::frame_bytes(Header::of(kind, Era::default(), 0), &payload).unwrap()
}

fn read_frame(stream: &mut TcpStream) -> (Header, Vec<u8>) {
    let mut head = [0; HEADER];
    stream.read_exact(&mut head).unwrap();
    let header = Header::decode(&head).unwrap();
    let mut payload = vec![0; header.length as usize];
    stream.read_exact(&mut payload).unwrap();
    (header, payload)
}

fn opening(key: &GroupKey) -> Vec<u8> {
    let opening = Opening {
        nonce: NONCE,
        proof: key.prove(Purpose::Opening, &[0; SECRET_BYTES], &NONCE, &[]),
    };
    frame(Kind::Opening, &opening)
}

/// Connections from `source` that say nothing.
fn silent(rank: &Rank, source: Ipv4Addr, count: usize) -> Vec<TcpStream> {
    let connect = |_| {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from((source, 0))).unwrap();
        rustix::net::connect(&socket, &rank.listener.address()).unwrap();
        TcpStream::from(socket)
    };
    (0..count).map(connect).collect()
}

fn hello(generation: u64, epoch: u64) -> Hello {
    let identity = Identity {
        group_uid: "g".into(),
        rank: 0,
        members: Topology::tensor(2).into(),
        numerics: "n".into(),
        content: "c".into(),
    };
    identity.hello(Era { generation, epoch }, 1, LinkKind::Plan)
}

fn signed(hello: &Hello, key: &GroupKey, challenge: &Nonce) -> Vec<u8> {
    let text = postcard::to_stdvec(hello).unwrap();
    let signed = SignedHello {
        proof: key.prove(Purpose::Hello, challenge, &NONCE, &text),
        hello: text,
    };
    frame(Kind::Hello, &signed)
}

/// All that comes until the connection is closed.
fn answer(mut stream: TcpStream, say: &[u8]) -> Vec<u8> {
    // It may be closed before everything is said.
    let _ = stream.write_all(say);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    answer
}

#[test]
fn a_rank_that_is_not_formed_says_nothing_at_all() {
    let rank = Rank::start();
    let stream = TcpStream::connect(rank.listener.address()).unwrap();
    assert_eq!(answer(stream, &[]), [0_u8; 0]);
}

#[test]
fn a_stranger_learns_nothing_and_ends_nothing() {
    let rank = Rank::start();
    let key = rank.form(2);
    rank.dial(&hello(2, 4), &key).unwrap();
    let (era, abort) = (rank.inbox.latest(), Arc::new(EraAbort::default()));
    assert_eq!(era.epoch, 4);
    rank.inbox.enter(era, Arc::clone(&abort));

    let stranger = GroupKey::random().unwrap();
    for later in [hello(2, 5), hello(3, 1)] {
        assert_eq!(answer(rank.connect(), &opening(&stranger)), [0_u8; 0]);
        // Somebody who replays a member's opening gets a challenge, and no further.
        let (stream, challenge) = rank.challenged(&key);
        assert_eq!(answer(stream, &signed(&later, &stranger, &challenge)), [0_u8; 0]);
        assert!(matches!(
            rank.dial(&later, &stranger),
            Err(DialError::Unreachable { .. })
        ));
    }
    assert_eq!(
        answer(
            rank.connect(),
            b"GET / HTTP/1.1\r\nHost: rank\r\nAccept: everything\r\n\r\n"
        ),
        [0_u8; 0]
    );
    assert!(!abort.is_aborted(), "the era goes on");
    assert_eq!(rank.inbox.latest(), era);

    // Somebody who knows the key does end it.
    rank.dial(&hello(2, 5), &key).unwrap();
    // The answer is sent before the era ends, both under the inbox's lock.
    assert_eq!(rank.inbox.latest().epoch, 5);
    assert!(abort.is_aborted());
}

#[test]
fn silent_strangers_keep_no_peer_out() {
    const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
    for source in [STRANGER, Ipv4Addr::LOCALHOST] {
        let rank = Rank::start();
        let key = rank.form(1);
        // Far fewer are closed for their silence before the peer comes than there are.
        let strangers = silent(&rank, source, 200);
        rank.dial(&hello(1, 1), &key).unwrap();
        assert_eq!(rank.inbox.latest().epoch, 1);
        drop(strangers);
    }
    // Nor do those that come during a handshake end it, when they come from elsewhere.
    let rank = Rank::start();
    let key = rank.form(1);
    let (stream, challenge) = rank.challenged(&key);
    let strangers = silent(&rank, STRANGER, 100);
    assert!(!answer_head(stream, &signed(&hello(1, 1), &key, &challenge)).is_empty());
    drop(strangers);
}

#[test]
fn what_was_heard_on_the_wire_is_of_no_use_again() {
    let rank = Rank::start();
    let key = rank.form(1);
    let (stream, challenge) = rank.challenged(&key);
    let heard = signed(&hello(1, 7), &key, &challenge);
    assert!(!answer_head(stream, &heard).is_empty(), "the member is answered");
    assert_eq!(rank.inbox.latest().epoch, 7);
    let later = rank.form(2);
    for key in [&key, &later] {
        let (stream, other) = rank.challenged(key);
        assert_ne!(challenge, other);
        assert_eq!(answer(stream, &heard), [0_u8; 0]);
    }
    // Nor does the right proof for another text pass.
    let (stream, challenge) = rank.challenged(&later);
    let mut changed = signed(&hello(2, 8), &later, &challenge);
    let last = changed.len() - 48;
    changed[last] ^= 1;
    assert_eq!(answer(stream, &changed), [0_u8; 0]);
    assert_eq!(rank.inbox.latest().epoch, 0);
}

/// The first bytes of an answer; the connection stays open.
fn answer_head(mut stream: TcpStream, say: &[u8]) -> Vec<u8> {
    stream.write_all(say).unwrap();
    let mut head = vec![0; HEADER];
    stream.read_exact(&mut head).unwrap();
    head
}

#[test]
fn members_are_refused_with_words() {
    let rank = Rank::start();
    let former = rank.form(1);
    let key = rank.form(2);
    assert_eq!(rank.refusal(&hello(1, 9), &former), RefusalCode::OldEra);
    assert_eq!(
        rank.refusal(&hello(2, 9), &former),
        RefusalCode::OldEra,
        "by its key"
    );
    let refusal = |change: &dyn Fn(&mut Hello)| {
        let mut hello = hello(2, 1);
        change(&mut hello);
        rank.refusal(&hello, &key)
    };
    assert_eq!(
        refusal(&|hello| hello.content = "d".into()),
        RefusalCode::OtherContent
    );
    assert_eq!(
        refusal(&|hello| hello.numerics = "m".into()),
        RefusalCode::OtherNumerics
    );
    assert_eq!(
        refusal(&|hello| hello.topology = Topology::tensor(3)),
        RefusalCode::WrongRank
    );
    assert_eq!(refusal(&|hello| hello.lost.push(1)), RefusalCode::OtherMembers);
    rank.dial(&hello(2, 1), &key).unwrap();
    assert_eq!(refusal(&|_| ()), RefusalCode::Duplicate);
}

/// Dial an impostor that answers the opening with `reply`: what the dialler says of it, and all that the impostor heard.
fn dial_impostor(
    key: &GroupKey,
    reply: impl FnOnce(Opening) -> Vec<u8> + Send + 'static,
) -> (DialError, Vec<u8>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let impostor = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (header, payload) = read_frame(&mut stream);
        assert_eq!((header.kind, header.era), (Kind::Opening, Era::default()));
        let reply = reply(postcard::from_bytes(&payload).unwrap());
        [payload, answer(stream, &reply)].concat()
    });
    let error = dial(address, &hello(1, 1), key, LONG).unwrap_err();
    (error, impostor.join().unwrap())
}

#[test]
fn a_listener_without_the_key_is_not_believed_and_told_nothing() {
    let (key, stranger) = (GroupKey::random().unwrap(), GroupKey::random().unwrap());
    let challenge = |proof| {
        frame(
            Kind::Challenge,
            &Challenge {
                challenge: [1; 32],
                proof,
            },
        )
    };
    let by_stranger =
        move |opening: Opening| challenge(stranger.prove(Purpose::Challenge, &[1; 32], &opening.nonce, &[]));
    // The dialler's own proof, sent back to it.
    let reflected = move |opening: Opening| challenge(opening.proof);
    for (error, heard) in [dial_impostor(&key, by_stranger), dial_impostor(&key, reflected)] {
        assert!(error.to_string().contains("key"), "{error}");
        assert_eq!(
            heard.len(),
            2 * SECRET_BYTES,
            "a random number and a proof of it, and no Hello"
        );
    }
}
