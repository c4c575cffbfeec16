//! The operator: observe → decide → apply → report.
//!
//! ```text
//!  watches ──► caches ── changes ─┐
//!  rank reports ──────────────────┼─► Model ─► llamero_core::Planner ─► Plan ─► actuators ─► API server, RankControl
//!  load, demand ──────────────────┘                              └─► statuses ─► .status, Events, metrics
//! ```
//!
//! All decisions are in `llamero-core`; here are only the observations it needs and the effects it asks for. One serial loop makes the
//! passes, so that there is a single placer; it decides only about what changed, and waits for no answer.
//!
//! | module | what |
//! |---|---|
//! | [`run`] | puts the parts together |
//! | [`reconcile`] | the loop |
//! | [`watch`] | caches kept by watches |
//! | [`links`] | gRPC streams to workers and gateways |
//! | [`observe`] | from both to what is decided from |
//! | [`apply`] | the only writer |
//! | [`build`] | the objects it writes |
//! | `contract` | (tests) resource types and worker agree |
//! | [`definitions`] | brings the CustomResourceDefinitions to this release |
//! | [`form_keys`] | the keys by which ranks of a group know each other |
//! | [`identities`] | the certificate authority, and who is given certificates |
//! | [`events`], [`metrics`], [`health`], [`log`] | what people and machines can see of it |
//! | [`access`] | whether the whole cluster may be read |
//! | [`lease`], [`options`], [`wake`] | plumbing |
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "what comes in from outside must not be able to end the process, nor become another number"
    )
)]
#![forbid(unsafe_code)]

pub mod access;
pub mod apply;
pub mod build;
mod contract;
pub mod definitions;
pub mod events;
pub mod form_keys;
pub mod health;
pub mod identities;
pub mod lease;
pub mod links;
pub mod log;
pub mod metrics;
#[cfg(test)]
mod mock;
pub mod observe;
pub mod options;
pub mod reconcile;
pub mod run;
pub mod wake;
pub mod watch;
