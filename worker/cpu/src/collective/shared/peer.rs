//! Frames to and from one peer.

use llamero_engine::mesh::frame::{HEADER, Header, Kind};
use llamero_engine::{Era, Label, MeshError, Transfer};

use super::region::SharedRegion;
use super::ring::{Broken, DATUM};

/// Bytes of a header in a ring, which takes whole data.
const HEAD: usize = HEADER.next_multiple_of(DATUM);
/// So much of a large frame is pushed at once, so that the peer reads while more is written.
const PIECE: usize = 32 << 10;

/// A rank of this pod.
pub(super) struct Peer {
    pub(super) rank: u32,
    /// Its number among the ranks of the pod.
    pub(super) index: usize,
    /// Its memory.
    pub(super) region: SharedRegion,
    /// Frames so far.
    sent: u32,
    received: u32,
}

impl Peer {
    pub(super) fn new(rank: u32, index: usize, region: SharedRegion) -> Self {
        Self {
            rank,
            index,
            region,
            sent: 0,
            received: 0,
        }
    }
}

/// This rank's end of all rings.
#[derive(Clone, Copy)]
pub(super) struct Here<'a> {
    pub(super) region: &'a SharedRegion,
    /// Its number among the ranks of the pod.
    pub(super) index: usize,
}

/// One peer's part of an exchange.
pub(super) struct Progress<'a> {
    peer: &'a Peer,
    out_head: [u8; HEAD],
    out: &'a [u8],
    /// Bytes of head and payload that are to be sent, and that have been.
    to_send: usize,
    sent: usize,
    expected: Header,
    in_head: [u8; HEAD],
    into: Option<&'a mut [u8]>,
    received: usize,
}

impl<'a> Progress<'a> {
    pub(super) fn new(
        peer: &'a mut Peer,
        label: Label,
        era: Era,
        transfer: &'a mut Transfer<'_>,
    ) -> Result<Self, MeshError> {
        let rank = peer.rank;
        let header = |sequence, length: usize| {
            let length = u32::try_from(length)
                .ok()
                .filter(|length| *length <= Kind::Data.longest());
            length.map(|length| Header {
                kind: Kind::Data,
                tag: label.tag,
                era,
                step: label.step,
                sequence,
                length,
            })
        };
        let too_long = || MeshError::Protocol {
            rank,
            reason: format!(
                "a frame longer than {} bytes is to be exchanged",
                Kind::Data.longest()
            ),
        };
        let out = transfer.out.unwrap_or_default();
        let into = transfer.into.as_deref_mut();
        let head = header(peer.sent, out.len()).ok_or_else(too_long)?;
        let expected =
            header(peer.received, into.as_ref().map_or(0, |into| into.len())).ok_or_else(too_long)?;
        peer.sent = peer.sent.wrapping_add(u32::from(transfer.out.is_some()));
        peer.received = peer.received.wrapping_add(u32::from(into.is_some()));
        let mut out_head = [0; HEAD];
        out_head[..HEADER].copy_from_slice(&head.encode());
        Ok(Self {
            peer,
            out_head,
            out,
            to_send: transfer.out.map_or(0, |out| HEAD + out.len()),
            sent: 0,
            expected,
            in_head: [0; HEAD],
            into,
            received: 0,
        })
    }

    pub(super) fn rank(&self) -> u32 {
        self.peer.rank
    }

    pub(super) fn is_received(&self) -> bool {
        let all = |into: &&mut [u8]| self.received == HEAD + into.len();
        self.into.as_ref().is_none_or(all)
    }

    pub(super) fn is_done(&self) -> bool {
        self.sent == self.to_send && self.is_received()
    }

    /// Move what can be moved without waiting; whether that is anything.
    pub(super) fn advance(&mut self, here: Here<'_>) -> Result<bool, MeshError> {
        let rank = self.peer.rank;
        let broken = |error: Broken| MeshError::Protocol {
            rank,
            reason: error.to_string(),
        };
        let sent = self.sent < self.to_send && self.send(here).map_err(broken)?;
        let received = !self.is_received() && self.receive(here, broken)?;
        Ok(sent || received)
    }

    fn send(&mut self, here: Here<'_>) -> Result<bool, Broken> {
        let ring = self.peer.region.ring(here.index);
        let mut count = 0;
        if self.sent < HEAD {
            count = ring.push(self.out_head.get(self.sent..).unwrap_or_default())?;
        }
        if self.sent + count >= HEAD {
            let rest = self.out.get(self.sent + count - HEAD..);
            let piece = rest.and_then(|rest| rest.chunks(PIECE).next());
            count += ring.push(piece.unwrap_or_default())?;
        }
        self.sent += count;
        if count > 0 {
            self.peer.region.bell().ring();
        }
        Ok(count > 0)
    }

    fn receive(&mut self, here: Here<'_>, broken: impl Fn(Broken) -> MeshError) -> Result<bool, MeshError> {
        let ring = here.region.ring(self.peer.index);
        let (before, mut has_room) = (self.received, false);
        if self.received < HEAD {
            let rest = self.in_head.get_mut(self.received..).unwrap_or_default();
            let (count, wanted) = ring.pop(rest).map_err(&broken)?;
            (self.received, has_room) = (self.received + count, wanted);
            if self.received == HEAD {
                self.check_header()?;
            }
        }
        if let Some(into) = self.into.as_deref_mut()
            && self.received >= HEAD
        {
            let rest = into.get_mut(self.received - HEAD..).unwrap_or_default();
            let (count, wanted) = ring.pop(rest).map_err(&broken)?;
            self.received += count;
            has_room |= wanted;
        }
        if has_room {
            self.peer.region.bell().ring();
        }
        Ok(self.received > before)
    }

    fn check_header(&self) -> Result<(), MeshError> {
        let mut bytes = [0; HEADER];
        bytes.copy_from_slice(&self.in_head[..HEADER]);
        let reason = match Header::decode(&bytes) {
            Ok(header) if header == self.expected => return Ok(()),
            Ok(header) => format!("expected {:?} and got {header:?}", self.expected),
            Err(error) => error.to_string(),
        };
        let rank = self.peer.rank;
        Err(MeshError::Protocol { rank, reason })
    }
}
