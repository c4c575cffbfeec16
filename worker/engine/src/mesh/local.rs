//! Meshes over loopback inside one process, for tests and benchmarks.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::data_link::DataLink;
use super::hello::LinkKind;
use super::socket::EraAbort;
use super::{Label, Members, Mesh, MeshError, TcpMesh, Transfer, Wait};
use crate::step::Era;

/// The meshes of all members, in rank order, connected over 127.0.0.1.
///
/// # Errors
/// The operating system's word.
pub fn local_mesh(members: &Members, era: Era) -> io::Result<Vec<TcpMesh>> {
    let ranks = members.ranks();
    let mut links: Vec<Vec<DataLink>> = ranks.iter().map(|_| Vec::new()).collect();
    let aborts: Vec<Arc<EraAbort>> = ranks.iter().map(|_| Arc::default()).collect();
    for (low, &lower) in ranks.iter().enumerate() {
        for (high, &higher) in ranks.iter().enumerate().skip(low + 1) {
            let (one, other) = Connection::pair((lower, higher), era, LinkKind::Data)?;
            for (connection, here, peer) in [(one, low, higher), (other, high, lower)] {
                if let (Some(abort), Some(links)) = (aborts.get(here), links.get_mut(here)) {
                    connection.watch(abort)?;
                    links.push(DataLink::new(connection, peer));
                }
            }
        }
    }
    let ends = ranks.iter().zip(links.into_iter().zip(aborts));
    ends.map(|(rank, (links, abort))| {
        TcpMesh::new(*rank, members.clone(), era, links, abort).map_err(io::Error::other)
    })
    .collect()
}

/// Give everybody `mine` and take as much from everybody, for as long as `wait`.
///
/// # Errors
/// As [`Mesh::exchange`].
pub fn all_to_all(
    mesh: &mut dyn Mesh,
    label: Label,
    mine: &[u8],
    wait: Duration,
) -> Result<Vec<Vec<u8>>, MeshError> {
    let ranks = mesh.members().ranks().iter().copied();
    let peers: Vec<u32> = ranks.filter(|peer| *peer != mesh.rank()).collect();
    all_to_all_among(mesh, &peers, label, mine, wait)
}

/// The same among this rank and `peers`, which are ascending.
///
/// # Errors
/// As [`Mesh::exchange`].
pub fn all_to_all_among(
    mesh: &mut dyn Mesh,
    peers: &[u32],
    label: Label,
    mine: &[u8],
    wait: Duration,
) -> Result<Vec<Vec<u8>>, MeshError> {
    let mut theirs = vec![vec![0; mine.len()]; peers.len()];
    let mut frames: Vec<Transfer<'_>> = peers
        .iter()
        .zip(&mut theirs)
        .map(|(peer, into)| Transfer {
            peer: *peer,
            out: Some(mine),
            into: Some(into),
        })
        .collect();
    let wait = Wait {
        until: Instant::now() + wait,
        spin: Duration::from_micros(30),
    };
    mesh.exchange(label, &mut frames, wait)?;
    Ok(theirs)
}
