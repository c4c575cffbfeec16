//! Connecting to a peer.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::frame::{Header, Kind};
use super::hello::{Answer, Challenge, Hello, Opening, RefusalCode, SignedAnswer, SignedHello};
use super::key::{GroupKey, Nonce, Purpose, SECRET_BYTES, nonce};
use super::seal::LinkContext;
use super::socket::{self, SocketError};
use crate::step::Era;

/// Why a peer is not connected.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody answers there, or not in time, or not in our language.
    #[error("rank {rank} at {address} cannot be reached: {source}")]
    Unreachable {
        /// The peer.
        rank: u32,
        /// Where.
        address: SocketAddr,
        /// What happened.
        source: SocketError,
    },
    /// The peer said no.
    #[error("rank {rank} refuses the link: {sentence}")]
    Refused {
        /// The peer.
        rank: u32,
        /// For programs.
        code: RefusalCode,
        /// The peer's words.
        sentence: String,
        /// The latest era the peer has seen.
        latest: Era,
    },
}

/// Connect, prove to know `key`, say `hello` and wait for the welcome of somebody who proves the same, all within `wait`.
///
/// # Errors
/// [`DialError`].
pub fn dial(
    address: SocketAddr,
    hello: &Hello,
    key: &GroupKey,
    wait: Duration,
) -> Result<Connection, DialError> {
    let unreachable = |source| DialError::Unreachable {
        rank: hello.to,
        address,
        source,
    };
    let (connection, answer) = handshake(address, hello, key, wait).map_err(unreachable)?;
    match answer {
        Answer::Welcome => Ok(connection),
        Answer::Refused {
            code,
            sentence,
            latest,
        } => Err(DialError::Refused {
            rank: hello.to,
            code,
            sentence,
            latest,
        }),
    }
}

/// The dialler's side of what [`super::hello`] describes. The Hello names the group, its weights and its arithmetic, so it
/// is sent to nobody who has not proved itself.
fn handshake(
    address: SocketAddr,
    hello: &Hello,
    key: &GroupKey,
    wait: Duration,
) -> Result<(Connection, Answer), SocketError> {
    let deadline = Instant::now() + wait;
    let stream = TcpStream::connect_timeout(&address, wait)?;
    socket::prepare(&stream)?;
    let nonce = nonce()?;
    let opening = Opening {
        proof: key.prove(Purpose::Opening, &[0; SECRET_BYTES], &nonce, &[]),
        nonce,
    };
    send(&stream, Kind::Opening, &opening, deadline)?;
    let challenge = proved_challenge(&stream, key, &nonce, deadline)?;
    let text = postcard::to_stdvec(hello).map_err(content)?;
    let signed = SignedHello {
        proof: key.prove(Purpose::Hello, &challenge, &nonce, &text),
        hello: text,
    };
    send(&stream, Kind::Hello, &signed, deadline)?;
    let payload = socket::read_handshake(&stream, Kind::Answer, deadline).map_err(closed)?;
    let signed: SignedAnswer = postcard::from_bytes(&payload).map_err(content)?;
    if !key.verifies(&signed.proof, Purpose::Answer, &challenge, &nonce, &signed.answer) {
        return Err(without_key());
    }
    let answer = postcard::from_bytes(&signed.answer).map_err(content)?;
    let context = LinkContext {
        era: hello.era,
        link: hello.link,
        challenge,
        nonce,
    };
    let connection = Connection::new(stream, key, &context, (hello.from, hello.to))?;
    Ok((connection, answer))
}

/// The listener's random number, once it has proved to know the key.
fn proved_challenge(
    stream: &TcpStream,
    key: &GroupKey,
    nonce: &Nonce,
    deadline: Instant,
) -> Result<Nonce, SocketError> {
    let payload = socket::read_handshake(stream, Kind::Challenge, deadline).map_err(closed)?;
    let Challenge { challenge, proof } = postcard::from_bytes(&payload).map_err(content)?;
    if key.verifies(&proof, Purpose::Challenge, &challenge, nonce, &[]) {
        Ok(challenge)
    } else {
        Err(without_key())
    }
}

/// Send one message of a handshake. The frame's own era says nothing yet: it would tell strangers who listen.
pub(super) fn send(
    stream: &TcpStream,
    kind: Kind,
    message: &impl serde::Serialize,
    deadline: Instant,
) -> Result<(), SocketError> {
    let payload = postcard::to_stdvec(message).map_err(content)?;
    let header = Header::of(kind, Era::default(), 0);
    socket::write_all(stream, &socket::frame_bytes(header, &payload)?, deadline)
}

fn without_key() -> SocketError {
    SocketError::Content("it does not know the group's key".into())
}

/// Who listens says nothing to strangers, so a close is all that is seen of the most likely reasons.
fn closed(error: SocketError) -> SocketError {
    match error {
        SocketError::Closed => SocketError::Content(
            "it closed the connection: it has not been told this generation yet, or is in a later one".into(),
        ),
        other => other,
    }
}

pub(super) fn content(error: postcard::Error) -> SocketError {
    SocketError::Content(error.to_string())
}
