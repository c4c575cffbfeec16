//! A frame that is being sent on a data link, record by record.

use std::io::{ErrorKind, Write};

use super::data_link::DataLink;
use super::frame::Header;
use super::seal::RECORD;
use super::socket::SocketError;

/// What is left of a frame. [`DataLink::sealed`] holds the part that is being written: the header and the first record, or a
/// later record.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    /// What is not sealed yet.
    payload: &'a [u8],
    /// Bytes of the sealed part that have been written.
    written: usize,
    done: bool,
}

impl<'a> Outgoing<'a> {
    /// Begin a frame. From here on nothing else may be sent on the link until it is done.
    pub(super) fn new(link: &mut DataLink, header: Header, payload: &'a [u8]) -> Result<Self, SocketError> {
        link.torn = true;
        link.sealed.clear();
        link.sealer.seal(&header.encode(), &mut link.sealed)?;
        let mut outgoing = Self {
            payload,
            written: 0,
            done: false,
        };
        outgoing.seal_record(link)?;
        Ok(outgoing)
    }

    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    fn seal_record(&mut self, link: &mut DataLink) -> Result<(), SocketError> {
        let (record, rest) = self.payload.split_at(self.payload.len().min(RECORD));
        self.payload = rest;
        // An empty frame is a header only.
        if !record.is_empty() {
            link.sealer.seal(record, &mut link.sealed)?;
        }
        Ok(())
    }

    /// Write what the socket takes without waiting; whether that is anything.
    pub(super) fn send(&mut self, link: &mut DataLink) -> Result<bool, SocketError> {
        let sealed = link.sealed.get(self.written..).unwrap_or_default();
        match (&link.stream).write(sealed) {
            Ok(0) => return Err(SocketError::Closed),
            Ok(count) => self.written += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        if self.written == link.sealed.len() {
            self.done = self.payload.is_empty();
            link.torn = !self.done;
            if !self.done {
                self.written = 0;
                link.sealed.clear();
                self.seal_record(link)?;
            }
        }
        Ok(true)
    }
}
