//! Non-blocking sockets with deadlines, and the abort that ends all waits of an era.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::contract::Abort;
use super::frame::{FrameError, HEADER, Header, Kind};
use super::incoming::open_header;
use super::seal::{HEAD, Opener, RECORD, TAG, WrongTag};

/// Why a read or write failed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The peer closed the connection.
    #[error("the connection was closed")]
    Closed,
    /// Not done by the deadline.
    #[error("no answer in time")]
    Deadline,
    /// The operating system's word.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What came is not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// What came was not made by the peer, or not for here.
    #[error(transparent)]
    WrongTag(#[from] WrongTag),
    /// A frame of the right form with unusable content.
    #[error("{0}")]
    Content(String),
}

impl From<ring::error::Unspecified> for SocketError {
    fn from(_: ring::error::Unspecified) -> Self {
        Self::Content("a frame cannot be sealed".into())
    }
}

/// All sockets of one era. Aborting closes them, which wakes whoever waits on them.
#[derive(Debug, Default)]
pub struct EraAbort {
    aborted: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl EraAbort {
    /// Close this socket too when the era ends; at once when it is over.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn watch(&self, stream: &TcpStream) -> io::Result<()> {
        let copy = stream.try_clone()?;
        self.streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(copy);
        if self.is_aborted() {
            self.close_all();
        }
        Ok(())
    }

    /// Whether the era was ended from outside.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    fn close_all(&self) {
        for stream in self
            .streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            // An error means that it is closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Abort for EraAbort {
    fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.close_all();
    }
}

/// Prepare a fresh connection: no delay, non-blocking.
///
/// # Errors
/// The operating system's word.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)
}

/// Whether the peer has closed, as far as is known without waiting.
pub(crate) fn is_closed(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}

/// In seconds.
const DAY: i64 = 86_400;

/// Wait until one of `fds` is ready. False at the deadline.
pub(super) fn wait_any(fds: &mut [PollFd<'_>], deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        // A day at most: `Timespec` cannot hold every `Duration`.
        let left = left.min(Duration::from_secs(DAY.unsigned_abs()));
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(DAY),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match rustix::event::poll(fds, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

pub(super) fn wait_for(stream: &TcpStream, what: PollFlags, deadline: Instant) -> Result<(), SocketError> {
    if wait_any(&mut [PollFd::new(stream, what)], deadline)? {
        Ok(())
    } else {
        Err(SocketError::Deadline)
    }
}

pub(super) fn read_exact(
    mut stream: &TcpStream,
    mut into: &mut [u8],
    deadline: Instant,
) -> Result<(), SocketError> {
    while !into.is_empty() {
        match stream.read(into) {
            Ok(0) => return Err(SocketError::Closed),
            Ok(count) => into = into.get_mut(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait_for(stream, PollFlags::IN, deadline)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Write what the socket takes without waiting; how many bytes that is.
pub(super) fn write_some(mut stream: &TcpStream, from: &[u8]) -> Result<usize, SocketError> {
    let mut sent = 0;
    while sent < from.len() {
        match stream.write(from.get(sent..).unwrap_or_default()) {
            Ok(0) => return Err(SocketError::Closed),
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sent)
}

pub(super) fn write_all(stream: &TcpStream, mut from: &[u8], deadline: Instant) -> Result<(), SocketError> {
    loop {
        from = from.get(write_some(stream, from)?..).unwrap_or_default();
        if from.is_empty() {
            return Ok(());
        }
        wait_for(stream, PollFlags::OUT, deadline)?;
    }
}

/// Read one frame of a handshake, which is short and has no other kind than `wanted`.
pub(super) fn read_handshake(
    stream: &TcpStream,
    wanted: Kind,
    deadline: Instant,
) -> Result<Vec<u8>, SocketError> {
    let mut bytes = [0; HEADER];
    read_exact(stream, &mut bytes, deadline)?;
    let header = Header::decode(&bytes)?;
    if header.kind != wanted {
        return Err(SocketError::Content(format!(
            "a {:?} frame instead of {wanted:?}",
            header.kind
        )));
    }
    let mut payload = vec![0; header.length as usize];
    read_exact(stream, &mut payload, deadline)?;
    Ok(payload)
}

/// Read one sealed frame. The payload grows with what arrives, never with what is announced.
pub(super) fn read_frame(
    stream: &TcpStream,
    opener: &mut Opener,
    deadline: Instant,
) -> Result<(Header, Vec<u8>), SocketError> {
    let mut head = [0; HEAD];
    read_exact(stream, &mut head, deadline)?;
    let header = open_header(head, opener)?;
    let length = header.length as usize;
    let mut payload = Vec::with_capacity(length.min(RECORD) + TAG);
    while payload.len() < length {
        let (from, to) = (payload.len(), length.min(payload.len() + RECORD));
        payload.resize(to + TAG, 0);
        let sealed = payload.get_mut(from..).unwrap_or_default();
        read_exact(stream, sealed, deadline)?;
        let (record, tag) = sealed.split_last_chunk_mut::<TAG>().ok_or(SocketError::Closed)?;
        opener.open(record, tag)?;
        payload.truncate(to);
    }
    Ok((header, payload))
}

/// A frame as bytes.
pub(super) fn frame_bytes(header: Header, payload: &[u8]) -> Result<Vec<u8>, SocketError> {
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|length| *length <= header.kind.longest());
    let Some(length) = length else {
        let sentence = format!(
            "a {:?} frame of {} bytes is too long to send",
            header.kind,
            payload.len()
        );
        return Err(SocketError::Content(sentence));
    };
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&Header { length, ..header }.encode());
    bytes.extend_from_slice(payload);
    Ok(bytes)
}
