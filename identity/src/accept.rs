//! From a listening socket to connections for gRPC: in plain text, or over TLS whose clients are known.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpIncoming};

use crate::certificate::{self, Certificate};
use crate::credentials::{Clients, Credentials, Current};
use crate::room::{Place, Room};
use crate::spiffe::Identity;

/// Handshakes at the same time of one address, and in all; who comes then is dropped.
const HANDSHAKES: (usize, usize) = (16, 256);
/// Connections of one address, and in all, whose clients show certificates: they last, and many may come through one address.
const CONNECTIONS: (usize, usize) = (256, 4096);
/// The same where anybody may connect. Such a connection is for one question.
const OPEN_CONNECTIONS: (usize, usize) = (16, 1024);
/// A connection of anybody is over after this long.
const OPEN_LIFE: Duration = Duration::from_secs(60);
/// A client that has not finished its handshake by then is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that wait to be served.
const QUEUE: usize = 16;
/// Pause when the process has no more file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection; an extension of every request.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// By the certificate that it showed.
    pub who: Who,
    /// Where it is.
    pub address: Option<SocketAddr>,
}

/// Whose certificate was shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Who {
    /// In plain text, and where no certificate is asked for.
    #[default]
    Unknown,
    /// A part of Llamero.
    Part(Arc<Identity>),
    /// A client that the user admits, with the subject of its certificate.
    Client(Arc<str>),
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown => f.write_str("who shows no certificate"),
            Self::Part(identity) => identity.fmt(f),
            Self::Client(subject) => write!(f, "the client {subject:?}"),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: Socket,
    peer: Peer,
    /// Nothing is read after that.
    end: Option<Pin<Box<Sleep>>>,
    _place: Option<Place>,
}

#[derive(Debug)]
enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// Connections of a server.
pub type Incoming = Pin<Box<dyn Stream<Item = io::Result<Connection>> + Send>>;

/// Connections in plain text.
#[must_use]
pub fn plain(listener: TcpListener) -> Incoming {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Box::pin(incoming.map(|accepted| {
        accepted.map(|stream| Connection {
            peer: Peer {
                who: Who::Unknown,
                address: stream.peer_addr().ok(),
            },
            stream: Socket::Plain(stream),
            end: None,
            _place: None,
        })
    }))
}

/// Connections over TLS. While there are no credentials they are dropped.
#[must_use]
pub fn tls(listener: TcpListener, credentials: Credentials, clients: Clients) -> Incoming {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(accept(listener, credentials, clients, sender));
    Box::pin(ReceiverStream::new(receiver))
}

async fn accept(
    listener: TcpListener,
    credentials: Credentials,
    clients: Clients,
    to: mpsc::Sender<io::Result<Connection>>,
) {
    let is_open = matches!(clients, Clients::Anybody);
    let (of_address, in_all) = if is_open { OPEN_CONNECTIONS } else { CONNECTIONS };
    let (connections, handshakes) = (
        Room::new(of_address, in_all),
        Room::new(HANDSHAKES.0, HANDSHAKES.1),
    );
    loop {
        let accepted = tokio::select! {
            () = to.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let ip = address.ip();
        let Some((place, greeting)) = connections.enter(ip).zip(handshakes.enter(ip)) else {
            tracing::debug!(%address, "it has too many connections, or there are too many in all");
            continue;
        };
        let (credentials, clients, to) = (credentials.clone(), clients.clone(), to.clone());
        tokio::spawn(async move {
            let greeted =
                tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(stream, &credentials, &clients)).await;
            drop(greeting);
            match greeted {
                Ok(Ok(mut connection)) => {
                    connection._place = Some(place);
                    connection.end = is_open.then(|| Box::pin(tokio::time::sleep(OPEN_LIFE)));
                    // Whoever serves may be gone.
                    let _ = to.send(Ok(connection)).await;
                }
                Ok(Err(error)) => tracing::debug!(%address, %error, "a handshake failed"),
                Err(_) => tracing::debug!(%address, "a handshake took too long"),
            }
        });
    }
}

async fn handshake(
    stream: TcpStream,
    credentials: &Credentials,
    clients: &Clients,
) -> io::Result<Connection> {
    let Some(current) = credentials.current() else {
        return Err(io::Error::other("there is no certificate yet"));
    };
    let address = stream.peer_addr().ok();
    stream.set_nodelay(true)?;
    let config = current.server(clients).await.map_err(io::Error::other)?;
    let stream = TlsAcceptor::from(config).accept(stream).await?;
    let who = match clients {
        Clients::Anybody => Who::Unknown,
        Clients::WithCertificate | Clients::Admitted(_) => {
            let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
            who(shown, &current, clients).await?
        }
    };
    Ok(Connection {
        stream: Socket::Tls(Box::new(stream)),
        peer: Peer { who, address },
        end: None,
        _place: None,
    })
}

/// Whose certificates the handshake has found to be good. Only our own authority says who is a part of Llamero. Where a user's clients have certificates of
/// the same root, those that name no part of Llamero are clients.
async fn who(shown: &[CertificateDer<'_>], current: &Current, clients: &Clients) -> io::Result<Who> {
    let first = shown
        .first()
        .ok_or_else(|| io::Error::other("no certificate was shown"))?;
    let not_a_part = if current.is_ours(shown) {
        match Certificate::read(first) {
            Ok(read) if read.identity.trust_domain == current.identity.trust_domain => {
                return Ok(Who::Part(Arc::new(read.identity)));
            }
            Ok(read) => format!("{} is of another trust domain", read.identity),
            Err(error) => error.to_string(),
        }
    } else {
        "it is of no authority that is believed".to_owned()
    };
    match clients {
        Clients::Admitted(admitted) if admitted.accepts(shown).await => {
            let subject = certificate::subject(first).map_err(io::Error::other)?;
            Ok(Who::Client(subject.into()))
        }
        _ => Err(io::Error::other(not_a_part)),
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self
            .end
            .as_mut()
            .is_some_and(|end| end.as_mut().poll(cx).is_ready())
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        match &mut self.stream {
            Socket::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Socket::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Socket::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Socket::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Socket::Plain(stream) => stream.is_write_vectored(),
            Socket::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Socket::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Socket::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_has_an_end_is_over_however_silent_it_is() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut connection = Connection {
            stream: Socket::Plain(listener.accept().await.unwrap().0),
            peer: Peer::default(),
            end: Some(Box::pin(tokio::time::sleep(OPEN_LIFE))),
            _place: None,
        };
        let read = connection.read_u8().await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
