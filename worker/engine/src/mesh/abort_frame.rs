//! How ranks tell each other that the era is over, and whom they blame.

use std::io::Write;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::contract::MeshError;
use super::control_link::blame;
use super::data_link::DataLink;
use super::frame::{Header, Kind};
use super::socket::{self, EraAbort, SocketError};
use crate::step::Era;

/// An abort frame is sent at once, so what is missing of it comes in a moment.
const WHOLE: Duration = Duration::from_secs(1);

/// Why somebody left the era, as it travels.
#[derive(Debug, Serialize, Deserialize)]
enum AbortReason {
    PeerLost { rank: u32, reason: String },
    Deadline { rank: u32, millis: u64 },
    Protocol { rank: u32, reason: String },
    Forged { rank: u32 },
}

/// Tell the peers why this rank leaves the era, where no frame is half written. Best effort: they find out by the
/// closed connection otherwise, only not who is to blame.
pub(super) fn send(links: &mut [DataLink], era: Era, step: u64, error: &MeshError) {
    let reason = match error.clone() {
        MeshError::PeerLost { rank, reason } => AbortReason::PeerLost { rank, reason },
        MeshError::Deadline { rank, millis } => AbortReason::Deadline { rank, millis },
        MeshError::Protocol { rank, reason } => AbortReason::Protocol { rank, reason },
        MeshError::Forged { rank } => AbortReason::Forged { rank },
        MeshError::Aborted | MeshError::NotLocal { .. } => return,
    };
    let header = Header::of(Kind::Abort, era, step);
    let Ok(payload) = postcard::to_stdvec(&reason) else {
        return;
    };
    let Ok(bytes) = socket::frame_bytes(header, &payload) else {
        return;
    };
    for link in links.iter_mut().filter(|link| !link.torn) {
        let mut sealed = Vec::new();
        if link.sealer.seal_frame(&bytes, &mut sealed).is_ok() {
            let _ = (&link.stream).write(&sealed);
        }
    }
}

/// Read the rest of an abort frame: whom the peer blames.
pub(super) fn receive(link: &mut DataLink, header: Header) -> Result<MeshError, SocketError> {
    link.incoming.take_header();
    let (length, until) = (header.length as usize, Instant::now() + WHOLE);
    let payload = link
        .incoming
        .read_short(&link.stream, &mut link.opener, length, until)?;
    let reason = postcard::from_bytes(&payload).map_err(super::dial::content)?;
    Ok(match reason {
        AbortReason::PeerLost { rank, reason } => MeshError::PeerLost { rank, reason },
        AbortReason::Deadline { rank, millis } => MeshError::Deadline { rank, millis },
        AbortReason::Protocol { rank, reason } => MeshError::Protocol { rank, reason },
        AbortReason::Forged { rank } => MeshError::Forged { rank },
    })
}

/// What peers have said outside exchanges. The end of a connection counts where something is owed from there.
pub(super) fn listen(links: &mut [DataLink], abort: &EraAbort, owed: &[u32]) -> Result<(), MeshError> {
    if abort.is_aborted() {
        return Err(MeshError::Aborted);
    }
    for link in links {
        let peer = link.peer;
        let heard = match link.incoming.header(&link.stream, &mut link.opener) {
            Ok(Some(header)) if header.kind == Kind::Abort => receive(link, header),
            Ok(_) => continue,
            Err(SocketError::Closed | SocketError::Io(_)) if !owed.contains(&peer) => continue,
            Err(error) => Err(error),
        };
        return Err(heard.unwrap_or_else(|error| blame(peer, error, Duration::ZERO, abort)));
    }
    Ok(())
}

/// Whether a peer's next frame of an exchange has begun to come. Its end, or the word that it has left, is an error.
pub(super) fn has_begun(links: &mut [DataLink], abort: &EraAbort, peer: u32) -> Result<bool, MeshError> {
    if abort.is_aborted() {
        return Err(MeshError::Aborted);
    }
    let Some(link) = links.iter_mut().find(|link| link.peer == peer) else {
        let reason = "there is no link to it".to_owned();
        return Err(MeshError::Protocol { rank: peer, reason });
    };
    let heard = match link.incoming.header(&link.stream, &mut link.opener) {
        Ok(Some(header)) if header.kind == Kind::Abort => receive(link, header),
        Ok(header) => return Ok(header.is_some()),
        Err(error) => Err(error),
    };
    Err(heard.unwrap_or_else(|error| blame(peer, error, Duration::ZERO, abort)))
}
