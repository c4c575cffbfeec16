//! Real processes on loopback with the real model.

mod faults;
mod harness;
mod lifecycle;
mod pods;
mod requests;
mod sharding;
