//! Communication inside a step, over a [`llamero_engine::Mesh`].
//!
//! | module | what it is |
//! |---|---|
//! | `group` | one tensor group: frames to and from all its members |
//! | `tree` | [`Collective`]: sums in the order of the leaf tree, gathers, point to point |
//! | `shared` | links through shared memory inside a pod |
//! | `join` | adding up the roots of all ranks |

mod group;
mod join;
mod shared;
mod tree;

#[cfg(test)]
mod tests;

pub use group::Waits;
pub use shared::SharedMesh;
pub use tree::{Collective, Reduction, SCATTER_BYTES};
