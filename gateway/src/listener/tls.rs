//! Certificates from files, such as a mounted Secret, read again when they change.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, ServerConfig, crypto::ring};

/// How often the files are looked at. The kubelet takes about a minute to bring a changed Secret.
const PERIOD: Duration = Duration::from_secs(10);

/// Where the key pair is.
#[derive(Debug, Clone)]
pub struct Files {
    /// PEM: the certificate and those that lead to a root.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// The key pair in use.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    current: RwLock<Current>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    read: Pems,
}

#[derive(Debug, PartialEq, Eq)]
struct Pems {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}; give --tls-cert and --tls-key files in PEM form", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{} holds no usable {what} in PEM form", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// The two do not fit together, or the key is of an unknown kind.
    #[error("the certificate and the key cannot be used together: {0}")]
    Pair(#[from] rustls::Error),
}

impl Tls {
    /// Read the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(files: Files) -> Result<Self, TlsError> {
        let read = read(&files)?;
        let config = config(&files, &read)?;
        Ok(Self {
            files,
            current: RwLock::new(Current { config, read }),
        })
    }

    /// For the next connection.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&current.config))
    }

    /// Read the files again. True when they had changed; connections from now on use them.
    ///
    /// # Errors
    /// [`TlsError`]; the pair in use stays.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let read = read(&self.files)?;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).read == read {
            return Ok(false);
        }
        let config = config(&self.files, &read)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Current { config, read };
        Ok(true)
    }

    /// Look at the files now and then, for ever.
    pub async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PERIOD).await;
            let tls = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || tls.reload()).await {
                Ok(Ok(false)) | Err(_) => {}
                Ok(Ok(true)) => tracing::info!("the certificate has changed; new connections use it"),
                Ok(Err(error)) => tracing::warn!(%error, "the certificate in use stays"),
            }
        }
    }
}

fn read(files: &Files) -> Result<Pems, TlsError> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| TlsError::Read {
            path: path.clone(),
            source,
        })
    };
    Ok(Pems {
        certificate: read(&files.certificate)?,
        key: read(&files.key)?,
    })
}

fn config(files: &Files, pems: &Pems) -> Result<Arc<ServerConfig>, TlsError> {
    let unusable = |path: &PathBuf, what| TlsError::Pem {
        path: path.clone(),
        what,
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pems.certificate)
        .collect::<Result<_, _>>()
        .map_err(|_| unusable(&files.certificate, "certificate"))?;
    if chain.is_empty() {
        return Err(unusable(&files.certificate, "certificate"));
    }
    let key = PrivateKeyDer::from_pem_slice(&pems.key).map_err(|_| unusable(&files.key, "private key"))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
