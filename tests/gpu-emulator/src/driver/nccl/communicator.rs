//! One rank's end of a communicator.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::mesh::{ID_BYTES, join};
use crate::driver::error::{Result, fail};
use crate::driver::state::{Driver, lock};

/// A rank and its connections.
pub(in crate::driver) struct Communicator {
    pub(super) rank: usize,
    pub(super) ranks: usize,
    pub(super) device: usize,
    peers: Vec<Option<TcpStream>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lost: bool,
    aborted: bool,
}

/// A piece of an exchange: bytes of the device's memory from or to a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) peer: usize,
    pub(super) address: u64,
    pub(super) bytes: u64,
}

/// What goes out and what comes in at once.
#[derive(Debug, Clone, Default)]
pub(super) struct Exchange {
    pub(super) sends: Vec<Transfer>,
    pub(super) receives: Vec<Transfer>,
}

impl Communicator {
    pub(super) fn new(id: &[u8; ID_BYTES], ranks: usize, rank: usize, device: usize) -> io::Result<Self> {
        Ok(Self {
            rank,
            ranks,
            device,
            peers: join(id, ranks, rank)?,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Whether a rank was lost.
    pub(super) fn lost(&self) -> bool {
        lock(&self.state).lost
    }

    /// End every wait.
    pub(super) fn abort(&self) {
        lock(&self.state).aborted = true;
        for peer in self.peers.iter().flatten() {
            // A connection that is closed already is what is wanted.
            let _ = peer.shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
    }

    /// Perform an exchange. With a lost rank it waits for an abort, and gives up after `timeout`.
    pub(super) fn perform(&self, driver: &Driver, exchange: &Exchange) -> Result<()> {
        let own = |transfers: &[Transfer]| {
            transfers
                .iter()
                .filter(|part| part.peer == self.rank)
                .copied()
                .collect::<Vec<_>>()
        };
        for (from, to) in own(&exchange.sends).into_iter().zip(own(&exchange.receives)) {
            driver.poke(to.address, &driver.peek(from.address, from.bytes)?)?;
        }
        let mut outgoing = Vec::new();
        for part in exchange.sends.iter().filter(|part| part.peer != self.rank) {
            outgoing.push((part.peer, driver.peek(part.address, part.bytes)?));
        }
        let received = std::thread::scope(|scope| {
            // One thread a peer keeps the order of messages to it.
            for peer in (0..self.ranks).filter(|peer| *peer != self.rank) {
                let outgoing = &outgoing;
                scope.spawn(move || {
                    for (_, bytes) in outgoing.iter().filter(|(to, _)| *to == peer) {
                        if self.send(peer, bytes).is_err() {
                            self.lose();
                        }
                    }
                });
            }
            let incoming = exchange.receives.iter().filter(|part| part.peer != self.rank);
            incoming
                .map(|part| Ok((part.address, self.receive(part)?)))
                .collect::<io::Result<Vec<_>>>()
        });
        match received {
            Ok(parts) => parts
                .iter()
                .try_for_each(|(address, bytes)| driver.poke(*address, bytes)),
            Err(_) => {
                self.lose();
                self.wait_for_abort(driver.config.timeout)
            }
        }
    }

    fn connection(&self, peer: usize) -> io::Result<&TcpStream> {
        self.peers
            .get(peer)
            .and_then(Option::as_ref)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn send(&self, peer: usize, bytes: &[u8]) -> io::Result<()> {
        self.connection(peer)?.write_all(bytes)
    }

    fn receive(&self, part: &Transfer) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; part.bytes as usize];
        self.connection(part.peer)?.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn lose(&self) {
        let mut state = lock(&self.state);
        state.lost |= !state.aborted;
    }

    fn wait_for_abort(&self, timeout: Duration) -> Result<()> {
        let state = lock(&self.state);
        let waited = self
            .changed
            .wait_timeout_while(state, timeout, |state| !state.aborted);
        let (state, _) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        if !state.aborted {
            fail!(
                LaunchTimeout,
                "rank {} waits for a lost rank, and nobody aborts",
                self.rank
            );
        }
        Ok(())
    }
}
