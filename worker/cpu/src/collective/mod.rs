//! Communication inside a step, over a [`llamero_engine::Mesh`].
//!
//! | module | what it is |
//! |---|---|
//! | `group` | one tensor group: frames to and from all its members |
//! | `tree` | [`Collective`]: sums in the order of the leaf tree, gathers, point to point |
//! | `join` | adding up the roots of all ranks |

mod group;
mod join;
mod tree;

#[cfg(test)]
mod tests;

pub use group::Waits;
pub use tree::{Collective, Reduction, SCATTER_BYTES};
