//! Every decision of the operator, as pure functions: no I/O, no client, no clock.
//!
//! ```text
//! observe (controller) -> Observed --decide--> Plan -> apply (controller) -> report -> status
//! ```
//!
//! | module | what it decides |
//! |---|---|
//! | [`observed`] | (input) the cluster as the caches show it |
//! | [`plan`] | (output) typed steps, and verdicts for the report |
//! | [`resources`] | amounts of CPU, memory, pods and devices |
//!
//! The contract of `decide` is in the crate's README.
#![forbid(unsafe_code)]

pub mod observed;
pub mod plan;
pub mod resources;
pub mod time;

pub use observed::Observed;
pub use plan::{Action, Key, Plan, Step};
