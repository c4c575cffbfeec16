//! Moving one frame to and one from each of many peers at once.
//!
//! Reads and writes of all peers progress together, so two ranks that send each other more than the sockets' buffers
//! hold do not wait for each other forever.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use super::control_link::blame;
use super::data_link::DataLink;
use super::frame::{HEADER, Header, Kind};
use super::socket::{self, EraAbort, SocketError};
use crate::collective::CollectiveError;
use crate::step::Era;

/// What is the same for all frames of one exchange.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) kind: Kind,
    pub(super) era: Era,
    pub(super) step: u64,
    pub(super) wait: Duration,
    pub(super) spin: Duration,
    pub(super) abort: &'a EraAbort,
}

/// One peer's part: what goes there and what is to come from there.
pub(super) struct Job<'a> {
    pub(super) link: &'a mut DataLink,
    pub(super) out: Option<&'a [u8]>,
    pub(super) into: Option<&'a mut [u8]>,
}

/// Why somebody left the era, as it travels in a Goodbye.
#[derive(Debug, Serialize, Deserialize)]
enum Farewell {
    PeerLost { rank: u32, reason: String },
    Deadline { rank: u32, millis: u64 },
    Protocol { rank: u32, reason: String },
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

/// Carry out all jobs.
///
/// # Errors
/// [`CollectiveError`], blaming the first peer that is still owed something.
pub(super) fn exchange(context: Context<'_>, jobs: Vec<Job<'_>>) -> Result<(), CollectiveError> {
    let mut all = jobs
        .into_iter()
        .map(|job| Progress::new(&context, job))
        .collect::<Result<Vec<_>, _>>()?;
    let start = Instant::now();
    let deadline = start + context.wait;
    let mut idle_since = start;
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
        } else if now.duration_since(idle_since) < context.spin && !context.abort.is_aborted() {
            std::hint::spin_loop();
            continue;
        }
        // Peers whose part is done may know why the others' is not.
        for progress in &mut all {
            progress.listen(&context, deadline)?;
        }
        if context.abort.is_aborted() {
            return Err(CollectiveError::Aborted);
        }
        if !moved && !wait_any(&all, deadline)? {
            let late = all
                .iter()
                .find(|progress| !progress.is_received())
                .or_else(|| all.first());
            return Err(match late {
                Some(progress) => progress.lost(SocketError::Deadline, &context),
                None => CollectiveError::Aborted,
            });
        }
    }
}

fn wait_any(all: &[Progress<'_>], deadline: Instant) -> Result<bool, CollectiveError> {
    let mut fds: Vec<PollFd<'_>> = all
        .iter()
        .filter_map(|progress| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !progress.is_received() || !progress.ahead);
            flags.set(PollFlags::OUT, !progress.is_sent());
            (!flags.is_empty()).then(|| PollFd::new(&progress.job.link.stream, flags))
        })
        .collect();
    socket::wait_any(&mut fds, deadline).map_err(|error| CollectiveError::PeerLost {
        rank: all.first().map_or(0, |progress| progress.job.link.peer),
        reason: error.to_string(),
    })
}

/// Tell the peers why this rank leaves the era, where no frame is half written. Best effort: they find out by the
/// closed connection otherwise, only not who is to blame.
pub(super) fn say_goodbye(links: &[DataLink], era: Era, step: u64, error: &CollectiveError) {
    let farewell = match error.clone() {
        CollectiveError::PeerLost { rank, reason } => Farewell::PeerLost { rank, reason },
        CollectiveError::Deadline { rank, millis } => Farewell::Deadline { rank, millis },
        CollectiveError::Protocol { rank, reason } => Farewell::Protocol { rank, reason },
        CollectiveError::Aborted => return,
    };
    let header = Header {
        kind: Kind::Goodbye,
        era,
        step,
        sequence: 0,
        length: 0,
    };
    let Ok(payload) = postcard::to_stdvec(&farewell) else {
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
    fn new(context: &Context<'_>, job: Job<'a>) -> Result<Self, CollectiveError> {
        let length = u32::try_from(job.out.map_or(0, <[u8]>::len))
            .ok()
            .filter(|l| *l <= context.kind.longest());
        let Some(length) = length else {
            let reason = format!(
                "a {:?} frame longer than {} bytes is to be sent",
                context.kind,
                context.kind.longest()
            );
            return Err(CollectiveError::Protocol {
                rank: job.link.peer,
                reason,
            });
        };
        let Context { kind, era, step, .. } = *context;
        let header = Header {
            kind,
            era,
            step,
            sequence: job.link.sent,
            length,
        };
        if job.out.is_some() {
            job.link.sent += 1;
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

    fn advance(&mut self, context: &Context<'_>, deadline: Instant) -> Result<bool, CollectiveError> {
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

    fn receive(&mut self, context: &Context<'_>, deadline: Instant) -> Result<bool, CollectiveError> {
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

    /// Hear a peer whose frame is here already: its Goodbye ends this exchange too, at once and with the right one to
    /// blame.
    fn listen(&mut self, context: &Context<'_>, deadline: Instant) -> Result<(), CollectiveError> {
        if self.ahead || !self.is_received() {
            return Ok(());
        }
        let mut bytes = [0; HEADER];
        match self.job.link.stream.peek(&mut bytes) {
            Ok(HEADER) => {
                let goodbye = Header::decode(&bytes).ok();
                let goodbye =
                    goodbye.filter(|header| header.kind == Kind::Goodbye && header.era == context.era);
                if let Some(header) = goodbye {
                    let read = socket::read_exact(&self.job.link.stream, &mut bytes, deadline);
                    read.map_err(|error| self.lost(error, context))?;
                    return Err(self.farewell(header, context, deadline));
                }
                self.ahead = true;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // A peer may close after its last part; if more was to come from it, the next call fails.
            Ok(_) | Err(_) => self.ahead = true,
        }
        Ok(())
    }

    fn check_header(&mut self, context: &Context<'_>, deadline: Instant) -> Result<(), CollectiveError> {
        let header = Header::decode(&self.in_header).map_err(|error| self.lost(error.into(), context))?;
        if header.kind == Kind::Goodbye && header.era == context.era {
            return Err(self.farewell(header, context, deadline));
        }
        let expected = Header {
            kind: context.kind,
            era: context.era,
            step: context.step,
            sequence: self.job.link.received,
            length: u32::try_from(self.job.into.as_ref().map_or(0, |into| into.len())).unwrap_or(u32::MAX),
        };
        if header != expected {
            let reason = format!("expected {expected:?} and got {header:?}");
            return Err(self.lost(SocketError::Content(reason), context));
        }
        self.job.link.received += 1;
        Ok(())
    }

    /// A peer left and says whom it blames.
    fn farewell(&self, header: Header, context: &Context<'_>, deadline: Instant) -> CollectiveError {
        let mut payload = vec![0; header.length as usize];
        let farewell = socket::read_exact(&self.job.link.stream, &mut payload, deadline)
            .and_then(|()| postcard::from_bytes(&payload).map_err(super::dial::content));
        match farewell {
            Ok(Farewell::PeerLost { rank, reason }) => CollectiveError::PeerLost { rank, reason },
            Ok(Farewell::Deadline { rank, millis }) => CollectiveError::Deadline { rank, millis },
            Ok(Farewell::Protocol { rank, reason }) => CollectiveError::Protocol { rank, reason },
            Err(error) => self.lost(error, context),
        }
    }

    fn lost(&self, error: SocketError, context: &Context<'_>) -> CollectiveError {
        blame(self.job.link.peer, error, context.wait, context.abort)
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
