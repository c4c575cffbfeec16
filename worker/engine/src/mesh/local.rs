//! Meshes over loopback inside one process, for tests and benchmarks.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

use super::data_link::DataLink;
use super::socket::{self, EraAbort};
use super::{Members, TcpMesh};
use crate::step::Era;

/// The meshes of all members, in rank order, connected over 127.0.0.1.
///
/// # Errors
/// The operating system's word.
pub fn local_mesh(members: &Members, era: Era) -> io::Result<Vec<TcpMesh>> {
    let ranks = members.ranks();
    let mut links: Vec<Vec<DataLink>> = ranks.iter().map(|_| Vec::new()).collect();
    let aborts: Vec<Arc<EraAbort>> = ranks.iter().map(|_| Arc::default()).collect();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    for low in 0..ranks.len() {
        for high in low + 1..ranks.len() {
            let dialled = TcpStream::connect(listener.local_addr()?)?;
            let (accepted, _) = listener.accept()?;
            for (stream, here, there) in [(dialled, low, high), (accepted, high, low)] {
                socket::prepare(&stream)?;
                aborts[here].watch(&stream)?;
                links[here].push(DataLink::new(stream, ranks[there]));
            }
        }
    }
    let ends = ranks.iter().zip(links.into_iter().zip(aborts));
    ends.map(|(rank, (links, abort))| {
        TcpMesh::new(*rank, members.clone(), era, links, abort).map_err(io::Error::other)
    })
    .collect()
}
