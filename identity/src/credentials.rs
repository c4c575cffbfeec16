//! The certificate and key in use. They are swapped when they are renewed, without a restart: every handshake takes what is there then.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_rustls::rustls::client::{ResolvesClientCert, Resumption};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};

use crate::admitted::{Admitted, Either};
use crate::authority::{self, Authority, AuthorityError};
use crate::certificate::{Certificate, CertificateError};
use crate::spiffe::Identity;
use crate::verify::{Expected, ServerIdentity};

/// All of it, as it goes from a supervisor to a rank's process. It holds the private key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Material {
    /// The certificate and those that lead to a root, in DER.
    pub certificates: Vec<Vec<u8>>,
    /// Its key, PKCS #8 in DER.
    pub key: Vec<u8>,
    /// Certificates that are believed, in DER.
    pub roots: Vec<Vec<u8>>,
    /// Namespace of the operator and the gateways that are believed.
    pub installation: String,
}

impl Material {
    /// A new key with the certificate of `identity`, for whoever has the authority at hand and need not enrol.
    ///
    /// # Errors
    /// As [`Authority::sign`].
    pub fn signed(
        authority: &Authority,
        identity: &Identity,
        installation: &str,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let (key, request) = authority::new_key()?;
        let chain = authority.sign(&request, identity, now)?;
        Ok(Self {
            certificates: chain.iter().map(|one| one.to_vec()).collect(),
            key: key.serialize_der(),
            roots: authority.roots().iter().map(|one| one.to_vec()).collect(),
            installation: installation.to_owned(),
        })
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Material(..)")
    }
}

/// What cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// There is no certificate.
    #[error("there is no certificate")]
    Empty,
    /// The certificate names no part of Llamero.
    #[error("the certificate cannot be used: {0}")]
    Certificate(#[from] CertificateError),
    /// What TLS says.
    #[error("certificate, key and roots cannot be used together: {0}")]
    Tls(#[from] rustls::Error),
    /// What TLS says of the roots.
    #[error("the roots cannot be used: {0}")]
    Roots(#[from] rustls::client::VerifierBuilderError),
    /// The key is of no known kind.
    #[error("the key cannot be used: {0}")]
    Key(String),
}

/// What a handshake takes.
pub struct Current {
    /// Whose certificate it is.
    pub identity: Identity,
    /// Namespace of the operator and the gateways that are believed.
    pub installation: String,
    /// From then on it counts.
    pub not_before: SystemTime,
    /// Until then it counts.
    pub not_after: SystemTime,
    mutual: Arc<ServerConfig>,
    open: Arc<ServerConfig>,
    parts: Arc<dyn ClientCertVerifier>,
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Current({})", self.identity)
    }
}

/// Who may connect to a server.
#[derive(Debug, Clone)]
pub enum Clients {
    /// Who has a certificate of the authority.
    WithCertificate,
    /// They, and whom the user admits.
    Admitted(Admitted),
    /// Everybody: a certificate is what they come for.
    Anybody,
}

impl Current {
    /// From what was enrolled.
    ///
    /// # Errors
    /// [`MaterialError`].
    pub fn new(material: &Material) -> Result<Self, MaterialError> {
        let chain: Vec<CertificateDer<'static>> = material
            .certificates
            .iter()
            .cloned()
            .map(CertificateDer::from)
            .collect();
        let read = Certificate::read(chain.first().ok_or(MaterialError::Empty)?)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(material.key.clone()));
        let key = Arc::new(CertifiedKey::from_der(chain, key, &provider())?);
        let roots: Vec<_> = material.roots.iter().cloned().map(CertificateDer::from).collect();
        let roots = Arc::new(authority::store(&roots)?);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::new(provider())).build()?;
        let server =
            || ServerConfig::builder_with_provider(Arc::new(provider())).with_protocol_versions(&[&TLS13]);
        let resolver = || Arc::new(SingleCertAndKey::from(Arc::clone(&key)));
        let mutual = server()?
            .with_client_cert_verifier(Arc::clone(&verifier))
            .with_cert_resolver(resolver());
        let open = server()?.with_no_client_auth().with_cert_resolver(resolver());
        Ok(Self {
            identity: read.identity,
            installation: material.installation.clone(),
            not_before: read.not_before,
            not_after: read.not_after,
            mutual: Arc::new(for_grpc(mutual)),
            open: Arc::new(for_grpc(open)),
            parts: verifier,
            key,
            roots,
        })
    }

    /// How to serve.
    ///
    /// # Errors
    /// What TLS says.
    pub async fn server(&self, clients: &Clients) -> Result<Arc<ServerConfig>, rustls::Error> {
        let theirs = match clients {
            Clients::Anybody => return Ok(Arc::clone(&self.open)),
            Clients::WithCertificate => None,
            Clients::Admitted(admitted) => admitted.verifier().await,
        };
        let Some(theirs) = theirs else {
            return Ok(Arc::clone(&self.mutual));
        };
        let either = Either::new(Arc::clone(&self.parts), theirs);
        let config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(either))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.key))));
        Ok(Arc::new(for_grpc(config)))
    }

    /// Whether a client's certificate is of our authority.
    #[must_use]
    pub fn is_ours(&self, shown: &[CertificateDer<'_>]) -> bool {
        shown.split_first().is_some_and(|(end_entity, intermediates)| {
            self.parts
                .verify_client_cert(end_entity, intermediates, UnixTime::now())
                .is_ok()
        })
    }

    /// How to dial who is expected.
    ///
    /// # Errors
    /// What TLS says.
    pub fn client(&self, expected: Expected) -> Result<Arc<ClientConfig>, rustls::Error> {
        let resolver: Arc<dyn ResolvesClientCert> = Arc::new(SingleCertAndKey::from(Arc::clone(&self.key)));
        let verifier = ServerIdentity::new(Arc::clone(&self.roots), expected);
        let config = dialling(verifier)?.with_client_cert_resolver(resolver);
        Ok(Arc::new(of_client(config)))
    }

    /// Its certificate and those that lead to a root.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// Whether it counts, neither too early nor too late.
    #[must_use]
    pub fn counts(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// When to renew: after half of what is left of its life.
    #[must_use]
    pub fn renew_in(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default() / 2
    }
}

/// How to dial who is expected without a certificate of one's own.
///
/// # Errors
/// What TLS says.
pub fn anonymous(roots: RootCertStore, expected: Expected) -> Result<Arc<ClientConfig>, rustls::Error> {
    let config = dialling(ServerIdentity::new(Arc::new(roots), expected))?.with_no_client_auth();
    Ok(Arc::new(of_client(config)))
}

type WantsClientCert = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn dialling(verifier: ServerIdentity) -> Result<WantsClientCert, rustls::Error> {
    Ok(ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

fn for_grpc(mut config: ServerConfig) -> ServerConfig {
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session shows no certificate, so one that has expired would still be good.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

fn of_client(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// The one implementation of cryptography in the workspace.
#[must_use]
pub fn provider() -> CryptoProvider {
    ring::default_provider()
}

/// Whoever renews puts the new ones here.
#[derive(Debug, Clone)]
pub struct Publisher(watch::Sender<Option<Arc<Current>>>);

/// What is in use; nothing before enrolment. Clones share it.
#[derive(Debug, Clone)]
pub struct Credentials(watch::Receiver<Option<Arc<Current>>>);

/// A place for credentials, still empty.
#[must_use]
pub fn pair() -> (Publisher, Credentials) {
    let (sender, receiver) = watch::channel(None);
    (Publisher(sender), Credentials(receiver))
}

impl Publisher {
    /// New handshakes take these.
    pub fn put(&self, current: Current) {
        self.0.send_replace(Some(Arc::new(current)));
    }

    /// Who reads what is put here.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        Credentials(self.0.subscribe())
    }
}

impl Credentials {
    /// What is in use now.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Current>> {
        self.0.borrow().clone()
    }

    /// Waits for the first ones. None when whoever enrols is gone.
    pub async fn first(&mut self) -> Option<Arc<Current>> {
        let found = self.0.wait_for(Option::is_some).await.ok()?;
        found.clone()
    }

    /// Waits for the next ones. None when whoever renews is gone.
    pub async fn next(&mut self) -> Option<Arc<Current>> {
        self.0.changed().await.ok()?;
        self.0.borrow_and_update().clone()
    }
}
