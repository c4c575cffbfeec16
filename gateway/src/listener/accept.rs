//! From the socket to a connection.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

/// Pause when the process has no more file descriptors: accepting fails at once until one is closed.
const PAUSE: Duration = Duration::from_millis(100);

/// The next connection. Tokens leave at once instead of waiting for more (`TCP_NODELAY`).
pub async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match stream.set_nodelay(true) {
                Ok(()) => return stream,
                Err(error) => tracing::debug!(%error, "a connection was gone before it was served"),
            },
            Err(error) if of_the_client(error.kind()) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Errors of a connection that its client gave up before it was accepted.
fn of_the_client(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}

/// Tell a client of HTTP/1 that all places are taken, and close. The socket is new, so the few bytes fit its buffer.
pub fn turn_away(stream: TcpStream, encrypted: bool) {
    const BODY: &str = r#"{"error":{"message":"This gateway has as many connections as it takes; connect again later.","type":"server_error","param":null,"code":"too_many_connections"}}"#;
    if encrypted {
        return;
    }
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    if let Ok(mut stream) = stream.into_std() {
        // Best effort: the client sees at least that the connection is closed.
        let _ = stream.write(answer.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tokens_do_not_wait_for_more() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (accepted, client) = tokio::join!(accept(&listener), client);
        assert!(accepted.nodelay().unwrap() && !client.unwrap().nodelay().unwrap());
    }
}
