//! The worker pod: a supervisor, one process per rank, gRPC; and the tools that prepare and inspect checkpoints.
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`supervisor`] | the pod's first process: keeps ranks alive, talks to operator and kubelet |
//! | [`rank`] | one rank's process: the engine |
//! | [`inference`] | gRPC for clients, on rank 0 |
//! | [`source`] | where a checkpoint comes from |
//! | [`link`], [`config`] | what supervisor and rank say to each other |
//! | [`grpc`] | what the servers have in common |
//! | [`cgroup`] | how much memory this container may use |
//! | [`exit`] | exit codes |
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

pub mod cgroup;
pub mod cli;
pub mod config;
pub mod exit;
pub mod grpc;
pub mod inference;
pub mod link;
pub mod rank;
pub mod source;
pub mod supervisor;
