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
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, socket_with,
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
/// Connecting is tried again this often.
const RETRY: Duration = Duration::from_millis(5);
const INVITATION: usize = 2 * SECRET_BYTES;

/// Pass a file to all of `peers`, ranks of this pod in ascending order that do the same; theirs, in the same order.
///
/// # Errors
/// As [`Mesh::send_files`].
pub fn swap_files(
    mesh: &mut dyn Mesh,
    peers: &[u32],
    file: BorrowedFd<'_>,
    until: Instant,
) -> Result<Vec<OwnedFd>, MeshError> {
    let rank = mesh.rank();
    let mut theirs = Vec::new();
    // All ranks take the pairs in one order, the lower rank of each gives first: somebody can always go on.
    for peer in peers.iter().copied() {
        if rank < peer {
            mesh.send_files(peer, &[file], until)?;
        }
        theirs.extend(mesh.receive_files(peer, 1, until)?);
        if peer < rank {
            mesh.send_files(peer, &[file], until)?;
        }
    }
    Ok(theirs)
}

pub(super) fn send(
    mesh: &mut impl Mesh,
    abort: &EraAbort,
    peer: u32,
    files: &[BorrowedFd<'_>],
    until: Instant,
) -> Result<(), MeshError> {
    let start = Instant::now();
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
    let stream = connect(name, abort, until).map_err(|failed| match failed {
        Connecting::Aborted => MeshError::Aborted,
        Connecting::Deadline => MeshError::Deadline {
            rank: peer,
            millis: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        },
        Connecting::Io(error) => lost(error),
    })?;
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

/// Why there is no connection.
enum Connecting {
    Aborted,
    Deadline,
    Io(io::Error),
}

/// Connect to an abstract socket. A usual `connect` waits without end while others fill the listener's queue.
fn connect(name: &[u8], abort: &EraAbort, until: Instant) -> Result<UnixStream, Connecting> {
    let io = |error: Errno| Connecting::Io(error.into());
    let address = SocketAddrUnix::new_abstract_name(name).map_err(io)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(io)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(UnixStream::from(socket)),
            // The queue is full (connect(2)), and no event tells when it is not.
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(io(error)),
        }
        if abort.is_aborted() {
            return Err(Connecting::Aborted);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Connecting::Deadline);
        }
        // Nothing is ready to be waited for, so this is a pause.
        let _ = socket::wait_any(&mut [], until.min(Instant::now() + RETRY));
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
    let rest = said.get_mut(message.bytes..).unwrap_or_default();
    if (&mut &*stream).read_exact(rest).is_err() {
        return Ok(None);
    }
    Ok((said == *word).then_some(files))
}

fn wait(socket: &impl AsFd, until: Instant) -> io::Result<bool> {
    socket::wait_any(&mut [PollFd::new(socket, PollFlags::IN)], until)
}

#[cfg(test)]
mod tests {
    use super::super::contract::Abort as _;
    use super::*;

    #[test]
    fn connecting_has_a_deadline_and_ends_with_the_era() {
        let name = nonce().unwrap();
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let abort = EraAbort::default();
        let mut waiting = Vec::new();
        let full = loop {
            match connect(&name, &abort, Instant::now()) {
                Ok(stream) => waiting.push(stream),
                Err(full) => break full,
            }
        };
        assert!(matches!(full, Connecting::Deadline));
        let long = Instant::now() + Duration::from_secs(60);
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| connect(&name, &abort, long));
            abort.abort();
            assert!(matches!(connecting.join().unwrap(), Err(Connecting::Aborted)));
        });
        drop(listener.accept().unwrap());
        assert!(connect(&name, &EraAbort::default(), long).is_ok());
    }
}
