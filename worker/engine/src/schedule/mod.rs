//! What is computed next: first come, first served, in batches that change with every step.
//!
//! Pure and deterministic: no clock, no I/O. The same calls give the same plans.
//!
//! | module | what it is |
//! |---|---|
//! | [`allocator`] | the free list of KV blocks, with reference counts |
//! | [`sequence`] | one request's tokens and how far they are computed |
//! | [`scheduler`] | admission, chunked prefill, preemption, requeue |

pub mod allocator;
pub mod scheduler;
pub mod sequence;

#[cfg(test)]
mod properties;

pub use allocator::BlockAllocator;
pub use scheduler::{Batch, Limits, Refusal, Scheduler};
pub use sequence::{Sequence, SequenceId};
