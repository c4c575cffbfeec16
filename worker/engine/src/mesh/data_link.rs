//! One end of a data link.

use std::io;
use std::net::TcpStream;

use super::connection::Connection;
use super::incoming::Incoming;
use super::seal::{Opener, Sealer};
use super::socket::EraAbort;

/// A connection for the frames of a backend, non-blocking, in one era. Frames are numbered per direction.
#[derive(Debug)]
pub struct DataLink {
    pub(super) stream: TcpStream,
    pub(super) peer: u32,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    pub(super) incoming: Incoming,
    /// Sealed bytes that are being sent.
    pub(super) sealed: Vec<u8>,
    pub(super) sent: u32,
    pub(super) received: u32,
    /// Whether a frame is half written; nothing else may be sent then.
    pub(super) torn: bool,
}

impl DataLink {
    /// A link to rank `peer` over a connection whose handshake is done.
    #[must_use]
    pub fn new(connection: Connection, peer: u32) -> Self {
        Self {
            stream: connection.stream,
            peer,
            sealer: connection.keys.sealer,
            opener: connection.keys.opener,
            incoming: Incoming::default(),
            sealed: Vec::new(),
            sent: 0,
            received: 0,
            torn: false,
        }
    }

    /// The rank at the other end.
    #[must_use]
    pub fn peer(&self) -> u32 {
        self.peer
    }

    /// Close this link too when the era ends.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn watch(&self, abort: &EraAbort) -> io::Result<()> {
        abort.watch(&self.stream)
    }

    /// Whether the peer runs in the same network namespace, which is one pod: both ends have one address.
    pub(super) fn is_local(&self) -> bool {
        match (self.stream.local_addr(), self.stream.peer_addr()) {
            (Ok(here), Ok(there)) => here.ip().to_canonical() == there.ip().to_canonical(),
            _ => false,
        }
    }
}
