//! Passing file descriptors between ranks of one pod.
//!
//! The receiver listens on an abstract Unix socket (see unix(7)) with a random name and tells that name, with a random
//! word, over the link that is authenticated already. The sender connects, says the word and passes the descriptors
//! (`SCM_RIGHTS`). Somebody else in the pod's network namespace can see the name but not the word.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use super::contract::{Label, Mesh, MeshError, Transfer, Wait};
use super::key::{Nonce, SECRET_BYTES, nonce};
use super::socket::{self, EraAbort};

/// Descriptors in one call at most: the kernel passes no more than 253 in one message.
pub const MOST_FILES: usize = 64;
/// Marks the frame that tells where to connect. Backends count their tags from 0.
const TAG: u16 = u16::MAX;
/// Waits look this often whether the era was ended.
const LOOK: Duration = Duration::from_millis(50);
const INVITATION: usize = 2 * SECRET_BYTES;

pub(super) fn send(
    mesh: &mut impl Mesh,
    peer: u32,
    files: &[BorrowedFd<'_>],
    until: Instant,
) -> Result<(), MeshError> {
    let lost = |error: io::Error| MeshError::PeerLost {
        rank: peer,
        reason: format!("files cannot be passed: {error}"),
    };
    if files.is_empty() || files.len() > MOST_FILES {
        return Err(misuse(mesh.rank(), files.len()));
    }
    let mut invitation = [0; INVITATION];
    swap(mesh, peer, None, Some(&mut invitation), until)?;
    let (name, word) = invitation.split_at(SECRET_BYTES);
    let address = SocketAddr::from_abstract_name(name).map_err(lost)?;
    let stream = UnixStream::connect_addr(&address).map_err(lost)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(misuse(mesh.rank(), files.len()));
    }
    // A fresh socket's buffer takes so few bytes whole.
    let sent = rustix::net::sendmsg(
        &stream,
        &[IoSlice::new(word)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    );
    match sent {
        Ok(SECRET_BYTES) => Ok(()),
        Ok(_) => Err(lost(ErrorKind::WriteZero.into())),
        Err(error) => Err(lost(error.into())),
    }
}

pub(super) fn receive(
    mesh: &mut impl Mesh,
    abort: &EraAbort,
    peer: u32,
    count: usize,
    until: Instant,
) -> Result<Vec<OwnedFd>, MeshError> {
    let lost = |error: io::Error| MeshError::PeerLost {
        rank: peer,
        reason: format!("files cannot be received: {error}"),
    };
    if count == 0 || count > MOST_FILES {
        return Err(misuse(mesh.rank(), count));
    }
    let (name, word) = (nonce().map_err(lost)?, nonce().map_err(lost)?);
    let address = SocketAddr::from_abstract_name(name).map_err(lost)?;
    let listener = UnixListener::bind_addr(&address).map_err(lost)?;
    listener.set_nonblocking(true).map_err(lost)?;
    let invitation = [name, word].concat();
    swap(mesh, peer, Some(&invitation), None, until)?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => match take(&stream, &word, until).map_err(lost)? {
                Some(files) if files.len() == count => return Ok(files),
                Some(files) => {
                    let reason = format!("{} files came instead of {count}", files.len());
                    return Err(MeshError::Protocol { rank: peer, reason });
                }
                // Somebody else: go on waiting for the peer.
                None => {}
            },
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                if abort.is_aborted() {
                    return Err(MeshError::Aborted);
                }
                if Instant::now() >= until {
                    let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                    return Err(MeshError::Deadline { rank: peer, millis });
                }
                wait(&listener, until.min(Instant::now() + LOOK)).map_err(lost)?;
            }
            Err(error) => return Err(lost(error)),
        }
    }
}

fn misuse(rank: u32, count: usize) -> MeshError {
    let reason = format!("{count} files are to be passed: 1 to {MOST_FILES} can be");
    MeshError::Protocol { rank, reason }
}

fn swap(
    mesh: &mut impl Mesh,
    peer: u32,
    out: Option<&[u8]>,
    into: Option<&mut [u8]>,
    until: Instant,
) -> Result<(), MeshError> {
    let spin = Duration::ZERO;
    let label = Label { step: 0, tag: TAG };
    mesh.exchange(label, &mut [Transfer { peer, out, into }], Wait { until, spin })
}

/// The files, when the other end knows the word; none for somebody else.
fn take(stream: &UnixStream, word: &Nonce, until: Instant) -> io::Result<Option<Vec<OwnedFd>>> {
    // One who connects and says nothing holds the peer up for a moment only.
    wait(stream, until.min(Instant::now() + LOOK * 20))?;
    stream.set_nonblocking(true)?;
    let mut said = Nonce::default();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut said)];
    let Ok(message) = rustix::net::recvmsg(stream, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) else {
        return Ok(None);
    };
    let mut files = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            files.extend(passed);
        }
    }
    if message.bytes < SECRET_BYTES {
        let rest = (&mut &*stream).read_exact(&mut said[message.bytes..]);
        if rest.is_err() {
            return Ok(None);
        }
    }
    Ok((said == *word).then_some(files))
}

fn wait(socket: &impl AsFd, until: Instant) -> io::Result<bool> {
    socket::wait_any(&mut [PollFd::new(socket, PollFlags::IN)], until)
}
