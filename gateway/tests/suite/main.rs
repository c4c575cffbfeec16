//! The gateway over real sockets, with scripted workers behind.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod about;
mod adapters;
mod answers;
mod browsers;
mod conformance;
mod continuation;
mod embeddings;
mod encrypted;
mod errors;
mod grpc;
mod holding;
mod keys;
mod logprobs;
mod messages;
mod responses;
mod routing;
mod sdks;
#[path = "../support/mod.rs"]
mod support;
mod tokens;
mod tools;
