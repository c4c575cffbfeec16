//! Leaders of groups.
//!
//! | module | what it is |
//! |---|---|
//! | [`leader`] | one leader: connection, load, failures |
//! | [`balance`] | the least loaded of several |
//! | [`classify`] | what an error of a leader means for the request |

pub mod balance;
pub mod classify;
pub mod leader;

pub use balance::{Pick, pick};
pub use classify::{Failure, classify};
pub use leader::{Leader, Running};
