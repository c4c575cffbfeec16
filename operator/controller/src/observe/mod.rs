//! From objects and streams to one [`Observed`](llamero_core::Observed) value. Pure.
//!
//! | module | what |
//! |---|---|
//! | [`snapshot`] | the input, and how it is put together |
//! | [`pods`] | worker and inspect pods |
//! | [`nodes`] | nodes and what is used on them |
//! | [`writers`] | who wrote a field last |
//! | [`streams`] | rank reports, load and demand |

pub mod nodes;
pub mod pods;
pub mod snapshot;
pub mod streams;
pub mod writers;

pub use snapshot::{Snapshot, observe};
