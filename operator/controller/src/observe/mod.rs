//! From objects and streams to what is decided from.
//!
//! ```text
//! changes of the caches --> Model --> Planner (llamero-core)
//! messages of streams ------^
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`model`] | everything that is known, brought up to date by changes |
//! | [`frames`] | deployments and groups as the decisions take them |
//! | [`owned`] | objects by their controller |
//! | [`seen_pod`] | what is kept of a pod |
//! | [`usage`] | what is used on nodes |
//! | [`pods`] | worker and inspect pods |
//! | [`nodes`] | nodes |
//! | [`volumes`] | claims, volumes and their drivers |
//! | [`writers`] | who wrote a field last |
//! | [`streams`] | rank reports, load and demand |

pub mod frames;
pub mod model;
pub mod nodes;
pub mod owned;
pub mod pods;
pub mod seen_pod;
pub mod streams;
#[cfg(test)]
mod tests;
pub mod usage;
pub mod volumes;
pub mod writers;

pub use model::Model;
pub use seen_pod::{OwnPod, SeenPod};
