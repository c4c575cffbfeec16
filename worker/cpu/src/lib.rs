//! The CPU backend: one rank of a tensor-parallel Llama on SIMD kernels.
//!
//! | module | what it is |
//! |---|---|
//! | [`backend`] | [`CpuBackend`]: the engine's contract, step by step |
//! | [`kernel`] | kernels and their choice at run time; what "the same bits" means |
//! | `shape`, `layout`, `weights`, `region`, `load` | a rank's sizes, and its packed weights in one piece of memory |
//! | `leaves`, `matmul` | matrix products in the model's order of summation |
//! | `lora` | adapters: what is added for the rows that ask for one |
//! | `kv`, `attention`, `rope` | paged cache, attention by chunks of absolute positions, rotary angles |
//! | `forward`, `programs`, `workspace` | the layers, their orders of summation, and the scratch memory they need |
//! | [`memory`] | what a rank takes of memory, before anything is loaded |
//! | `sample` | candidates from logits |
//! | [`collective`] | sums and gathers among the ranks of a group |
//! | [`pool`] | threads that share the work of one rank |
//! | [`bench`] | speed beside the machine's own bounds |
//!
//! Logits have the same bits whatever the batch, the prefill chunks, the number of threads, the number of ranks and the
//! kernel: each sum has one order that belongs to the model.

mod attention;
pub mod backend;
pub mod bench;
pub mod collective;
mod disjoint;
mod forward;
pub mod kernel;
mod kv;
mod layout;
mod leaves;
mod load;
mod lora;
mod matmul;
#[cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "sizes come from files and limits, and this crate is compiled without overflow checks"
    )
)]
pub mod memory;
pub mod pool;
mod programs;
mod region;
mod rope;
mod sample;
#[cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "sizes come from files and limits, and this crate is compiled without overflow checks"
    )
)]
mod shape;
mod weights;
#[cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "sizes come from files and limits, and this crate is compiled without overflow checks"
    )
)]
mod workspace;

pub use backend::{CpuBackend, CpuOptions};
pub use collective::Waits;
pub use kernel::{Kernel, KernelError, Level};
pub use load::pod::PodMemory;
pub use memory::WorkspaceNeed;

/// Processors that this process may use: affinity and the quotas of cgroups (version 1 and 2) count.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
