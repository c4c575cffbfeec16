//! Moving one frame to and one from each of many peers at once.
//!
//! Reads and writes of all peers progress together, so two ranks that send each other more than the sockets' buffers
//! hold do not wait for each other forever.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use super::contract::{Label, MeshError, Transfer, Wait};
use super::control_link::blame;
use super::data_link::DataLink;
use super::frame::{HEADER, Header, Kind};
use super::socket::{self, EraAbort, SocketError};
use crate::step::Era;

/// What is the same for all frames of one exchange.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) label: Label,
    pub(super) era: Era,
    pub(super) wait: Wait,
    /// When the exchange began, to say how long was waited.
    pub(super) start: Instant,
    pub(super) abort: &'a EraAbort,
}

/// One peer's part: what goes there and what is to come from there.
struct Job<'a> {
    link: &'a mut DataLink,
    out: Option<&'a [u8]>,
    into: Option<&'a mut [u8]>,
}

/// Why somebody left the era, as it travels in an abort frame.
#[derive(Debug, Serialize, Deserialize)]
enum AbortReason {
    PeerLost { rank: u32, reason: String },
    Deadline { rank: u32, millis: u64 },
    Protocol { rank: u32, reason: String },
}

impl Context<'_> {
    fn header(&self, sequence: u32, length: u32) -> Header {
        Header {
            kind: Kind::Data,
            tag: self.label.tag,
            era: self.era,
            step: self.label.step,
            sequence,
            length,
        }
    }
}

struct Progress<'a> {
    job: Job<'a>,
    out_header: [u8; HEADER],
    sent: usize,
    in_header: [u8; HEADER],
    received: usize,
    /// The peer's next frame has begun to come, or its end; that is for a later call.
    ahead: bool,
}

/// Carry out all transfers over `links`, both in ascending order of peers.
///
/// # Errors
/// [`MeshError`], blaming the first peer that is still owed something.
pub(super) fn exchange(
    context: Context<'_>,
    links: &mut [DataLink],
    transfers: &mut [Transfer<'_>],
) -> Result<(), MeshError> {
    let mut all = jobs(&context, links, transfers)?;
    let deadline = context.wait.until;
    let mut idle_since = context.start;
    loop {
        let mut moved = false;
        for progress in &mut all {
            moved |= progress.advance(&context, deadline)?;
        }
        if all.iter().all(Progress::is_done) {
            return Ok(());
        }
        let now = Instant::now();
        if moved {
            idle_since = now;
        } else if now.duration_since(idle_since) < context.wait.spin && !context.abort.is_aborted() {
            std::hint::spin_loop();
            continue;
        }
        // Peers whose part is done may know why the others' is not.
        for progress in &mut all {
            progress.listen(&context, deadline)?;
        }
        if context.abort.is_aborted() {
            return Err(MeshError::Aborted);
        }
        if !moved && !wait_any(&all, deadline)? {
            let late = all
                .iter()
                .find(|progress| !progress.is_received())
                .or_else(|| all.first());
            return Err(match late {
                Some(progress) => progress.lost(SocketError::Deadline, &context),
                None => MeshError::Aborted,
            });
        }
    }
}

fn jobs<'a>(
    context: &Context<'_>,
    links: &'a mut [DataLink],
    transfers: &'a mut [Transfer<'_>],
) -> Result<Vec<Progress<'a>>, MeshError> {
    let mut links = links.iter_mut();
    let mut all = Vec::with_capacity(transfers.len());
    for transfer in transfers {
        let Some(link) = links.find(|link| link.peer == transfer.peer) else {
            let reason =
                "there is no link to it, or transfers are not in ascending order of peers".to_owned();
            let rank = transfer.peer;
            return Err(MeshError::Protocol { rank, reason });
        };
        let job = Job {
            link,
            out: transfer.out,
            into: transfer.into.as_deref_mut(),
        };
        all.push(Progress::new(context, job)?);
    }
    Ok(all)
}

fn wait_any(all: &[Progress<'_>], deadline: Instant) -> Result<bool, MeshError> {
    let mut fds: Vec<PollFd<'_>> = all
        .iter()
        .filter_map(|progress| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !progress.is_received() || !progress.ahead);
            flags.set(PollFlags::OUT, !progress.is_sent());
            (!flags.is_empty()).then(|| PollFd::new(&progress.job.link.stream, flags))
        })
        .collect();
    socket::wait_any(&mut fds, deadline).map_err(|error| MeshError::PeerLost {
        rank: all.first().map_or(0, |progress| progress.job.link.peer),
        reason: error.to_string(),
    })
}

/// Tell the peers why this rank leaves the era, where no frame is half written. Best effort: they find out by the
/// closed connection otherwise, only not who is to blame.
pub(super) fn send_abort(links: &[DataLink], era: Era, step: u64, error: &MeshError) {
    let reason = match error.clone() {
        MeshError::PeerLost { rank, reason } => AbortReason::PeerLost { rank, reason },
        MeshError::Deadline { rank, millis } => AbortReason::Deadline { rank, millis },
        MeshError::Protocol { rank, reason } => AbortReason::Protocol { rank, reason },
        MeshError::Aborted | MeshError::NotLocal { .. } => return,
    };
    let header = Header::of(Kind::Abort, era, step);
    let Ok(payload) = postcard::to_stdvec(&reason) else {
        return;
    };
    let Ok(bytes) = socket::frame_bytes(header, &payload) else {
        return;
    };
    for link in links.iter().filter(|link| !link.torn) {
        let _ = (&link.stream).write(&bytes);
    }
}

impl<'a> Progress<'a> {
    fn new(context: &Context<'_>, job: Job<'a>) -> Result<Self, MeshError> {
        let length = u32::try_from(job.out.map_or(0, <[u8]>::len))
            .ok()
            .filter(|l| *l <= Kind::Data.longest());
        let Some(length) = length else {
            let reason = format!("a frame longer than {} bytes is to be sent", Kind::Data.longest());
            return Err(MeshError::Protocol {
                rank: job.link.peer,
                reason,
            });
        };
        let header = context.header(job.link.sent, length);
        if job.out.is_some() {
            job.link.sent = job.link.sent.wrapping_add(1);
            job.link.torn = true;
        }
        Ok(Self {
            job,
            out_header: header.encode(),
            sent: 0,
            in_header: [0; HEADER],
            received: 0,
            ahead: false,
        })
    }

    fn is_sent(&self) -> bool {
        self.job.out.is_none_or(|out| self.sent == HEADER + out.len())
    }

    fn is_received(&self) -> bool {
        self.job
            .into
            .as_ref()
            .is_none_or(|into| self.received == HEADER + into.len())
    }

    fn is_done(&self) -> bool {
        self.is_sent() && self.is_received()
    }

    fn advance(&mut self, context: &Context<'_>, deadline: Instant) -> Result<bool, MeshError> {
        let received = !self.is_received() && self.receive(context, deadline)?;
        let sent = !self.is_sent() && self.send().map_err(|error| self.lost(error, context))?;
        Ok(received || sent)
    }

    fn send(&mut self) -> Result<bool, SocketError> {
        let out = self.job.out.unwrap_or_default();
        let header = &self.out_header[self.sent.min(HEADER)..];
        let payload = &out[self.sent.saturating_sub(HEADER)..];
        match (&self.job.link.stream).write_vectored(&[IoSlice::new(header), IoSlice::new(payload)]) {
            Ok(0) => Err(SocketError::Closed),
            Ok(count) => {
                self.sent += count;
                self.job.link.torn = !self.is_sent();
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn receive(&mut self, context: &Context<'_>, deadline: Instant) -> Result<bool, MeshError> {
        let mut moved = false;
        if self.received < HEADER {
            let count = read_some(&self.job.link.stream, &mut self.in_header[self.received..]);
            let count = count.map_err(|error| self.lost(error, context))?;
            self.received += count;
            moved = count > 0;
            if self.received < HEADER {
                return Ok(moved);
            }
            self.check_header(context, deadline)?;
        }
        let into = self.job.into.as_deref_mut().unwrap_or_default();
        if self.received < HEADER + into.len() {
            let count = read_some(&self.job.link.stream, &mut into[self.received - HEADER..]);
            let count = count.map_err(|error| self.lost(error, context))?;
            self.received += count;
            moved |= count > 0;
        }
        Ok(moved)
    }

    /// Hear a peer whose frame is here already: its abort frame ends this exchange too, at once and with the right one to
    /// blame.
    fn listen(&mut self, context: &Context<'_>, deadline: Instant) -> Result<(), MeshError> {
        if self.ahead || !self.is_received() {
            return Ok(());
        }
        let mut bytes = [0; HEADER];
        match self.job.link.stream.peek(&mut bytes) {
            Ok(HEADER) => {
                let aborted = Header::decode(&bytes).ok();
                let aborted =
                    aborted.filter(|header| header.kind == Kind::Abort && header.era == context.era);
                if let Some(header) = aborted {
                    let read = socket::read_exact(&self.job.link.stream, &mut bytes, deadline);
                    read.map_err(|error| self.lost(error, context))?;
                    return Err(self.aborted_by_peer(header, context, deadline));
                }
                self.ahead = true;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // A peer may close after its last part; if more was to come from it, the next call fails.
            Ok(_) | Err(_) => self.ahead = true,
        }
        Ok(())
    }

    fn check_header(&mut self, context: &Context<'_>, deadline: Instant) -> Result<(), MeshError> {
        let header = Header::decode(&self.in_header).map_err(|error| self.lost(error.into(), context))?;
        if header.kind == Kind::Abort && header.era == context.era {
            return Err(self.aborted_by_peer(header, context, deadline));
        }
        let length = u32::try_from(self.job.into.as_ref().map_or(0, |into| into.len())).unwrap_or(u32::MAX);
        let expected = context.header(self.job.link.received, length);
        if header != expected {
            let reason = format!("expected {expected:?} and got {header:?}");
            return Err(self.lost(SocketError::Content(reason), context));
        }
        self.job.link.received = self.job.link.received.wrapping_add(1);
        Ok(())
    }

    /// A peer left and says whom it blames.
    fn aborted_by_peer(&self, header: Header, context: &Context<'_>, deadline: Instant) -> MeshError {
        let mut payload = vec![0; header.length as usize];
        let reason = socket::read_exact(&self.job.link.stream, &mut payload, deadline)
            .and_then(|()| postcard::from_bytes(&payload).map_err(super::dial::content));
        match reason {
            Ok(AbortReason::PeerLost { rank, reason }) => MeshError::PeerLost { rank, reason },
            Ok(AbortReason::Deadline { rank, millis }) => MeshError::Deadline { rank, millis },
            Ok(AbortReason::Protocol { rank, reason }) => MeshError::Protocol { rank, reason },
            Err(error) => self.lost(error, context),
        }
    }

    fn lost(&self, error: SocketError, context: &Context<'_>) -> MeshError {
        blame(
            self.job.link.peer,
            error,
            context.wait.until.duration_since(context.start),
            context.abort,
        )
    }
}

/// Read what is there; 0 when that is nothing yet.
fn read_some(mut stream: &std::net::TcpStream, into: &mut [u8]) -> Result<usize, SocketError> {
    match stream.read(into) {
        Ok(0) => Err(SocketError::Closed),
        Ok(count) => Ok(count),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        Err(error) => Err(error.into()),
    }
}
