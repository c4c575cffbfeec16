//! What is computed next: first come, first served, in batches that change with every step.
//!
//! Pure and deterministic: no clock, no I/O. The same calls give the same plans.
//!
//! | module | what it is |
//! |---|---|
//! | [`budget`] | how many tokens a step may hold, from how long steps took |
//! | [`allocator`] | the free list of KV blocks, with reference counts |
//! | [`sequence`] | one request's tokens and how far they are planned |
//! | [`batch`] | the rows of one step and what they belong to |
//! | [`scheduler`] | admission, chunked prefill, preemption, requeue |

pub mod allocator;
pub mod batch;
pub mod budget;
pub mod scheduler;
pub mod sequence;

#[cfg(test)]
mod properties;

pub use allocator::BlockAllocator;
pub use batch::{Batch, LateToken};
pub use budget::StepBudget;
pub use scheduler::{Limits, Refusal, Scheduler};
pub use sequence::{Sequence, SequenceId};
