//! The CUDA backend: kernels, and what loads and launches them.
//!
//! | module | what it is |
//! |---|---|
//! | [`probe`] | which libraries are there; absence is a sentence |
//! | [`device`] | devices by UUID |
//! | [`compile`] | CUDA C++ to PTX by NVRTC, kept by content hash |
//! | [`source`] | the kernels' texts |
//! | [`ops`] | one safe function for each kernel: shapes are checked before a launch |
//!
//! Kernels give a row the same bits whatever else is in its batch, and sums have one order that belongs to the model, as
//! on the CPU. Built with dynamic linking only: a static program cannot load a driver.

pub mod compile;
pub mod device;
pub mod ops;
pub mod probe;
pub mod source;
