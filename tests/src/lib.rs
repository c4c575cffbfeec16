//! What the tests of Llamero stand on.
//!
//! | module | what it holds |
//! |---|---|
//! | [`audit`] | what roles grant against what the API server was asked |
//! | [`chaos`] | the fault suite |
//! | [`cluster`] | a real Kubernetes on this machine: build, start, disturb, stop |
//! | [`command`] | running a program and reporting its words when it fails |
//! | [`paths`] | where things lie in the checkout |
//! | [`poll`] | waiting for a condition with a deadline |
//! | [`recorder`] | a relay that keeps which calls were made |
//! | [`write_cutter`] | a proxy that cuts off a client of the API server after a chosen write |
#![forbid(unsafe_code)]

pub mod audit;
pub mod chaos;
pub mod cluster;
pub mod command;
pub mod paths;
pub mod poll;
pub mod recorder;
pub mod write_cutter;
