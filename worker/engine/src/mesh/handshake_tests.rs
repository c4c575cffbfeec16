//! What strangers and members get at the rank port.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};

use super::dial::{DialError, dial};
use super::frame::{HEADER, Header, Kind};
use super::hello::{Hello, Identity, LinkKind, RefusalCode, SignedHello};
use super::key::{GroupKey, Nonce, Side};
use super::{EraAbort, Inbox, Listener, Membership, Topology};
use crate::step::Era;

const LONG: Duration = Duration::from_secs(60);

struct Rank {
    inbox: Arc<Inbox>,
    listener: Listener,
}

impl Rank {
    /// Rank 1 of 2, ready and not formed.
    fn start() -> Self {
        let inbox = Arc::new(Inbox::new(1, Topology::tensor(2), "n".into(), "c".into()));
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
            members: vec![self.listener.address(); 2],
            key: key.clone(),
        };
        assert_eq!(self.inbox.form(membership), Ok(true));
        key
    }

    fn dial(&self, hello: &Hello, key: &GroupKey) -> Result<TcpStream, DialError> {
        dial(self.listener.address(), hello, key, LONG)
    }

    fn refusal(&self, hello: &Hello, key: &GroupKey) -> RefusalCode {
        match self.dial(hello, key) {
            Err(DialError::Refused { code, .. }) => code,
            other => panic!("{other:?}"),
        }
    }

    /// A connection, and the challenge that came on it.
    fn challenged(&self) -> (TcpStream, Nonce) {
        let mut stream = TcpStream::connect(self.listener.address()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut bytes = [0; HEADER + 32];
        stream.read_exact(&mut bytes).unwrap();
        let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
        assert_eq!((header.kind, header.era), (Kind::Challenge, Era::default()));
        (stream, bytes[HEADER..].try_into().unwrap())
    }
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
        topology: Topology::tensor(2),
        numerics: "n".into(),
        content: "c".into(),
    };
    identity.hello(Era { generation, epoch }, 1, LinkKind::Plan)
}

fn signed(hello: &Hello, key: &GroupKey, challenge: &Nonce) -> Vec<u8> {
    let (text, nonce) = (postcard::to_stdvec(hello).unwrap(), [9; 32]);
    let signed = SignedHello {
        proof: key.prove(Side::Dialler, challenge, &nonce, &text),
        hello: text,
        nonce,
    };
    let payload = postcard::to_stdvec(&signed).unwrap();
    super::socket::frame_bytes(Header::of(Kind::Hello, Era::default(), 0), &payload).unwrap()
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
        let (stream, challenge) = rank.challenged();
        assert_eq!(answer(stream, &signed(&later, &stranger, &challenge)), [0_u8; 0]);
        assert!(matches!(
            rank.dial(&later, &stranger),
            Err(DialError::Unreachable { .. })
        ));
    }
    let (stream, _) = rank.challenged();
    assert_eq!(
        answer(
            stream,
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
    let (stream, challenge) = rank.challenged();
    let strangers = silent(&rank, STRANGER, 200);
    assert!(!answer_head(stream, &signed(&hello(1, 1), &key, &challenge)).is_empty());
    drop(strangers);
}

#[test]
fn what_was_heard_on_the_wire_is_of_no_use_again() {
    let rank = Rank::start();
    let key = rank.form(1);
    let (stream, challenge) = rank.challenged();
    let heard = signed(&hello(1, 7), &key, &challenge);
    assert!(!answer_head(stream, &heard).is_empty(), "the member is answered");
    assert_eq!(rank.inbox.latest().epoch, 7);
    let later = rank.form(2);
    let (stream, other) = rank.challenged();
    assert_ne!(challenge, other);
    assert_eq!(answer(stream, &heard), [0_u8; 0]);
    // Nor does the right proof for another text pass.
    let (stream, challenge) = rank.challenged();
    let mut changed = signed(&hello(2, 8), &later, &challenge);
    let last = changed.len() - 80;
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
    rank.dial(&hello(2, 1), &key).unwrap();
    assert_eq!(refusal(&|_| ()), RefusalCode::Duplicate);
}

#[test]
fn a_listener_without_the_key_is_not_believed() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let impostor = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let header = Header::of(Kind::Challenge, Era::default(), 0);
        let challenge = super::socket::frame_bytes(header, &[1; 32]).unwrap();
        stream.write_all(&challenge).unwrap();
        let mut head = [0; HEADER];
        stream.read_exact(&mut head).unwrap();
        let mut payload = vec![0; Header::decode(&head).unwrap().length as usize];
        stream.read_exact(&mut payload).unwrap();
        // A welcome, signed by nobody.
        let answer = postcard::to_stdvec(&super::hello::SignedAnswer {
            answer: postcard::to_stdvec(&super::Answer::Welcome).unwrap(),
            proof: [0; 32],
        });
        let header = Header::of(Kind::Answer, Era::default(), 0);
        stream
            .write_all(&super::socket::frame_bytes(header, &answer.unwrap()).unwrap())
            .unwrap();
    });
    let error = dial(address, &hello(1, 1), &GroupKey::random().unwrap(), LONG).unwrap_err();
    assert!(error.to_string().contains("key"), "{error}");
    impostor.join().unwrap();
}
