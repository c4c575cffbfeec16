//! Tests of the decisions: tables that read "given these pods, this plan", and properties over a simulated cluster.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod argo;
mod build;
mod garbage;
mod properties;
mod schema;
mod sim;
mod table_disruption;
mod table_fleet;
mod table_members;
mod table_placement;
mod table_rollout;
mod table_stalls;
mod table_starting;
mod table_status;
