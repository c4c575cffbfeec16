//! The operator: observe → decide → apply → report.
//!
//! ```text
//!  watches ──► caches ─┐
//!  rank reports ───────┼─► observe() ─► Observed ─► llamero_core::decide() ─► Plan ─► apply() ─► API server, RankControl
//!  load, demand ───────┘                                                 └─► report() ─► .status, Events, metrics
//! ```
//!
//! All decisions are in `llamero-core`; here are only the observations it needs and the effects it asks for. One serial loop over the
//! whole state makes the passes, so that there is a single placer.
#![forbid(unsafe_code)]

pub mod build;
pub mod health;
pub mod lease;
pub mod links;
pub mod metrics;
pub mod options;
pub mod wake;
pub mod watch;
