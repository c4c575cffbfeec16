//! Requests at even times, however long the answers take: an open loop. Each client is a thread with a connection of its own that sleeps by the
//! kernel's clock, since timers of the asynchronous runtime have steps of a millisecond: requests would come in bursts, and wait for each other.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;

/// Time for which clients connect before the first request is due.
const BEFORE: Duration = Duration::from_millis(300);
/// Nothing takes this long when all is well.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest head of an answer.
const MAX_HEAD: usize = 16 << 10;

/// What is asked, and how often.
#[derive(Clone)]
pub(crate) struct Schedule {
    pub(crate) address: SocketAddr,
    pub(crate) body: Bytes,
    /// Requests a second.
    pub(crate) rate: u64,
    pub(crate) seconds: u64,
}

/// Milliseconds from when each was due, and how late they were sent, both sorted.
pub(crate) struct Times {
    pub(crate) answered: Vec<f64>,
    pub(crate) sent: Vec<f64>,
}

/// Ask at the times of the schedule. One client after the other takes the next request; one that is still busy sends its own late, which
/// counts.
///
/// # Errors
/// The server does not answer.
pub(crate) fn ask(schedule: &Schedule) -> anyhow::Result<Times> {
    // As many as would be under way if each answer took 20 ms.
    let clients = (schedule.rate / 50).clamp(4, 128);
    let begin = Instant::now() + BEFORE;
    let threads: Vec<_> = (0..clients)
        .map(|client| {
            let schedule = schedule.clone();
            thread::Builder::new()
                .stack_size(256 << 10)
                .spawn(move || serve(&schedule, begin, (client..).step_by(clients as usize)))
        })
        .collect::<Result<_, _>>()?;
    let mut all = Times {
        answered: Vec::new(),
        sent: Vec::new(),
    };
    for thread in threads {
        let times = thread
            .join()
            .map_err(|_| anyhow::anyhow!("a client panicked"))??;
        for (sent, answered) in times {
            all.sent.push(sent);
            all.answered.push(answered);
        }
    }
    all.sent.sort_by(f64::total_cmp);
    all.answered.sort_by(f64::total_cmp);
    Ok(all)
}

/// One client's requests, by their numbers.
fn serve(
    schedule: &Schedule,
    begin: Instant,
    numbers: impl Iterator<Item = u64>,
) -> anyhow::Result<Vec<(f64, f64)>> {
    let mut stream = TcpStream::connect(schedule.address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = request(&schedule.body);
    let mut times = Vec::new();
    let mut buffer = Vec::with_capacity(MAX_HEAD);
    for number in numbers.take_while(|number| *number < schedule.rate * schedule.seconds) {
        let due = begin + Duration::from_secs_f64(number as f64 / schedule.rate as f64);
        #[allow(clippy::disallowed_methods, reason = "the kernel's clock is what it paces by")]
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let late = due.elapsed();
        stream.write_all(&request)?;
        read_answer(&mut stream, &mut buffer)?;
        times.push((millis(late), millis(due.elapsed())));
    }
    Ok(times)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn request(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Read one whole answer.
fn read_answer(stream: &mut impl Read, buffer: &mut Vec<u8>) -> anyhow::Result<()> {
    buffer.clear();
    let mut piece = [0; 4096];
    while !is_whole(buffer)? {
        let read = stream.read(&mut piece)?;
        ensure!(read > 0, "the connection ended within an answer");
        buffer.extend_from_slice(&piece[..read]);
    }
    Ok(())
}

/// Whether an answer is there with its head, by its length or its last chunk (RFC 9112, 6.3 and 7.1).
fn is_whole(bytes: &[u8]) -> anyhow::Result<bool> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        ensure!(bytes.len() < MAX_HEAD, "an answer's head is too long");
        return Ok(false);
    };
    let (head, body) = (std::str::from_utf8(&bytes[..end])?, &bytes[end + 4..]);
    ensure!(head.starts_with("HTTP/1.1 200"), "an answer begins with {head}");
    let field = |wanted: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = fields.find(|(name, _)| name.eq_ignore_ascii_case(wanted))?;
        Some(value.trim())
    };
    if field("transfer-encoding") == Some("chunked") {
        return Ok(body.ends_with(b"\r\n0\r\n\r\n"));
    }
    let length = field("content-length").with_context(|| format!("an answer has no length: {head}"))?;
    let length: usize = length.parse()?;
    ensure!(body.len() <= length, "more came than the answer");
    Ok(body.len() == length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_to_its_end() {
        let by_length = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc".to_vec();
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_vec();
        let mut buffer = Vec::new();
        for whole in [&by_length, &chunked] {
            read_answer(&mut whole.as_slice(), &mut buffer).unwrap();
            assert_eq!(&buffer, whole);
            read_answer(&mut &whole[..whole.len() - 1], &mut buffer).unwrap_err();
        }
        for wrong in [
            &b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\n\r\n",
            &[by_length.as_slice(), b"x"].concat(),
        ] {
            read_answer(&mut &*wrong, &mut buffer).unwrap_err();
        }
    }
}
