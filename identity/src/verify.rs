//! Whether the server at the other end is who it should be: by the SPIFFE ID in its certificate, whatever address was dialled.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::verify_server_cert_signed_by_trust_anchor;
use tokio_rustls::rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{self, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::certificate::Certificate;
use crate::credentials::provider;
use crate::spiffe::{Identity, Role};

/// Who should answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expected {
    /// Exactly this pod.
    Pod(Identity),
    /// Any operator of the installation.
    Operator {
        /// Its trust domain.
        trust_domain: String,
        /// Its namespace.
        namespace: String,
    },
    /// Any gateway of the installation.
    Gateway {
        /// Its trust domain.
        trust_domain: String,
        /// Its namespace.
        namespace: String,
    },
}

impl Expected {
    /// Whether it is this one.
    #[must_use]
    pub fn is(&self, found: &Identity) -> bool {
        let named = |role: Role, domain: &str, namespace: &str| {
            found.role == role && found.trust_domain == domain && found.namespace == namespace
        };
        match self {
            Self::Pod(identity) => identity == found,
            Self::Operator {
                trust_domain,
                namespace,
            } => named(Role::Operator, trust_domain, namespace),
            Self::Gateway {
                trust_domain,
                namespace,
            } => named(Role::Gateway, trust_domain, namespace),
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(identity) => write!(f, "{identity}"),
            Self::Operator { namespace, .. } => write!(f, "an operator of namespace {namespace}"),
            Self::Gateway { namespace, .. } => write!(f, "a gateway of namespace {namespace}"),
        }
    }
}

/// Whether who believes `roots` believes this certificate and what leads from it to a root.
///
/// # Errors
/// What TLS says.
pub fn believed(
    roots: &RootCertStore,
    chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let (end_entity, intermediates) = chain
        .split_first()
        .ok_or(rustls::Error::NoCertificatesPresented)?;
    let parsed = ParsedCertificate::try_from(end_entity)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
}

/// Verifies chain, time, use and identity of a server's certificate.
#[derive(Debug)]
pub struct ServerIdentity {
    roots: Arc<RootCertStore>,
    expected: Expected,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerIdentity {
    /// For who is expected.
    #[must_use]
    pub fn new(roots: Arc<RootCertStore>, expected: Expected) -> Self {
        Self {
            roots,
            expected,
            algorithms: provider().signature_verification_algorithms,
        }
    }
}

impl ServerCertVerifier for ServerIdentity {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> = [end_entity].into_iter().chain(intermediates).cloned().collect();
        believed(&self.roots, &chain, now)?;
        let found =
            Certificate::read(end_entity).map_err(|error| rustls::Error::General(error.to_string()))?;
        if self.expected.is(&found.identity) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General(format!(
            "{} answered, and not {}",
            found.identity, self.expected
        )))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
