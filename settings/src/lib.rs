//! How users write settings that operator, gateway and worker have alike. A leaf: what the resource types need of it brings nothing along.
//!
//! | module | what it is |
//! |---|---|
//! | [`duration`] | spans of time, in resources and on command lines |
//! | [`log`] | `LLAMERO_LOG`, with the feature `log` |

#![forbid(unsafe_code)]

pub mod duration;
#[cfg(feature = "log")]
pub mod log;
