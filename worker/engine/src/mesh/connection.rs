//! A connection whose handshake is done, with the keys of what crosses it from here on.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use super::hello::LinkKind;
use super::key::{GroupKey, SECRET_BYTES};
use super::seal::{LinkContext, LinkKeys};
use super::socket::{self, EraAbort};
use crate::step::Era;

/// One end of a link.
#[derive(Debug)]
pub struct Connection {
    pub(super) stream: TcpStream,
    pub(super) keys: LinkKeys,
}

impl Connection {
    /// Both ends of a connection over loopback that had no handshake, between ranks `here` and `there`, for tests and benchmarks.
    ///
    /// # Errors
    /// The operating system's word.
    pub fn pair((here, there): (u32, u32), era: Era, link: LinkKind) -> io::Result<(Self, Self)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let dialled = TcpStream::connect(listener.local_addr()?)?;
        let (accepted, _) = listener.accept()?;
        let one = Self::without_handshake(dialled, (here, there), era, link)?;
        let other = Self::without_handshake(accepted, (there, here), era, link)?;
        Ok((one, other))
    }

    /// The end of rank `here` of a connection to rank `there` that had no handshake, for tests and benchmarks: its keys are not
    /// secret.
    ///
    /// # Errors
    /// The operating system's word.
    pub fn without_handshake(
        stream: TcpStream,
        (here, there): (u32, u32),
        era: Era,
        link: LinkKind,
    ) -> io::Result<Self> {
        socket::prepare(&stream)?;
        let context = LinkContext {
            era,
            link,
            challenge: [0; SECRET_BYTES],
            nonce: [0; SECRET_BYTES],
        };
        Self::new(
            stream,
            &GroupKey::from([0; SECRET_BYTES]),
            &context,
            (here, there),
        )
    }

    /// The end of rank `here`.
    pub(super) fn new(
        stream: TcpStream,
        key: &GroupKey,
        context: &LinkContext,
        (here, there): (u32, u32),
    ) -> io::Result<Self> {
        let keys = LinkKeys::derive(key, context, here, there);
        let keys = keys.map_err(|_| io::Error::other("no keys can be made for the link"))?;
        Ok(Self { stream, keys })
    }

    /// The socket, for what is asked of the operating system about it.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether the peer has closed, as far as is known without waiting.
    pub(crate) fn is_closed(&self) -> bool {
        socket::is_closed(&self.stream)
    }

    /// Close this connection too when the era ends.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn watch(&self, abort: &EraAbort) -> io::Result<()> {
        abort.watch(&self.stream)
    }
}
