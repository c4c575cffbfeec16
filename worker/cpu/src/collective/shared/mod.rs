//! Frames between ranks of one pod through shared memory; those to other pods go over the mesh's TCP links.
//!
//! | module | what it is |
//! |---|---|
//! | `ring` | a ring between one producer and one consumer, and the bell of who waits |
//! | `region` | one rank's memory, which its peers write to |
//! | `peer` | frames to and from one peer |
//! | `mesh` | [`SharedMesh`]: a [`llamero_engine::Mesh`] over both |
//!
//! Frames in shared memory need no tags: nobody has the memory's descriptor but the ranks that were passed it over links that
//! are authenticated.

mod mesh;
mod peer;
mod region;
mod ring;

#[cfg(test)]
mod loom_tests;
#[cfg(test)]
mod tests;

pub use mesh::SharedMesh;
