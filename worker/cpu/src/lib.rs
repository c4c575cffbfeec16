//! The CPU backend: kernels, forward pass of Llama, paged KV cache.
//!
//! | module | what it is |
//! |---|---|
//! | [`kernel`] | kernels and their choice at run time |
//! | [`pool`] | threads that share the work of one rank |

pub mod kernel;
pub mod pool;

pub use kernel::{Kernel, KernelError, Level};
