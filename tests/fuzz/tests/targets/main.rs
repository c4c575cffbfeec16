//! Bad input on purpose. `LLAMERO_FUZZ_SECONDS=60` makes each run last a minute.
//!
//! | module | what takes bad input |
//! |---|---|
//! | `checkpoint` | safetensors headers, index files, configurations, manifests of pre-sharded folders, GGUF, PEFT's adapters |
//! | `engine` | tokenizers, chat templates, forms of answers, calls in answers |
//! | `ranks` | handshakes and messages between ranks, plans and what checks them |
//! | `links` | what arrives on a link, sealed |
//! | `resources` | objects of the API server, up to the pods that are made of them |
//! | `sources` | addresses and listings of checkpoints elsewhere |
//! | `identities` | signing requests, certificates, SPIFFE IDs, bundles of roots |
//! | `wire` | gRPC messages, server-sent events |
//!
//! HTTP bodies and broken gRPC frames over real sockets are `gateway/tests/fuzz.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod checkpoint;
mod engine;
mod identities;
mod links;
mod ranks;
mod resources;
mod sources;
mod wire;

/// The outcome in words.
fn outcome<T, E: std::fmt::Display>(result: Result<T, E>) -> String {
    match result {
        Ok(_) => "taken".to_owned(),
        Err(error) => error.to_string(),
    }
}
