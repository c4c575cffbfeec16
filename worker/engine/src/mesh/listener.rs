//! Accepting peers, and surviving everybody else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::dial::{content, send};
use super::frame::Kind;
use super::handshakes::{Handshake, Handshakes};
use super::hello::{Answer, Hello, SignedHello};
use super::inbox::Inbox;
use super::socket::{self, SocketError};

/// A stranger has this long to say a whole Hello.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// And this long to begin with it.
const FIRST_BYTES_DEADLINE: Duration = Duration::from_secs(2);

/// The thread that accepts connections on the rank port. Ends when dropped.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Accept on `socket` for `inbox`.
    ///
    /// # Errors
    /// The operating system's word.
    pub fn start(socket: TcpListener, inbox: Arc<Inbox>) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stopped);
        let thread = std::thread::Builder::new()
            .name("rank-listener".into())
            .spawn(move || accept_all(&socket, &inbox, &seen))?;
        Ok(Self {
            address,
            stopped,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        let mut address = self.address;
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        // Wakes the thread from `accept`. Without that it would be waited for in vain.
        if TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn accept_all(socket: &TcpListener, inbox: &Arc<Inbox>, stopped: &AtomicBool) {
    let handshakes = Arc::new(Handshakes::default());
    while !stopped.load(Ordering::Acquire) {
        let (stream, from) = match socket.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the rank port");
                // Out of descriptors, most likely: do not turn in circles.
                std::thread::park_timeout(Duration::from_millis(50));
                continue;
            }
        };
        let handshake = match handshakes.begin(&stream, from.ip()) {
            Ok(handshake) => handshake,
            Err(error) => {
                tracing::warn!(%error, "cannot begin a handshake");
                continue;
            }
        };
        let inbox = Arc::clone(inbox);
        let spawned = std::thread::Builder::new().name("rank-handshake".into()).spawn(move || {
            match answer(stream, &inbox, &handshake) {
                Ok(Some((hello, Answer::Welcome))) => {
                    tracing::debug!(%from, rank = hello.from, link = ?hello.link, era = ?hello.era, "link accepted");
                }
                Ok(Some((hello, Answer::Refused { sentence, .. }))) => {
                    tracing::info!(%from, rank = hello.from, "link refused: {sentence}");
                }
                // Anybody can cause these, so they do not fill the log.
                Ok(None) => tracing::debug!(%from, "closed a connection of somebody without the group's key"),
                Err(error) => tracing::debug!(%from, "closed a connection that is no peer's: {error}"),
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "cannot start a thread for a handshake");
        }
    }
}

/// None for a stranger.
fn answer(
    stream: TcpStream,
    inbox: &Inbox,
    handshake: &Handshake,
) -> Result<Option<(Hello, Answer)>, SocketError> {
    if !inbox.is_formed() {
        return Ok(None);
    }
    let begin = Instant::now();
    let deadline = begin + HELLO_DEADLINE;
    socket::prepare(&stream)?;
    socket::wait_for(&stream, PollFlags::IN, begin + FIRST_BYTES_DEADLINE)?;
    let payload = socket::read_handshake(&stream, Kind::Opening, deadline)?;
    let opening = postcard::from_bytes(&payload).map_err(content)?;
    let Some(recognised) = inbox.recognise(&opening)? else {
        return Ok(None);
    };
    send(&stream, Kind::Challenge, &recognised.challenge(), deadline)?;
    let payload = socket::read_handshake(&stream, Kind::Hello, deadline)?;
    let signed: SignedHello = postcard::from_bytes(&payload).map_err(content)?;
    if !handshake.is_heard() {
        return Err(SocketError::Closed);
    }
    Ok(inbox.offer(&recognised, &signed, stream))
}
