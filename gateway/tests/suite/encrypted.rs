//! The API over TLS, with a certificate that changes.
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use llamero_gateway::Settings;
use llamero_gateway::listener::Tls;
use llamero_gateway::listener::tls::Files;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::{Served, gateway_with, soon};

/// Writes a new pair and returns the certificate.
fn write_pair(folder: &Path) -> CertificateDer<'static> {
    let pair = rcgen::generate_simple_self_signed(["gateway".to_owned()]).unwrap();
    std::fs::write(folder.join("tls.crt"), pair.cert.pem()).unwrap();
    std::fs::write(folder.join("tls.key"), pair.signing_key.serialize_pem()).unwrap();
    pair.cert.der().clone()
}

fn files(folder: &Path) -> Files {
    Files {
        certificate: folder.join("tls.crt"),
        key: folder.join("tls.key"),
    }
}

/// Ask as a client that trusts only this certificate.
async fn ask(served: &Served, trusted: CertificateDer<'static>) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(served.http).await?;
    let name = ServerName::try_from("gateway").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream
        .write_all(b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await?;
    Ok(answer)
}

#[tokio::test]
async fn a_changed_certificate_is_taken_up_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let old = write_pair(folder.path());
    let tls = Arc::new(Tls::load(files(folder.path())).unwrap());
    let served = gateway_with(Settings::default(), Some(Arc::clone(&tls))).await;
    assert!(
        ask(&served, old.clone())
            .await
            .unwrap()
            .starts_with("HTTP/1.1 200")
    );

    assert!(!tls.reload().unwrap(), "nothing has changed");
    let new = write_pair(folder.path());
    assert!(tls.reload().unwrap());
    assert!(ask(&served, old).await.is_err());
    assert!(
        ask(&served, new.clone())
            .await
            .unwrap()
            .starts_with("HTTP/1.1 200")
    );

    std::fs::write(folder.path().join("tls.key"), "no key").unwrap();
    let error = tls.reload().unwrap_err().to_string();
    assert!(
        error.contains("tls.key") && error.contains("private key"),
        "{error}"
    );
    assert!(ask(&served, new).await.is_ok(), "the pair in use stays");
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_handshake_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    write_pair(folder.path());
    let tls = Arc::new(Tls::load(files(folder.path())).unwrap());
    let mut settings = Settings::default();
    settings.limits.header_timeout = Duration::from_millis(50);
    let served = gateway_with(settings, Some(tls)).await;
    let mut silent = TcpStream::connect(served.http).await.unwrap();
    let mut nothing = Vec::new();
    let _ = soon(silent.read_to_end(&mut nothing)).await;
}

#[test]
fn a_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tls::load(files(folder.path())).unwrap_err().to_string();
    assert!(
        error.contains("tls.crt") && error.contains("--tls-cert"),
        "{error}"
    );
}
