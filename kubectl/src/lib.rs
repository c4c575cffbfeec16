//! `kubectl llamero`: what the operator has done, would do and waits for, told to people.
//!
//! ```text
//! plan      objects of the API ── observe ── llamero_core::forecast ──► which nodes, or what is missing and what would fit
//! status    LlamaDeployments, LlamaGroups ──► tree of groups and ranks, once or as they change
//! explain   the same, and the operator's lease ──► the one reason why it is not ready, and the way out
//! rollback  ControllerRevisions ──► spec.rollout.revision
//! restart   ──► spec.rollout.restartedAt
//! chat      the gateway, through the API server ──► llamero_chat
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`options`] | the command line |
//! | [`cluster`] | the API server, as kubeconfig and flags name it |
//! | [`observe`] | objects of the API as the decisions take them |
//! | [`plan`], [`status`], [`explain`], [`revisions`], [`restart`], [`chat`] | the commands |
//! | [`paint`], [`words`] | colours, bars, amounts and ages |
//! | [`exit`] | what the exit codes mean |
//! | [`reference`] | the commands as a page to read |
#![forbid(unsafe_code)]
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

pub mod chat;
pub mod cluster;
pub mod exit;
pub mod explain;
pub mod observe;
pub mod options;
pub mod paint;
pub mod plan;
pub mod reference;
pub mod restart;
pub mod revisions;
pub mod run;
pub mod status;
pub mod words;
