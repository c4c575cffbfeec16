//! Dialling a server that must prove who it is.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use crate::credentials::Credentials;
use crate::verify::Expected;

/// Stands where TLS wants a name; identities decide, not names.
const NO_NAME: &str = "llamero";

/// How a connection is made.
#[derive(Debug, Clone)]
pub enum Link {
    /// In plain text: groups of revisions from before there were identities.
    Plain,
    /// Over TLS, with our certificate, to who is expected.
    Mutual(Credentials, Expected),
}

impl Link {
    /// A connection of `endpoint`, whose URI has the scheme `http`; it is made when it is first used, and again when it broke.
    #[must_use]
    pub fn channel(&self, endpoint: &Endpoint) -> Channel {
        match self {
            Self::Plain => endpoint.connect_lazy(),
            Self::Mutual(credentials, expected) => endpoint.connect_with_connector_lazy(Connector {
                how: How::Mutual(credentials.clone(), expected.clone()),
            }),
        }
    }
}

/// A connection without a certificate of our own.
#[must_use]
pub fn anonymous(endpoint: &Endpoint, config: Arc<ClientConfig>) -> Channel {
    endpoint.connect_with_connector_lazy(Connector {
        how: How::Anonymous(config),
    })
}

/// Makes connections.
#[derive(Debug, Clone)]
struct Connector {
    how: How,
}

#[derive(Debug, Clone)]
enum How {
    Mutual(Credentials, Expected),
    Anonymous(Arc<ClientConfig>),
}

impl How {
    /// What is in use now.
    fn config(&self) -> io::Result<Arc<ClientConfig>> {
        match self {
            Self::Anonymous(config) => Ok(Arc::clone(config)),
            Self::Mutual(credentials, expected) => {
                let current = credentials
                    .current()
                    .ok_or_else(|| io::Error::other("there is no certificate yet to show"))?;
                current.client(expected.clone()).map_err(io::Error::other)
            }
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let how = self.how.clone();
        Box::pin(async move { dial(&how, &uri).await.map(TokioIo::new) })
    }
}

async fn dial(how: &How, uri: &Uri) -> io::Result<TlsStream<TcpStream>> {
    let config = how.config()?;
    let (host, port) = uri
        .host()
        .zip(uri.port_u16())
        .ok_or_else(|| io::Error::other(format!("{uri} has no host and port")))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(NO_NAME).map_err(io::Error::other)?;
    TlsConnector::from(config).connect(name, stream).await
}
