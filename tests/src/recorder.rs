//! A relay before an HTTP/1 server that keeps which calls passed and were served. Other protocols pass unseen.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Result;

/// A call that was answered with a status of 2xx.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Such as `POST`.
    pub method: String,
    /// Without what follows a question mark.
    pub path: String,
    /// Whether the answer was a stream of events.
    pub streamed: bool,
}

/// The relay. It serves as long as the process lives.
#[derive(Debug)]
pub struct Recorder {
    /// Where it listens.
    pub address: SocketAddr,
    calls: Calls,
}

type Calls = Arc<Mutex<BTreeSet<Call>>>;
/// The request that is under way on a connection, whose requests come one after the other.
type Asked = Arc<Mutex<Option<(String, String)>>>;

impl Recorder {
    /// Relay to this server.
    ///
    /// # Errors
    /// There is no free port.
    pub fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (address, calls) = (listener.local_addr()?, Calls::default());
        let kept = Arc::clone(&calls);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let calls = Arc::clone(&kept);
                // A connection that cannot be made is closed, which its client tells of.
                thread::spawn(move || drop(relay(&client, server, &calls)));
            }
        });
        Ok(Self { address, calls })
    }

    /// All calls so far.
    #[must_use]
    pub fn calls(&self) -> BTreeSet<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn relay(client: &TcpStream, server: SocketAddr, calls: &Calls) -> Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let asked = Asked::default();
    let (from, to, asking) = (client.try_clone()?, server.try_clone()?, Arc::clone(&asked));
    let upwards = thread::spawn(move || {
        copy(&from, &to, |piece| {
            if let Some(request) = request_of(piece) {
                *asking.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
            }
        });
    });
    copy(&server, client, |piece| {
        let Some(streamed) = served(piece) else { return };
        let request = asked.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((method, path)) = request {
            let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
            calls.insert(Call {
                method,
                path,
                streamed,
            });
        }
    });
    drop(upwards.join());
    Ok(())
}

/// Copy until either side ends, and look at every piece before it goes on.
fn copy(mut from: &TcpStream, mut to: &TcpStream, look: impl Fn(&[u8])) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read) = from.read(&mut buffer) {
        let piece = buffer.get(..read).unwrap_or_default();
        if piece.is_empty() {
            break;
        }
        look(piece);
        if to.write_all(piece).is_err() {
            break;
        }
    }
    // The other side may have gone already.
    let _ = to.shutdown(Shutdown::Write);
}

/// Method and path, if a piece begins with the head of a request. Clients send a head as one.
fn request_of(piece: &[u8]) -> Option<(String, String)> {
    let end = piece.windows(2).position(|two| two == b"\r\n")?;
    let line = std::str::from_utf8(piece.get(..end)?).ok()?;
    let mut words = line.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let path = target.split('?').next()?;
    let is_request = version == "HTTP/1.1" && path.starts_with('/');
    is_request.then(|| (method.to_owned(), path.to_owned()))
}

/// Whether a piece that begins with the head of a good answer begins a stream of events.
fn served(piece: &[u8]) -> Option<bool> {
    if !piece.starts_with(b"HTTP/1.1 2") {
        return None;
    }
    let end = piece.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(piece.get(..end)?).to_ascii_lowercase();
    Some(head.contains("content-type: text/event-stream"))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};

    use super::*;

    /// Answers each request of one connection with the next of these heads and bodies.
    fn server(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(&stream).lines();
            for answer in answers {
                while !lines.next().unwrap().unwrap().is_empty() {}
                (&stream).write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    #[test]
    fn calls_that_are_served_are_kept_with_the_form_of_their_answers() {
        let recorder = Recorder::start(server(&[
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\ncontent-length: 5\r\n\r\nevent",
        ]))
        .unwrap();
        let mut stream = TcpStream::connect(recorder.address).unwrap();
        for (head, length) in [
            ("GET /v1/models?a=b HTTP/1.1\r\nhost: g\r\n\r\n", 40),
            ("POST /missing HTTP/1.1\r\nhost: g\r\n\r\n", 45),
            ("POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\n\r\n", 76),
        ] {
            stream.write_all(head.as_bytes()).unwrap();
            stream.read_exact(&mut vec![0; length]).unwrap();
        }
        let call = |method: &str, path: &str, streamed| Call {
            method: method.to_owned(),
            path: path.to_owned(),
            streamed,
        };
        let expected = [
            call("GET", "/v1/models", false),
            call("POST", "/v1/chat/completions", true),
        ];
        assert_eq!(recorder.calls(), expected.into());
    }
}
