//! Tests against a local server that imitates a Hub, with everything that goes wrong on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../../../checkpoint/tests/common/mod.rs"]
mod common;
mod downloads;
mod ranges;
