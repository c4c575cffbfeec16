//! Meshes over loopback inside one process, for tests and benchmarks.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

use super::data_link::DataLink;
use super::socket::{self, EraAbort};
use super::{TcpMesh, Topology};
use crate::step::Era;

/// The meshes of all ranks, in rank order, connected over 127.0.0.1.
///
/// # Errors
/// The operating system's word.
pub fn local_mesh(topology: Topology, era: Era) -> io::Result<Vec<TcpMesh>> {
    let world = topology.ranks();
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
            TcpMesh::new(rank, topology, era, links, abort).map_err(io::Error::other)
        })
        .collect()
}
