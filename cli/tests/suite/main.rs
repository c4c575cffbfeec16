//! Tests of `llamero`: downloads against a local server that imitates a Hub, and the program itself with SmolLM2.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod encrypted;
mod program;
mod readme;
mod refusals;
mod running;
mod serving;
