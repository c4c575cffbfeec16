//! Real processes on loopback with the real model.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic as tests may"
)]

mod adapters;
mod degraded;
mod drafts;
mod embeddings;
mod exact_streams;
mod faults;
mod grammars;
mod harness;
mod hub;
mod identities;
mod kv_cache;
mod lifecycle;
mod links;
mod pods;
mod presharded;
mod prompts;
mod requests;
mod schemas;
mod sharding;
mod striking;
mod structured;
mod text;
mod vllm;
