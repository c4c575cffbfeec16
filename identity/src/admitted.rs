//! Clients that a user admits by certificates of an authority of their own, beside the parts of Llamero. Whatever such a certificate says,
//! it makes nobody a part of Llamero.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::Mutex;
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{self, DigitallySignedStruct, DistinguishedName, SignatureScheme};

use crate::authority;
use crate::credentials::{MaterialError, provider};

/// The file is looked at again after this long.
const PERIOD: Duration = Duration::from_secs(5);
/// Longest file that is used: some hundreds of certificates.
const MAX_BYTES: u64 = 1 << 20;

/// Roots of a user's authorities in a file, which may change.
#[derive(Debug, Clone)]
pub struct Admitted(Arc<File>);

#[derive(Debug)]
struct File {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    looked_at: Option<Instant>,
    pem: String,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// Why nobody is admitted.
#[derive(Debug, thiserror::Error)]
enum RootsError {
    #[error(transparent)]
    Read(#[from] std::io::Error),
    #[error("it has {0} bytes, of {MAX_BYTES} at most")]
    Long(u64),
    #[error("it holds no certificate in PEM form")]
    Empty,
    #[error(transparent)]
    Unusable(#[from] MaterialError),
}

impl Admitted {
    /// By the certificates of this file.
    #[must_use]
    pub fn by(path: PathBuf) -> Self {
        let state = Mutex::default();
        Self(Arc::new(File { path, state }))
    }

    /// Who verifies their certificates now; None while there are no roots that can be used.
    pub(crate) async fn verifier(&self) -> Option<Arc<dyn ClientCertVerifier>> {
        let mut state = self.0.state.lock().await;
        let now = Instant::now();
        let is_fresh = |at: Instant| now.saturating_duration_since(at) < PERIOD;
        if !state.looked_at.is_some_and(is_fresh) {
            state.looked_at = Some(now);
            if let Err(error) = self.look(&mut state).await {
                tracing::warn!(
                    file = %self.0.path.display(), %error,
                    "roots of clients cannot be used, so those from before count until they can: put certificates in PEM form into the ConfigMap that worker.inference.clientCaBundle names"
                );
            }
        }
        state.verifier.clone()
    }

    /// Whether this is the certificate of a client that is admitted.
    pub(crate) async fn accepts(&self, shown: &[CertificateDer<'_>]) -> bool {
        let Some((verifier, (end_entity, intermediates))) = self.verifier().await.zip(shown.split_first())
        else {
            return false;
        };
        verifier
            .verify_client_cert(end_entity, intermediates, UnixTime::now())
            .is_ok()
    }

    async fn look(&self, state: &mut State) -> Result<(), RootsError> {
        let path = self.0.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let pem = match read.map_err(std::io::Error::other)? {
            // Who takes the roots away admits nobody.
            Err(RootsError::Read(error)) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        if pem.trim().is_empty() {
            if state.verifier.take().is_some() {
                tracing::info!(file = %self.0.path.display(), "there are no roots of clients any more, so no client is admitted");
            }
            state.pem.clear();
            return Ok(());
        }
        if pem != state.pem || state.verifier.is_none() {
            state.verifier = Some(verifier(&pem)?);
            state.pem = pem;
        }
        Ok(())
    }
}

fn read(path: &std::path::Path) -> Result<String, RootsError> {
    let bytes = std::fs::metadata(path)?.len();
    if bytes > MAX_BYTES {
        return Err(RootsError::Long(bytes));
    }
    Ok(std::fs::read_to_string(path)?)
}

fn verifier(pem: &str) -> Result<Arc<dyn ClientCertVerifier>, RootsError> {
    let roots = authority::certificates(pem, "the file").map_err(|_| RootsError::Empty)?;
    let store = authority::store(&roots).map_err(MaterialError::from)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::new(provider())).build();
    Ok(verifier.map_err(MaterialError::from)?)
}

/// Believes certificates that one of two believes.
#[derive(Debug)]
pub(crate) struct Either {
    parts: Arc<dyn ClientCertVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
    subjects: Vec<DistinguishedName>,
}

impl Either {
    /// Of parts of Llamero or clients.
    pub(crate) fn new(parts: Arc<dyn ClientCertVerifier>, clients: Arc<dyn ClientCertVerifier>) -> Self {
        let subjects = [&parts, &clients];
        let subjects = subjects.iter().flat_map(|one| one.root_hint_subjects()).cloned();
        Self {
            subjects: subjects.collect(),
            parts,
            clients,
        }
    }
}

impl ClientCertVerifier for Either {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let part = self.parts.verify_client_cert(end_entity, intermediates, now);
        part.or_else(|_| self.clients.verify_client_cert(end_entity, intermediates, now))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.parts.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.parts.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.parts.supported_verify_schemes()
    }
}
