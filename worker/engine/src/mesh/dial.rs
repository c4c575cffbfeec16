//! Connecting to a peer.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::frame::{Header, Kind};
use super::hello::{Answer, Hello, RefusalCode};
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

/// Connect, say `hello` and wait for the welcome, all within `wait`.
///
/// # Errors
/// [`DialError`].
pub fn dial(address: SocketAddr, hello: &Hello, wait: Duration) -> Result<TcpStream, DialError> {
    let unreachable = |source| DialError::Unreachable {
        rank: hello.to,
        address,
        source,
    };
    let (stream, answer) = greet(address, hello, wait).map_err(unreachable)?;
    match answer {
        Answer::Welcome => Ok(stream),
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

fn greet(address: SocketAddr, hello: &Hello, wait: Duration) -> Result<(TcpStream, Answer), SocketError> {
    let deadline = Instant::now() + wait;
    let stream = TcpStream::connect_timeout(&address, wait)?;
    socket::prepare(&stream)?;
    let payload = postcard::to_stdvec(hello).map_err(content)?;
    let header = Header {
        kind: Kind::Hello,
        era: hello.era,
        step: 0,
        sequence: 0,
        length: 0,
    };
    socket::write_all(&stream, &socket::frame_bytes(header, &payload)?, deadline)?;
    let (header, payload) = socket::read_handshake(&stream, deadline)?;
    if header.kind != Kind::Answer {
        return Err(SocketError::Content(format!(
            "a {:?} frame instead of an answer",
            header.kind
        )));
    }
    Ok((stream, postcard::from_bytes(&payload).map_err(content)?))
}

pub(super) fn content(error: postcard::Error) -> SocketError {
    SocketError::Content(error.to_string())
}
