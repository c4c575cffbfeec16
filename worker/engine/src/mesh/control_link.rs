//! The plan link between rank 0 and another rank.

use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::connection::Connection;
use super::contract::MeshError;
use super::frame::{Header, Kind};
use super::message::Message;
use super::seal::{Opener, Sealer};
use super::socket::{self, EraAbort, SocketError};
use crate::step::Era;

/// Reading has no deadline of its own: who waits for an answer knows how long, and ends the era.
const NO_DEADLINE: Duration = Duration::from_secs(365 * 86_400);

/// Frames that are not sealed for any link yet, in the order in which they are sent.
#[derive(Debug)]
pub struct Frames(Vec<Vec<u8>>);

/// What a broken or hostile rank would send.
#[cfg(test)]
impl From<Vec<Vec<u8>>> for Frames {
    fn from(frames: Vec<Vec<u8>>) -> Self {
        Self(frames)
    }
}

impl Frames {
    fn seal(&self, sealer: &mut Sealer) -> Result<Vec<u8>, SocketError> {
        let mut bytes = Vec::new();
        for frame in &self.0 {
            sealer.seal_frame(frame, &mut bytes)?;
        }
        Ok(bytes)
    }
}

/// One end of a plan link in one era. One thread receives; any may send.
#[derive(Debug)]
pub struct ControlLink {
    stream: TcpStream,
    /// Held while frames are sealed and written, so that they do not mix.
    writing: Mutex<Sealer>,
    reading: Mutex<Opener>,
    peer: u32,
    era: Era,
    abort: Arc<EraAbort>,
}

impl ControlLink {
    /// A link over a connection whose handshake is done.
    #[must_use]
    pub fn new(connection: Connection, peer: u32, era: Era, abort: Arc<EraAbort>) -> Self {
        Self {
            stream: connection.stream,
            writing: Mutex::new(connection.keys.sealer),
            reading: Mutex::new(connection.keys.opener),
            peer,
            era,
            abort,
        }
    }

    /// The rank at the other end.
    #[must_use]
    pub fn peer(&self) -> u32 {
        self.peer
    }

    /// Whether the peer has closed the connection, as far as is known without waiting.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        socket::is_closed(&self.stream)
    }

    /// The messages as frames, so that a plan for many ranks is encoded once.
    ///
    /// # Errors
    /// [`MeshError::Protocol`] when a message is too long to send.
    pub fn encode(era: Era, messages: &[(u64, Message)]) -> Result<Frames, MeshError> {
        let mut frames = Vec::with_capacity(messages.len());
        for (step, message) in messages {
            let header = Header::of(Kind::Control, era, *step);
            let frame = postcard::to_stdvec(message)
                .map_err(|error| SocketError::Content(error.to_string()))
                .and_then(|payload| socket::frame_bytes(header, &payload));
            match frame {
                Ok(frame) => frames.push(frame),
                Err(error) => {
                    return Err(MeshError::Protocol {
                        rank: 0,
                        reason: error.to_string(),
                    });
                }
            }
        }
        Ok(Frames(frames))
    }

    /// Send what [`Self::encode`] made.
    ///
    /// # Errors
    /// [`MeshError`]; the link is unusable then.
    pub fn send_frames(&self, frames: &Frames, wait: Duration) -> Result<(), MeshError> {
        let mut sealer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        frames
            .seal(&mut sealer)
            .and_then(|bytes| socket::write_all(&self.stream, &bytes, Instant::now() + wait))
            .map_err(|error| self.lost(error, wait))
    }

    /// What [`Self::encode`] made as bytes for this link alone. They must be sent next, and in this order.
    pub(super) fn seal(&self, frames: &Frames) -> Result<Vec<u8>, MeshError> {
        let mut sealer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        frames
            .seal(&mut sealer)
            .map_err(|error| self.lost(error, Duration::ZERO))
    }

    /// Send as much of what [`Self::seal`] made as the socket takes at once. Returns how many bytes that is. Until the rest
    /// is sent, nobody may send anything else.
    pub(super) fn try_send(&self, bytes: &[u8]) -> Result<usize, MeshError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        socket::write_some(&self.stream, bytes).map_err(|error| self.lost(error, Duration::ZERO))
    }

    /// Wait until the socket takes more, at most for `wait`.
    pub(super) fn wait_for_room(&self, wait: Duration) -> Result<(), MeshError> {
        socket::wait_for(&self.stream, PollFlags::OUT, Instant::now() + wait)
            .map_err(|error| self.lost(error, wait))
    }

    /// Send one message.
    ///
    /// # Errors
    /// [`MeshError`]; the link is unusable then.
    pub fn send(&self, step: u64, message: Message, wait: Duration) -> Result<(), MeshError> {
        self.send_frames(&Self::encode(self.era, &[(step, message)])?, wait)
    }

    /// Wait for one message and the step it belongs to, as long as the era lasts.
    ///
    /// # Errors
    /// [`MeshError`]; the link is unusable then.
    pub fn receive(&self) -> Result<(u64, Message), MeshError> {
        let mut opener = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let (header, payload) = socket::read_frame(&self.stream, &mut opener, Instant::now() + NO_DEADLINE)
            .map_err(|error| self.lost(error, NO_DEADLINE))?;
        if header.kind != Kind::Control || header.era != self.era {
            let reason = format!(
                "a {:?} frame of era {:?} came on the plan link of {:?}",
                header.kind, header.era, self.era
            );
            return Err(MeshError::Protocol {
                rank: self.peer,
                reason,
            });
        }
        match postcard::from_bytes(&payload) {
            Ok(message) => Ok((header.step, message)),
            Err(error) => Err(MeshError::Protocol {
                rank: self.peer,
                reason: error.to_string(),
            }),
        }
    }

    fn lost(&self, error: SocketError, wait: Duration) -> MeshError {
        blame(self.peer, error, wait, &self.abort)
    }
}

/// What a socket's failure means for the era.
pub(super) fn blame(rank: u32, error: SocketError, wait: Duration, abort: &EraAbort) -> MeshError {
    if abort.is_aborted() {
        return MeshError::Aborted;
    }
    let millis = u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
    match error {
        SocketError::Deadline => MeshError::Deadline { rank, millis },
        SocketError::WrongTag(_) => MeshError::Forged { rank },
        SocketError::Frame(_) | SocketError::Content(_) => MeshError::Protocol {
            rank,
            reason: error.to_string(),
        },
        SocketError::Closed | SocketError::Io(_) => MeshError::PeerLost {
            rank,
            reason: error.to_string(),
        },
    }
}
