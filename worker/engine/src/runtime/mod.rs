//! The loops of leader and followers, from loading to draining.
//!
//! [`RankRuntime`] drives one [`crate::Backend`] on the caller's thread. Weights are loaded once; then the rank connects,
//! forms and serves, and goes back to connecting whenever a peer is lost. Rank 0 leads: it owns the queue and the token
//! histories, so clients' streams go on across eras.
//!
//! | module | what it is |
//! |---|---|
//! | [`config`] | what a rank is told at its start |
//! | [`control`] | form, drain and stop, from other threads |
//! | [`state`] | phase and counters, for whoever watches |
//! | [`input`] | what other threads tell the leader's |
//! | [`request`] | a request and the events of its answer |
//! | [`handle`] | submitting and cancelling, from other threads |
//! | [`load`] | how busy the group is |
//! | [`rank`] | loading, then leading or following |
//! | [`book`] | requests that are not finished |
//! | [`connect`] | rank 0 reaches everybody |
//! | [`leader`] | the steps of rank 0 |
//! | [`compute`] | one step on one rank |
//! | [`merge`] | tokens from the answers of all ranks |
//! | [`follower`] | the steps of every other rank |

mod book;
mod compute;
pub mod config;
mod connect;
pub mod control;
mod follower;
pub mod handle;
mod input;
mod leader;
pub mod load;
mod merge;
pub mod rank;
pub mod request;
pub mod state;

#[cfg(test)]
mod tests;

pub use config::RankConfig;
pub use control::RankControl;
pub use handle::{EngineHandle, Submission, SubmitError};
pub use load::{HistogramSnapshot, LoadSnapshot};
pub use rank::RankRuntime;
pub use request::{Event, FailureKind, FinishReason, GenerationRequest};
pub use state::{Outcome, Phase, RankState, StateWatch};
