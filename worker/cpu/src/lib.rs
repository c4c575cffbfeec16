//! The CPU backend: one rank of a tensor-parallel Llama on SIMD kernels.
//!
//! | module | what it is |
//! |---|---|
//! | [`backend`] | [`CpuBackend`]: the engine's contract, step by step |
//! | [`kernel`] | the crate of the kernels and their choice at run time; what "the same bits" means |
//! | `shape`, `layout`, `region`, `load` | a rank's sizes, and its packed weights in one piece of memory |
//! | `leaves`, `programs` | the model's orders of summation |
//! | `lora` | adapters: what is added for the rows that ask for one |
//! | `compute::{weights, matmul}` | weights as they lie in memory, and products with them |
//! | `compute::{kv, attention, rope}` | paged cache, attention by chunks of absolute positions, rotary angles |
//! | `compute::forward`, `workspace` | the layers, and the scratch memory they need |
//! | [`memory`] | what a rank takes of memory, before anything is loaded |
//! | `compute::sample` | candidates from logits |
//! | [`collective`] | sums and gathers among the ranks of a group |
//! | [`pool`] | threads that share the work of one rank |
//! | [`bench`] | speed beside the machine's own bounds |
//!
//! Logits have the same bits whatever the batch, the prefill chunks, the number of threads, the number of ranks and the
//! kernel: each sum has one order that belongs to the model.

#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "sizes come from files, limits and peers"
    )
)]

pub mod backend;
#[allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "nobody from outside has a say in it"
)]
pub mod bench;
pub mod collective;
#[allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "loops over lengths that were checked where they came from"
)]
mod compute;
mod disjoint;
mod layout;
mod leaves;
mod load;
mod lora;
#[cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        reason = "sizes come from files and limits: what is too much is refused, and ends no rank"
    )
)]
pub mod memory;
pub mod pool;
mod programs;
mod region;
#[cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        reason = "sizes come from files and limits: what is too much is refused, and ends no rank"
    )
)]
mod shape;
#[cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        reason = "sizes come from files and limits: what is too much is refused, and ends no rank"
    )
)]
mod workspace;

pub use backend::{CpuBackend, CpuOptions};
pub use collective::Waits;
pub use llamero_kernels::{self as kernel, Kernel, KernelError, Level};
pub use load::pod::PodMemory;
pub use memory::WorkspaceNeed;

use compute::{attention, forward, kv, matmul, rope, sample, weights};

/// Processors that this process may use: affinity and the quotas of cgroups (version 1 and 2) count.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    #[test]
    #[should_panic(expected = "overflow")]
    fn arithmetic_outside_of_the_kernels_is_checked() {
        black_box(black_box(usize::MAX) + black_box(1));
    }
}
