//! Leaders of groups.
//!
//! | module | what it is |
//! |---|---|
//! | [`leader`] | one leader: connection, load, failures |
//! | [`dialler`] | how leaders and other gateways are reached |
//! | [`affinity`] | which requests belong together |
//! | [`balance`] | which of several leaders a request goes to |
//! | [`share`] | a canary's share of the requests |
//! | [`refusals`] | leaders that cannot take one certain request |
//! | `codec` | how a request that is kept is sent |
//! | [`classify`] | what an error of a leader means for the request |

pub mod affinity;
pub mod balance;
pub mod classify;
mod codec;
pub mod dialler;
pub mod leader;
pub mod refusals;
pub mod share;

pub use affinity::Affinity;
pub use balance::{Pick, pick};
pub use classify::{Failure, classify};
pub use leader::{Leader, Running};
pub use refusals::{Refusal, Refusals};
pub use share::{Draw, pick_share};
