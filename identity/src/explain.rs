//! Why a link did not come about, in a sentence that says what to do.

use std::error::Error;
use std::io;
use std::iter::successors;

use tokio_rustls::rustls::{AlertDescription, CertificateError, Error as TlsError};
use tonic::Status;

/// What an error has among its causes.
type Cause = dyn Error + 'static;

/// Why a call did not reach the other end. None where the other end answered, and the status is its own.
#[must_use]
pub fn unreached(status: &Status) -> Option<String> {
    let first = status.source()?;
    let causes: Vec<&Cause> = successors(Some(first), |cause| Cause::source(*cause)).collect();
    let last = causes.last().map_or_else(String::new, ToString::to_string);
    let hint = causes.iter().find_map(|cause| tls(*cause)).and_then(way_out);
    Some(hint.map_or(last.clone(), |hint| format!("{last}: {hint}")))
}

/// Whether the other end refused who called, so that it has read nothing of the call. Over TLS 1.3 that comes behind the handshake of who calls.
#[must_use]
pub fn is_refused(status: &Status) -> bool {
    let first = status.source();
    let mut causes = successors(first, |cause| Cause::source(*cause)).filter_map(|cause| tls(cause));
    causes.any(|error| {
        matches!(
            error,
            TlsError::AlertReceived(_) | TlsError::InvalidCertificate(_)
        )
    })
}

/// What TLS says. An I/O error does not give what it carries as its source.
fn tls(cause: &Cause) -> Option<&TlsError> {
    let carried = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match carried {
        Some(carried) => carried.downcast_ref(),
        None => cause.downcast_ref(),
    }
}

fn way_out(error: &TlsError) -> Option<&'static str> {
    const OTHER_AUTHORITY: &str = "the certificate is of an authority that is not believed here. Where the authority was replaced at once, what began before believes the \
                                   old one: restart gateways, and set spec.rollout.restartedAt of the LlamaDeployments";
    const CLOCKS: &str = "compare the clocks of the two nodes";
    const ENDED: &str = "it was not renewed in time: look for `cannot enrol` in its log, and compare the clocks of the two nodes";
    match error {
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)
        | TlsError::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
            Some(OTHER_AUTHORITY)
        }
        TlsError::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => Some(CLOCKS),
        TlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })
        | TlsError::AlertReceived(AlertDescription::CertificateExpired) => Some(ENDED),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(error: TlsError) -> Status {
        Status::from_error(Box::new(io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    #[test]
    fn what_tls_refuses_is_told_with_a_way_out() {
        for (error, part) in [
            (
                TlsError::InvalidCertificate(CertificateError::UnknownIssuer),
                "restartedAt",
            ),
            (
                TlsError::InvalidCertificate(CertificateError::NotValidYet),
                "clocks",
            ),
            (
                TlsError::InvalidCertificate(CertificateError::Expired),
                "cannot enrol",
            ),
            (
                TlsError::AlertReceived(AlertDescription::UnknownCA),
                "restartedAt",
            ),
        ] {
            let told = unreached(&status(error.clone())).unwrap();
            assert!(
                told.starts_with(&error.to_string()) && told.contains(part),
                "{told}"
            );
        }
        let plain = Status::from_error(Box::new(io::Error::other("connection refused")));
        assert_eq!(unreached(&plain).unwrap(), "connection refused");
    }

    #[test]
    fn a_refusal_is_no_broken_connection() {
        assert!(is_refused(&status(TlsError::AlertReceived(
            AlertDescription::CertificateExpired
        ))));
        let reset = Status::from_error(Box::new(io::Error::from(io::ErrorKind::ConnectionReset)));
        assert!(!is_refused(&reset) && !is_refused(&Status::unavailable("draining")));
    }

    #[test]
    fn an_answer_is_its_own_reason() {
        assert_eq!(unreached(&Status::permission_denied("no")), None);
    }
}
