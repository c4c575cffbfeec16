//! Meshes over loopback inside one process, for tests and benchmarks.

use std::io;
use std::sync::Arc;

use super::connection::Connection;
use super::data_link::DataLink;
use super::hello::LinkKind;
use super::socket::EraAbort;
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
    for low in 0..ranks.len() {
        for high in low + 1..ranks.len() {
            let pair = (ranks[low], ranks[high]);
            let (one, other) = Connection::pair(pair, era, LinkKind::Data)?;
            for (connection, here, there) in [(one, low, high), (other, high, low)] {
                connection.watch(&aborts[here])?;
                links[here].push(DataLink::new(connection, ranks[there]));
            }
        }
    }
    let ends = ranks.iter().zip(links.into_iter().zip(aborts));
    ends.map(|(rank, (links, abort))| {
        TcpMesh::new(*rank, members.clone(), era, links, abort).map_err(io::Error::other)
    })
    .collect()
}
