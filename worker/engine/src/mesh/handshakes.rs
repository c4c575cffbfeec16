//! The handshakes under way at the rank port, and who gives way when there are too many.
//!
//! Whoever connects and says nothing must not keep peers out. When there are too many, the oldest handshake of the
//! address that has the most is closed: however many connections one address opens, those of other addresses stay.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Connections at once from which a Hello is awaited.
const MOST_WAITING: usize = 64;
/// Threads of handshakes at once; more than wait, since one that was closed still has to notice it.
const MOST_THREADS: usize = 2 * MOST_WAITING;

/// All handshakes of a listener.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first.
    waiting: VecDeque<Waiting>,
    under_way: usize,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    from: IpAddr,
    stream: TcpStream,
}

/// A place among the handshakes; free when dropped.
#[derive(Debug)]
pub(super) struct Handshake {
    all: Arc<Handshakes>,
    number: u64,
}

impl Handshakes {
    /// Begin a handshake on `stream`. Another one is closed if there are too many.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub(super) fn begin(self: &Arc<Self>, stream: &TcpStream, from: IpAddr) -> io::Result<Handshake> {
        let stream = stream.try_clone()?;
        // Whoever is not waiting ends without waiting for anybody, so this takes a moment only.
        let mut state = self
            .ended
            .wait_while(self.lock(), |state| state.under_way >= MOST_THREADS)
            .unwrap_or_else(PoisonError::into_inner);
        let number = state.next;
        state.next += 1;
        state.under_way += 1;
        state.waiting.push_back(Waiting {
            number,
            from: from.to_canonical(),
            stream,
        });
        if state.waiting.len() > MOST_WAITING {
            state.close_one();
        }
        Ok(Handshake {
            all: Arc::clone(self),
            number,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Close the oldest handshake of the address that has the most.
    fn close_one(&mut self) {
        let of = |from| self.waiting.iter().filter(|other| other.from == from).count();
        // From the youngest on, because the last of equals is taken.
        let youngest_first = self.waiting.iter().enumerate().rev();
        let oldest = youngest_first.max_by_key(|(_, other)| of(other.from));
        let index = oldest.map(|(index, _)| index);
        if let Some(closed) = index.and_then(|index| self.waiting.remove(index)) {
            tracing::debug!(from = %closed.from, "too many handshakes at once; closed the oldest");
            // An error means that it is closed already.
            let _ = closed.stream.shutdown(Shutdown::Both);
        }
    }

    /// False when it was closed.
    fn stop_waiting(&mut self, number: u64) -> bool {
        let index = self.waiting.iter().position(|one| one.number == number);
        index.and_then(|index| self.waiting.remove(index)).is_some()
    }
}

impl Handshake {
    /// The Hello has come: from here on the connection does not give way to others. False when it had to already.
    pub(super) fn is_heard(&self) -> bool {
        self.all.lock().stop_waiting(self.number)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut state = self.all.lock();
        state.stop_waiting(self.number);
        state.under_way -= 1;
        drop(state);
        self.all.ended.notify_all();
    }
}
