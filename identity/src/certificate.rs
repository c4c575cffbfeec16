//! What stands in a certificate.

use std::time::{Duration, SystemTime};

use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::spiffe::Identity;

/// Name and life of a certificate; whether to believe it is not decided here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The only URI among its names.
    pub identity: Identity,
    /// From then on it counts.
    pub not_before: SystemTime,
    /// Until then it counts.
    pub not_after: SystemTime,
}

/// A certificate that names no part of Llamero.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It is no X.509 certificate.
    #[error("it is no X.509 certificate")]
    Malformed,
    /// A SPIFFE certificate has exactly one URI.
    #[error("it has {0} URIs among its names, not one")]
    Uris(usize),
    /// The URI is none of ours.
    #[error(transparent)]
    Identity(#[from] crate::spiffe::BadIdentity),
}

impl Certificate {
    /// From DER.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let (_, parsed) = parse_x509_certificate(der).map_err(|_| CertificateError::Malformed)?;
        let names = parsed
            .subject_alternative_name()
            .map_err(|_| CertificateError::Malformed)?;
        let names = names.map_or(&[][..], |extension| &extension.value.general_names);
        let uris: Vec<&str> = names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        let [uri] = uris.as_slice() else {
            return Err(CertificateError::Uris(uris.len()));
        };
        let validity = parsed.validity();
        Ok(Self {
            identity: uri.parse()?,
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        })
    }
}

/// Seconds since the beginning of 1970; 0 for what was before.
#[must_use]
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// The end of a certificate's life, whoever it names.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn not_after(der: &[u8]) -> Result<SystemTime, CertificateError> {
    let (_, parsed) = parse_x509_certificate(der).map_err(|_| CertificateError::Malformed)?;
    Ok(time(parsed.validity().not_after.timestamp()))
}

/// The beginning of a certificate's life, whoever it names.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn not_before(der: &[u8]) -> Result<SystemTime, CertificateError> {
    let (_, parsed) = parse_x509_certificate(der).map_err(|_| CertificateError::Malformed)?;
    Ok(time(parsed.validity().not_before.timestamp()))
}

/// Whom a certificate names, for people: the authority that signed it may have written anything.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn subject(der: &[u8]) -> Result<String, CertificateError> {
    let (_, parsed) = parse_x509_certificate(der).map_err(|_| CertificateError::Malformed)?;
    Ok(parsed.subject().to_string().chars().take(200).collect())
}

/// Times before 1970 count as 1970.
fn time(unix_seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_seconds).unwrap_or(0))
}
