//! Moving one frame to and one from each of many peers at once.
//!
//! Reads and writes of all peers progress together, so two ranks that send each other more than the sockets' buffers
//! hold do not wait for each other forever.

use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use super::abort_frame;
use super::contract::{Label, MeshError, Transfer, Wait};
use super::control_link::blame;
use super::data_link::DataLink;
use super::frame::{Header, Kind};
use super::incoming::to_come;
use super::outgoing::Outgoing;
use super::seal::{RECORD, TAG};
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

/// One peer's part: what goes there and what is to come from there.
struct Progress<'a> {
    link: &'a mut DataLink,
    out: Option<Outgoing<'a>>,
    into: Option<&'a mut [u8]>,
    /// The header of the peer's frame was the expected one.
    accepted: bool,
    /// Bytes of the payload that were opened.
    opened: usize,
    /// Bytes of the next record and its tag that have come.
    received: usize,
    tag: [u8; TAG],
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
            moved |= progress.advance(&context)?;
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
            progress.listen(&context)?;
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
        all.push(Progress::new(context, link, transfer)?);
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
            (!flags.is_empty()).then(|| PollFd::new(&progress.link.stream, flags))
        })
        .collect();
    socket::wait_any(&mut fds, deadline).map_err(|error| MeshError::PeerLost {
        rank: all.first().map_or(0, |progress| progress.link.peer),
        reason: error.to_string(),
    })
}

impl<'a> Progress<'a> {
    fn new(
        context: &Context<'_>,
        link: &'a mut DataLink,
        transfer: &'a mut Transfer<'_>,
    ) -> Result<Self, MeshError> {
        let mut progress = Self {
            link,
            out: None,
            into: transfer.into.as_deref_mut(),
            accepted: false,
            opened: 0,
            received: 0,
            tag: [0; TAG],
            ahead: false,
        };
        if let Some(out) = transfer.out {
            let begun = progress.begin(context, out);
            progress.out = Some(begun.map_err(|error| progress.lost(error, context))?);
        }
        Ok(progress)
    }

    fn begin(&mut self, context: &Context<'_>, out: &'a [u8]) -> Result<Outgoing<'a>, SocketError> {
        let length = u32::try_from(out.len())
            .ok()
            .filter(|length| *length <= Kind::Data.longest());
        let Some(length) = length else {
            let reason = format!("a frame longer than {} bytes is to be sent", Kind::Data.longest());
            return Err(SocketError::Content(reason));
        };
        let header = context.header(self.link.sent, length);
        self.link.sent = self.link.sent.wrapping_add(1);
        Outgoing::new(self.link, header, out)
    }

    fn is_sent(&self) -> bool {
        self.out.as_ref().is_none_or(Outgoing::is_done)
    }

    fn is_received(&self) -> bool {
        let all = |into: &&mut [u8]| self.accepted && self.opened == into.len();
        self.into.as_ref().is_none_or(all)
    }

    fn is_done(&self) -> bool {
        self.is_sent() && self.is_received()
    }

    fn advance(&mut self, context: &Context<'_>) -> Result<bool, MeshError> {
        let received = !self.is_received() && self.receive(context)?;
        let sent = match &mut self.out {
            Some(out) if !out.is_done() => out.send(self.link).map_err(|error| self.lost(error, context))?,
            _ => false,
        };
        Ok(received || sent)
    }

    fn receive(&mut self, context: &Context<'_>) -> Result<bool, MeshError> {
        if !self.accepted {
            let link = &mut *self.link;
            let header = link.incoming.header(&link.stream, &mut link.opener);
            let Some(header) = header.map_err(|error| self.lost(error, context))? else {
                return Ok(false);
            };
            self.check_header(header, context)?;
            self.link.incoming.take_header();
            self.accepted = true;
        }
        self.receive_record().map_err(|error| self.lost(error, context))
    }

    /// What is here of one record.
    fn receive_record(&mut self) -> Result<bool, SocketError> {
        let into = self.into.as_deref_mut().unwrap_or_default();
        let left = into.get_mut(self.opened..).unwrap_or_default();
        let length = left.len().min(RECORD);
        if length == 0 {
            return Ok(true);
        }
        let (record, _) = left.split_at_mut(length);
        let DataLink {
            stream,
            incoming,
            opener,
            ..
        } = &mut *self.link;
        let (rest, tag) = to_come(record, &mut self.tag, self.received);
        let count = incoming.read(stream, rest, tag)?;
        self.received += count;
        if self.received == length + TAG {
            opener.open(record, &self.tag)?;
            self.opened += length;
            self.received = 0;
        }
        Ok(count > 0)
    }

    /// Hear a peer whose frame is here already: its abort frame ends this exchange too, at once and with the right one to
    /// blame.
    fn listen(&mut self, context: &Context<'_>) -> Result<(), MeshError> {
        if self.ahead || !self.is_received() {
            return Ok(());
        }
        let link = &mut *self.link;
        match link.incoming.header(&link.stream, &mut link.opener) {
            Ok(None) => {}
            Ok(Some(header)) if header.kind == Kind::Abort => {
                return Err(self.aborted_by_peer(header, context));
            }
            Err(error @ SocketError::WrongTag(_)) => return Err(self.lost(error, context)),
            // A peer may close after its last part; if more was to come from it, the next call fails.
            Ok(Some(_)) | Err(_) => self.ahead = true,
        }
        Ok(())
    }

    fn check_header(&mut self, header: Header, context: &Context<'_>) -> Result<(), MeshError> {
        if header.kind == Kind::Abort && header.era == context.era {
            return Err(self.aborted_by_peer(header, context));
        }
        let length = u32::try_from(self.into.as_ref().map_or(0, |into| into.len())).unwrap_or(u32::MAX);
        let expected = context.header(self.link.received, length);
        if header != expected {
            let reason = format!("expected {expected:?} and got {header:?}");
            return Err(self.lost(SocketError::Content(reason), context));
        }
        self.link.received = self.link.received.wrapping_add(1);
        Ok(())
    }

    /// A peer left and says whom it blames.
    fn aborted_by_peer(&mut self, header: Header, context: &Context<'_>) -> MeshError {
        abort_frame::receive(self.link, header).unwrap_or_else(|error| self.lost(error, context))
    }

    fn lost(&self, error: SocketError, context: &Context<'_>) -> MeshError {
        blame(
            self.link.peer,
            error,
            context.wait.until.duration_since(context.start),
            context.abort,
        )
    }
}
