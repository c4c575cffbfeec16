//! The CUDA backend: kernels, and what loads and launches them.
//!
//! | module | what it is |
//! |---|---|
//! | [`backend`] | [`CudaBackend`]: the engine's contract, step by step |
//! | [`probe`] | which libraries are there; absence is a sentence |
//! | [`device`] | devices by UUID |
//! | [`preflight`], `management`, `xid` | what a GPU is like before it is used, whether it can be trusted, and which errors the driver reports of it |
//! | [`compile`] | CUDA C++ to PTX by NVRTC, kept by content hash |
//! | [`source`] | the kernels' texts |
//! | [`ops`] | one safe function for each kernel: shapes are checked before a launch |
//! | `exchange` | what ranks of a stage give each other, over memory of their GPUs, and stages, over the mesh |
//! | `shape`, `layout`, `weights`, `load` | a rank's sizes, its matrices, and how they come to the device |
//! | `work`, `kv`, `rope`, `pinned` | buffers of a formed rank |
//! | `forward`, `sample` | the layers; from final norms to candidates |
//! | `error` | what an error of the driver means to the engine |
//!
//! Kernels give a row the same bits whatever else is in its batch, and sums have one order that belongs to the model, as
//! on the CPU. For programs that are linked dynamically (`.cargo/rustc.sh`): a static one cannot load a driver.

pub mod backend;
pub mod compile;
pub mod device;
mod error;
mod exchange;
mod forward;
mod kv;
mod layout;
mod load;
mod management;
pub mod ops;
mod pinned;
pub mod preflight;
pub mod probe;
mod rope;
mod sample;
mod shape;
pub mod source;
mod weights;
mod work;
mod xid;

pub use backend::{CudaBackend, CudaOptions, Gpu, Origin};
pub use exchange::ExchangeOptions;
