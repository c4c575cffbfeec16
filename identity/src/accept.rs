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
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpIncoming};

use crate::certificate::{self, Certificate};
use crate::credentials::{Clients, Credentials, Current};
use crate::spiffe::Identity;

/// Handshakes at the same time; who comes then waits in the kernel's queue.
const HANDSHAKES: usize = 64;
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
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = to.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (credentials, clients, to) = (credentials.clone(), clients.clone(), to.clone());
        tokio::spawn(async move {
            let address = stream.peer_addr().ok();
            let greeted =
                tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(stream, &credentials, &clients)).await;
            drop(place);
            match greeted {
                Ok(Ok(connection)) => {
                    // Whoever serves may be gone.
                    let _ = to.send(Ok(connection)).await;
                }
                Ok(Err(error)) => tracing::debug!(?address, %error, "a handshake failed"),
                Err(_) => tracing::debug!(?address, "a handshake took too long"),
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
            who(shown, &current)?
        }
    };
    Ok(Connection {
        stream: Socket::Tls(Box::new(stream)),
        peer: Peer { who, address },
    })
}

/// Whose certificates the handshake has found to be good. Only our own authority says who is a part of Llamero.
fn who(shown: &[CertificateDer<'_>], current: &Current) -> io::Result<Who> {
    let first = shown
        .first()
        .ok_or_else(|| io::Error::other("no certificate was shown"))?;
    if !current.is_ours(shown) {
        let subject = certificate::subject(first).map_err(io::Error::other)?;
        return Ok(Who::Client(subject.into()));
    }
    let identity = Certificate::read(first).map_err(io::Error::other)?.identity;
    if identity.trust_domain != current.identity.trust_domain {
        return Err(io::Error::other(format!("{identity} is of another trust domain")));
    }
    Ok(Who::Part(Arc::new(identity)))
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
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
