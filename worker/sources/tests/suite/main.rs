//! Tests against local servers, with everything that goes wrong on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod buckets;
#[path = "../../../checkpoint/tests/common/mod.rs"]
mod common;
mod downloads;
mod loads;
mod ranges;
mod web;
