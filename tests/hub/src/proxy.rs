//! Faults between a client and a real server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::http::head;

/// What goes wrong with answers to GET of more than [`SMALL`] bytes, each as often as its number says.
#[derive(Debug, Default)]
pub struct ProxyFaults {
    /// Connections are cut after so many bytes of an answer.
    pub cuts: Vec<usize>,
    /// A wrong byte.
    pub wrong: usize,
    /// 503 instead of an answer.
    pub failing: usize,
}

/// Answers that are left alone: listings, configurations.
const SMALL: usize = 100_000;

#[derive(Debug)]
struct Shared {
    target: String,
    faults: Mutex<ProxyFaults>,
    sent: AtomicU64,
}

/// A proxy that hands requests on as they are, and answers nearly so; its threads end with the test's process.
#[derive(Debug)]
pub struct FaultyProxy {
    /// Its base URL.
    pub endpoint: String,
    shared: Arc<Shared>,
}

impl FaultyProxy {
    /// A proxy before the server at `target`, host and port.
    pub fn start(target: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let endpoint = format!("http://localhost:{}", listener.local_addr().unwrap().port());
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            faults: Mutex::default(),
            sent: AtomicU64::new(0),
        });
        let of_threads = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&of_threads);
                std::thread::spawn(move || shared.connection(&stream.unwrap()));
            }
        });
        Self { endpoint, shared }
    }

    /// What goes wrong from now on.
    pub fn faults(&self) -> MutexGuard<'_, ProxyFaults> {
        self.shared.faults.lock().unwrap()
    }

    /// Bytes of answers' bodies that were sent so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn connection(&self, client: &TcpStream) -> Option<()> {
        let server = TcpStream::connect(&self.target).ok()?;
        let mut from_client = BufReader::new(client.try_clone().ok()?);
        let mut from_server = BufReader::new(server.try_clone().ok()?);
        loop {
            let (request, length) = message(&mut from_client)?;
            (&server).write_all(&request).ok()?;
            std::io::copy(&mut (&mut from_client).take(length as u64), &mut &server).ok()?;
            let (answer, length) = message(&mut from_server)?;
            let is_get = request.starts_with(b"GET ");
            let length = if request.starts_with(b"HEAD ") { 0 } else { length };
            if self
                .answer(&answer, length, is_get, &mut from_server, client)
                .is_none()
            {
                let _ = client.shutdown(std::net::Shutdown::Both);
                return None;
            }
        }
    }

    /// Hand an answer on; `None` when the connection is to end.
    fn answer(
        &self,
        answer: &[u8],
        length: usize,
        is_get: bool,
        from: &mut impl Read,
        mut to: &TcpStream,
    ) -> Option<()> {
        let mut body = vec![0; length];
        from.read_exact(&mut body).ok()?;
        let mut cut = None;
        if is_get && length > SMALL {
            let mut faults = self.faults.lock().unwrap();
            if faults.failing > 0 {
                faults.failing -= 1;
                return head(&mut to, "503 Service Unavailable", "", 0);
            }
            if faults.wrong > 0 {
                faults.wrong -= 1;
                *body.last_mut()? ^= 1;
            }
            cut = faults.cuts.pop();
        }
        to.write_all(answer).ok()?;
        let end = cut.unwrap_or(length).min(length);
        self.sent.fetch_add(end as u64, Ordering::Relaxed);
        to.write_all(&body[..end]).ok()?;
        cut.is_none().then_some(())
    }
}

/// The head of a request or an answer, and the length of the body that follows.
fn message(from: &mut impl BufRead) -> Option<(Vec<u8>, usize)> {
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).ok()? == 0 {
            return None;
        }
        head.extend_from_slice(line.as_bytes());
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
        // A body of unknown length would not be handed on.
        assert!(!name.eq_ignore_ascii_case("transfer-encoding"), "{line}");
        if line == "\r\n" {
            return Some((head, length));
        }
    }
}
