//! What has come on a data link. A small frame is read whole, with one call to the operating system; the rest of a large one
//! goes straight to where it belongs.

use std::io::{ErrorKind, IoSliceMut, Read};
use std::net::TcpStream;
use std::time::Instant;

use rustix::event::PollFlags;

use super::frame::{HEADER, Header};
use super::seal::{HEAD, Opener, TAG};
use super::socket::{self, SocketError};

/// Holds the frames of a decode step, a few KB each.
const BUFFER: usize = 8 << 10;

/// Bytes that were read and not used yet.
#[derive(Debug)]
pub(super) struct Incoming {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The header of the frame that comes now, once it is here.
    header: Option<Header>,
}

impl Default for Incoming {
    fn default() -> Self {
        Self {
            buffer: vec![0; BUFFER].into(),
            start: 0,
            end: 0,
            header: None,
        }
    }
}

impl Incoming {
    /// The header of the next frame; none when it is not here yet. The same one until it is taken.
    pub(super) fn header(
        &mut self,
        stream: &TcpStream,
        opener: &mut Opener,
    ) -> Result<Option<Header>, SocketError> {
        while self.header.is_none() {
            if let Some(head) = self.here().first_chunk::<HEAD>() {
                self.header = Some(open_header(*head, opener)?);
                self.start += HEAD;
            } else if self.fill(stream)? == 0 {
                return Ok(None);
            }
        }
        Ok(self.header)
    }

    /// The payload of that frame is read from here on.
    pub(super) fn take_header(&mut self) {
        self.header = None;
    }

    /// What was read and not used yet.
    fn here(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    fn fill(&mut self, stream: &TcpStream) -> Result<usize, SocketError> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let free = self.buffer.get_mut(self.end..).unwrap_or_default();
        let count = read_some(stream, &mut [IoSliceMut::new(free)])?;
        self.end += count;
        Ok(count)
    }

    /// Bytes of a payload's record and then of its tag, as far as they are here; how many.
    pub(super) fn read(
        &mut self,
        stream: &TcpStream,
        record: &mut [u8],
        tag: &mut [u8],
    ) -> Result<usize, SocketError> {
        if self.start == self.end {
            return read_some(stream, &mut [IoSliceMut::new(record), IoSliceMut::new(tag)]);
        }
        let mut here = self.here();
        let count = here.read(record)? + here.read(tag)?;
        self.start += count;
        Ok(count)
    }

    /// The payload of a frame of one record whose header was taken.
    pub(super) fn read_short(
        &mut self,
        stream: &TcpStream,
        opener: &mut Opener,
        length: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, SocketError> {
        let (mut record, mut tag) = (vec![0; length], [0; TAG]);
        let mut got = 0;
        while length > 0 && got < length + TAG {
            let rest = to_come(&mut record, &mut tag, got);
            match self.read(stream, rest.0, rest.1)? {
                0 => socket::wait_for(stream, PollFlags::IN, deadline)?,
                count => got += count,
            }
        }
        if length > 0 {
            opener.open(&mut record, &tag)?;
        }
        Ok(record)
    }
}

/// What of a record and of its tag, which follows it, is still to come when `got` bytes of both have.
pub(super) fn to_come<'a>(
    record: &'a mut [u8],
    tag: &'a mut [u8],
    got: usize,
) -> (&'a mut [u8], &'a mut [u8]) {
    let of_tag = got.saturating_sub(record.len());
    (
        record.get_mut(got..).unwrap_or_default(),
        tag.get_mut(of_tag..).unwrap_or_default(),
    )
}

/// Check a header with its tag, before anything that it says is believed.
pub(super) fn open_header(head: [u8; HEAD], opener: &mut Opener) -> Result<Header, SocketError> {
    let (mut header, mut tag) = ([0; HEADER], [0; TAG]);
    header.copy_from_slice(&head[..HEADER]);
    tag.copy_from_slice(&head[HEADER..]);
    opener.open(&mut header, &tag)?;
    Ok(Header::decode(&header)?)
}

/// Read what is there; 0 when that is nothing yet.
fn read_some(mut stream: &TcpStream, into: &mut [IoSliceMut<'_>]) -> Result<usize, SocketError> {
    match stream.read_vectored(into) {
        Ok(0) => Err(SocketError::Closed),
        Ok(count) => Ok(count),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        Err(error) => Err(error.into()),
    }
}
