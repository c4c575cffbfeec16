//! `llamero-operator`.
#![forbid(unsafe_code)]

fn main() {}
