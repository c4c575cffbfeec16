//! A CUDA driver without a GPU: `libcuda.so.1` with an interpreter of PTX, and beside it `libnvidia-ml.so.1` and
//! `libnccl.so.2` (one library under three names).
//!
//! | module | what it is |
//! |---|---|
//! | [`ptx`] | PTX text to typed instructions; forms outside a whitelist are refused by name |
//! | [`exec`] | warps, blocks and grids on host threads; bounds, alignment, counters |
//! | `driver` | the exported functions of the driver interface |
//! | [`harness`], [`layout`] | run a test on the emulator, in a process of its own |
//!
//! The real compiler's output runs unchanged, through the real bindings, and knows nothing of this. What the emulated
//! machine is like, and which faults it has, is said by an environment variable (see `driver/config.rs`).

mod driver;
pub mod exec;
pub mod harness;
pub mod layout;
pub mod ptx;
