//! The loops of leader and followers, from loading to draining.
//!
//! [`RankRuntime`] drives one [`crate::Backend`] on the caller's thread. Weights are loaded once; then the rank connects,
//! forms and serves, and goes back to connecting whenever a peer is lost. Rank 0 leads: its planner, on a thread of its
//! own, owns the queue and the token histories, so clients' streams go on across eras. It reaches all ranks in one way,
//! rank 0's compute included:
//!
//! ```text
//! clients ─ submit ─▶ planner ─ plans, late values ─▶ executor ─┬─ channel ─▶ member (rank 0) ─▶ backend
//!         ◀─ tokens ─         ◀─ answers of all ranks ─         ├─ TCP ─────▶ member (rank 1) ─▶ backend
//!                                                               └─ …
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`adapters`] | the adapters of a group, as its leader keeps them |
//! | [`config`] | what a rank is told at its start |
//! | [`control`] | form, drain and stop, from other threads |
//! | [`state`] | phase and counters, for whoever watches |
//! | [`request`] | a request and the events of its answer |
//! | [`constraint`] | what restricts the tokens of one answer |
//! | [`handle`] | submitting and cancelling, from other threads |
//! | [`queue`] | how many requests may wait |
//! | [`load`] | how busy the group is |
//! | [`rank`] | loading, then leading or following |
//! | [`input`] | what other threads tell the leader's |
//! | [`leader`] | the eras of rank 0, from connecting to draining |
//! | [`planner`] | what is computed next, and what comes of it |
//! | [`executor`] | the leader's way to all members |
//! | [`member`] | one rank's part of a group |
//! | [`follower`] | the eras of every other rank |
//! | [`bench`] | how long the planner takes |

pub mod adapters;
pub mod bench;
pub mod config;
pub mod constraint;
pub mod control;
mod executor;
mod follower;
pub mod handle;
mod input;
mod leader;
pub mod load;
mod member;
mod planner;
mod queue;
pub mod rank;
pub mod request;
pub mod state;

#[cfg(test)]
mod tests;

pub use adapters::{AdapterError, AdapterInfo};
pub use config::RankConfig;
pub use constraint::{Constraint, ConstraintError, Restriction};
pub use control::RankControl;
pub use handle::{EngineHandle, Submission, SubmitError};
pub use load::{HistogramSnapshot, LoadSnapshot};
pub use rank::RankRuntime;
pub use request::{
    AdapterChoice, Event, EventSink, FailureKind, FinishReason, GenerationRequest, Sharing, TokenScore,
};
pub use state::{Outcome, Phase, RankState, StateWatch};
