//! The way to the API server.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::cluster::addresses::{API_PORT, HOST};

/// A connection whose kind does not matter.
pub(super) type Connection = Pin<Box<dyn Stream>>;

pub(super) trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

#[derive(Clone)]
pub(super) struct Upstream {
    address: SocketAddr,
    tls: Option<TlsConnector>,
}

impl Upstream {
    /// The API server, with the administrator's certificate.
    pub(super) fn api_server(certificates: &Path) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&certificates.join("ca.crt"))?)?;
        let key_file = certificates.join("admin.key");
        let key = PrivateKeyDer::from_pem_file(&key_file)
            .with_context(|| format!("cannot read {}", key_file.display()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let configuration = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate(&certificates.join("admin.crt"))?], key)?;
        let tls = Some(TlsConnector::from(Arc::new(configuration)));
        Ok(Self {
            address: SocketAddr::from((HOST, API_PORT)),
            tls,
        })
    }

    #[cfg(test)]
    pub(super) fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }

    pub(super) async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(self.address)
            .await
            .context("cannot reach the API server")?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Box::pin(stream)),
            Some(tls) => {
                let name = ServerName::from(self.address.ip());
                Ok(Box::pin(
                    tls.connect(name, stream)
                        .await
                        .context("the API server refuses TLS")?,
                ))
            }
        }
    }
}

fn certificate(file: &Path) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_file(file).with_context(|| format!("cannot read {}", file.display()))
}
