//! The gateway: one OpenAI-compatible address for all deployments.
//!
//! ```text
//! HTTP request -> listener -> routes -> relay -> upstream (a leader) -> llamero.v1.Completion
//!                                         |          ^
//!                                         |   discovery (LlamaDeployments, LlamaGroups, or a fixed list)
//!                                         +-> demand (who waits for what; the operator wakes deployments by it)
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`routes`] | OpenAI's routes: types, validation, conversion |
//! | [`page`] | a chat page |
//! | [`relay`] | one answer: waits for a leader, continues on another when it is lost |
//! | [`upstream`] | leaders: connection, load, choice by cache and load |
//! | [`discovery`] | which deployments and leaders there are |
//! | [`keys`] | API keys: who may ask for what, and how much |
//! | [`quota`] | limits of keys, over all gateways together |
//! | [`budget`] | a bounded amount of memory that requests share |
//! | [`demand`] | held and running requests per deployment, and the gRPC service that tells them |
//! | [`error`] | errors in OpenAI's form |
//! | [`metrics`] | Prometheus metrics |
//! | [`listener`] | the socket that clients reach, and its bounds |
//! | [`health`] | liveness, readiness and metrics over HTTP |
//! | [`server`] | the listening sockets and an orderly end |
//!
//! Prompts and answers are never logged.
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

pub mod budget;
pub mod demand;
pub mod discovery;
pub mod error;
pub mod health;
pub mod keys;
pub mod listener;
pub mod metrics;
pub mod page;
pub mod quota;
pub mod relay;
pub mod routes;
pub mod server;
pub mod state;
pub mod upstream;

pub use state::{Gateway, Settings};
