//! A small certificate authority. Its Secret has cert-manager's layout, so that one from there can be put in its place:
//! `tls.crt` (its certificate, and those that lead to a root), `tls.key` (PKCS #8), `ca.crt` (the roots that are believed).

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::RootCertStore;

use crate::certificate::{self, CertificateError};
use crate::rotation;
use crate::spiffe::Identity;

/// How long the operator's own authority lives.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Certificates count from a little before they are made: clocks differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(300);
/// Longest request that is read; one with an elliptic key has about 250 bytes.
pub const MAX_REQUEST_BYTES: usize = 8 << 10;

/// What an authority is kept as, all in PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pems {
    /// `tls.crt`.
    pub certificate: String,
    /// `tls.key`.
    pub key: String,
    /// `ca.crt`.
    pub roots: String,
}

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// What is sent after a certificate so that it leads to a root.
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    roots_pem: String,
    not_after: SystemTime,
    life: Duration,
}

/// Why there is no authority, or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A part is missing or no PEM.
    #[error("{0} holds no usable {1} in PEM form")]
    Pem(&'static str, &'static str),
    /// A key of another form, or one that does not fit.
    #[error("tls.key cannot be used: {0}; with cert-manager set privateKey.encoding to PKCS8")]
    Key(rcgen::Error),
    /// The certificate is no authority's.
    #[error("tls.crt cannot sign for others: {0}")]
    Certificate(String),
    /// It is over.
    #[error("tls.crt is not valid any more: put a new one in its place")]
    Expired,
    /// It is of the future.
    #[error(
        "tls.crt does not count yet: compare the clocks of the operator's node and of who made it, or wait"
    )]
    NotBegun,
    /// Nobody would believe what it signs.
    #[error(
        "certificates signed by tls.crt lead to none of the roots of ca.crt: put the root of tls.crt into ca.crt, and what lies between them into tls.crt"
    )]
    LeadsNowhere,
    /// A request that is too long or not one, or whose signature is not by its key.
    #[error("the signing request cannot be used: {0}")]
    Request(String),
    /// What the cryptography says.
    #[error("a certificate cannot be made: {0}")]
    Make(rcgen::Error),
}

impl From<CertificateError> for AuthorityError {
    fn from(error: CertificateError) -> Self {
        Self::Certificate(error.to_string())
    }
}

/// A new authority, signed by itself.
///
/// # Errors
/// The system gives no random bytes.
pub fn generate(now: SystemTime) -> Result<Pems, AuthorityError> {
    let key = KeyPair::generate().map_err(AuthorityError::Make)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Llamero");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (at(now - CLOCKS_DIFFER), at(now + AUTHORITY_LIFE));
    let certificate = params.self_signed(&key).map_err(AuthorityError::Make)?.pem();
    Ok(Pems {
        roots: certificate.clone(),
        certificate,
        key: key.serialize_pem(),
    })
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority(..)")
    }
}

/// A new key, and the PKCS #10 request of a certificate for it. It names nobody: the authority does.
pub(crate) fn new_key() -> Result<(KeyPair, Vec<u8>), AuthorityError> {
    let key = KeyPair::generate().map_err(AuthorityError::Make)?;
    let request = CertificateParams::default()
        .serialize_request(&key)
        .map_err(AuthorityError::Make)?;
    let request = request.der().to_vec();
    Ok((key, request))
}

impl Authority {
    /// From what it is kept as. Certificates live for `life`.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn open(pems: &Pems, life: Duration, now: SystemTime) -> Result<Self, AuthorityError> {
        let chain = certificates(&pems.certificate, "tls.crt")?;
        let roots = certificates(&pems.roots, "ca.crt")?;
        let own = chain
            .first()
            .ok_or(AuthorityError::Pem("tls.crt", "certificate"))?;
        may_sign(own, now)?;
        let not_after = certificate::not_after(own)?;
        let key = KeyPair::from_pem(&pems.key).map_err(AuthorityError::Key)?;
        fits(own, &key)?;
        let issuer = Issuer::from_ca_cert_der(own, key).map_err(AuthorityError::Make)?;
        let intermediates = chain.iter().filter(|one| !roots.contains(one)).cloned().collect();
        let authority = Self {
            issuer,
            intermediates,
            roots,
            roots_pem: pems.roots.clone(),
            not_after,
            life,
        };
        if rotation::is_led_to(&authority.roots, &authority, now) {
            return Ok(authority);
        }
        Err(AuthorityError::LeadsNowhere)
    }

    /// Certificates that are believed, in DER.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Until then it signs.
    #[must_use]
    pub const fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// How long its certificates live.
    #[must_use]
    pub const fn life(&self) -> Duration {
        self.life
    }

    /// The same in PEM.
    #[must_use]
    pub fn roots_pem(&self) -> &str {
        &self.roots_pem
    }

    /// The certificate of `identity` for the key of a PKCS #10 request, and those that lead to a root. All names come from `identity`.
    ///
    /// # Errors
    /// [`AuthorityError::Request`], and what the cryptography says.
    pub fn sign(
        &self,
        request: &[u8],
        identity: &Identity,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        if request.len() > MAX_REQUEST_BYTES {
            let long = format!("it has {} bytes, of {MAX_REQUEST_BYTES} at most", request.len());
            return Err(AuthorityError::Request(long));
        }
        if now >= self.not_after {
            return Err(AuthorityError::Expired);
        }
        let mut request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
                .map_err(|error| AuthorityError::Request(error.to_string()))?;
        let uri = identity.to_string().try_into().map_err(AuthorityError::Make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&identity.pod.chars().take(64).collect::<String>());
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let end = (now + self.life).min(self.not_after);
        (params.not_before, params.not_after) = (at(now - CLOCKS_DIFFER), at(end));
        request.params = params;
        let certificate = request.signed_by(&self.issuer).map_err(AuthorityError::Make)?;
        let own = [certificate.der().clone()];
        Ok(own
            .into_iter()
            .chain(self.intermediates.iter().cloned())
            .collect())
    }
}

/// Whether it may sign for others.
fn may_sign(der: &CertificateDer<'_>, now: SystemTime) -> Result<(), AuthorityError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der)
        .map_err(|_| AuthorityError::Pem("tls.crt", "certificate"))?;
    if !parsed.is_ca() {
        return Err(AuthorityError::Certificate("it is no authority's".to_owned()));
    }
    if certificate::not_after(der)? <= now {
        return Err(AuthorityError::Expired);
    }
    if certificate::not_before(der)? > now {
        return Err(AuthorityError::NotBegun);
    }
    Ok(())
}

/// Whether the certificate is of this key.
fn fits(der: &CertificateDer<'_>, key: &KeyPair) -> Result<(), AuthorityError> {
    use rcgen::PublicKeyData as _;
    let (_, parsed) = x509_parser::parse_x509_certificate(der)
        .map_err(|_| AuthorityError::Pem("tls.crt", "certificate"))?;
    if parsed.public_key().raw == key.subject_public_key_info() {
        return Ok(());
    }
    let other = "it is of another key than tls.key".to_owned();
    Err(AuthorityError::Certificate(other))
}

/// The certificates of a PEM.
///
/// # Errors
/// There is none, or one that cannot be read.
pub fn certificates(pem: &str, file: &'static str) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    read.ok()
        .filter(|certificates| !certificates.is_empty())
        .ok_or(AuthorityError::Pem(file, "certificate"))
}

/// What rustls believes.
///
/// # Errors
/// A root that it does not understand.
pub fn store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, tokio_rustls::rustls::Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    Ok(store)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn at(time: SystemTime) -> time::OffsetDateTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    time::OffsetDateTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}
