//! Runs kernels: warps of 32 lanes, blocks with shared memory and barriers, grids.
//!
//! | module | what it is |
//! |---|---|
//! | [`grid`] | a launch on host threads; blocks one after the other, or all together when cooperative |
//! | `block` | warps in turns, barriers, deadlocks |
//! | `order` | forward, reverse and seeded orders |
//! | `warp` | lanes that part and join; one instruction at a time |
//! | `alu`, `integer`, `float`, `convert`, `matrix` | what instructions compute |
//! | `collective`, `atomic`, `special` | shuffles and votes, read-modify-write, special registers |
//! | `access`, [`memory`], `raw` | spaces, bounds, alignment, counters; asynchronous copies |
//! | [`fault`] | why a launch ended early |
//!
//! Not reproduced: speed, the order in which tensor cores add, the error of approximations, and a weak memory model
//! (accesses take effect in program order; what a missing fence would break is not seen).

mod access;
mod alu;
mod atomic;
mod block;
mod collective;
mod convert;
pub mod fault;
mod float;
pub mod grid;
mod integer;
mod lanes;
mod matrix;
pub mod memory;
pub mod order;
mod raw;
mod special;
mod warp;
