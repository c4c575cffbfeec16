//! What is computed next: first come, first served, in batches that change with every step.
//!
//! Pure and deterministic: no clock, no I/O. The same calls give the same plans.
//!
//! | module | what it is |
//! |---|---|
//! | [`budget`] | how many tokens a step may hold, from how long steps took |
//! | [`block_pool`] | the KV blocks: who uses them, and what the others still hold |
//! | [`prefix`] | names of KV blocks by what they hold |
//! | [`sequence`] | one request's tokens and how far they are planned |
//! | [`drafts`] | tokens that are guessed, and what they gain and cost |
//! | [`batch`] | the rows of one step and what they belong to |
//! | [`scheduler`] | admission, chunked prefill, preemption, requeue |

pub mod batch;
pub mod block_pool;
pub mod budget;
mod drafts;
pub mod prefix;
pub mod scheduler;
pub mod sequence;

#[cfg(test)]
mod properties;

pub use batch::{Admission, Batch, LateToken};
pub use block_pool::BlockPool;
pub use budget::StepBudget;
pub use drafts::{Drafted, Speculation};
pub use prefix::PrefixHash;
pub use scheduler::{Limits, MOST_OVERTAKEN, Refusal, Scheduler};
pub use sequence::{Sequence, SequenceId};
