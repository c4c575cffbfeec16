//! Tests of the decisions: tables that read "given these pods, this plan", and properties over a simulated cluster.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod argo;
mod build;
mod garbage;
mod properties;
mod schema;
mod sim;
mod table_admitted;
mod table_clocks;
mod table_degraded;
mod table_disruption;
mod table_fleet;
mod table_forecast;
mod table_members;
mod table_network;
mod table_placement;
mod table_provision;
mod table_rollout;
mod table_sizing;
mod table_stalls;
mod table_start_times;
mod table_starting;
mod table_status;
mod table_unpinned;
mod table_volumes;

use proptest::{prelude::ProptestConfig, test_runner::RngSeed};

/// So many cases of a property, the same at every run: a run that finds something new says nothing about the change that it tests. With
/// `PROPTEST_CASES` set there are as many as that, others at every run unless `PROPTEST_RNG_SEED` is set too.
fn config(cases: u32) -> ProptestConfig {
    let default = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return default;
    }
    let rng_seed = match default.rng_seed {
        RngSeed::Random => RngSeed::Fixed(1),
        chosen => chosen,
    };
    ProptestConfig {
        cases,
        rng_seed,
        ..default
    }
}
