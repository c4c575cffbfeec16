//! A Hub behind TLS with a certificate of its own.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::program::{llamero, run};

/// Answers every request with 404; the thread ends with the test's process.
fn serve(listener: TcpListener, config: Arc<ServerConfig>) {
    for stream in listener.incoming() {
        let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = BufReader::new(StreamOwned::new(connection, stream.unwrap()));
        let mut line = String::new();
        // A client that does not trust the certificate sends nothing.
        while stream.read_line(&mut line).is_ok_and(|read| read > 2) {
            line.clear();
        }
        let answer = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let _ = stream.get_mut().write_all(answer.as_bytes());
        let _ = stream.get_mut().flush();
    }
}

#[test]
fn a_certificate_is_trusted_when_its_bundle_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let bundle = dir.path().join("bundle.pem");
    std::fs::write(&bundle, made.cert.pem()).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    std::thread::spawn(move || serve(listener, Arc::new(config)));

    let args = ["pull", "org/model", "--endpoint", &endpoint];
    let mut command = llamero(dir.path(), &args);
    command.env_remove("SSL_CERT_FILE");
    let stranger = run(command);
    assert_eq!(stranger.code, Some(2), "{stranger:?}");
    assert!(stranger.err.contains("SSL_CERT_FILE"), "{stranger:?}");

    let mut command = llamero(dir.path(), &args);
    command.env("SSL_CERT_FILE", &bundle);
    let trusted = run(command);
    assert_eq!(trusted.code, Some(2), "{trusted:?}");
    assert!(trusted.err.contains("has no org/model@main"), "{trusted:?}");
}
