//! Meshes over loopback inside one process, for tests and benchmarks.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

use super::data_link::DataLink;
use super::socket::{self, EraAbort};
use super::tcp_collective::{TcpCollective, Waits};
use crate::step::Era;

/// The collectives of `world` ranks, in rank order, connected over 127.0.0.1.
///
/// # Errors
/// The operating system's word.
pub fn local_mesh(world: u32, era: Era, waits: Waits) -> io::Result<Vec<TcpCollective>> {
    let mut links: Vec<Vec<DataLink>> = (0..world).map(|_| Vec::new()).collect();
    let aborts: Vec<Arc<EraAbort>> = (0..world).map(|_| Arc::default()).collect();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    for low in 0..world {
        for high in low + 1..world {
            let dialled = TcpStream::connect(listener.local_addr()?)?;
            let (accepted, _) = listener.accept()?;
            for (stream, rank, peer) in [(dialled, low, high), (accepted, high, low)] {
                socket::prepare(&stream)?;
                aborts[rank as usize].watch(&stream)?;
                links[rank as usize].push(DataLink::new(stream, peer));
            }
        }
    }
    (0..world)
        .zip(links.into_iter().zip(aborts))
        .map(|(rank, (links, abort))| {
            TcpCollective::new(rank, world, era, links, abort, waits).map_err(io::Error::other)
        })
        .collect()
}
