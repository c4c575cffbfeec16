//! Settings that operator, gateway and worker have alike: how users write them, and what they mean. A leaf: what the resource types
//! need of it brings nothing along.
//!
//! | module | what it is |
//! |---|---|
//! | [`duration`] | spans of time, in resources and on command lines |
//! | [`listen`] | sockets that both address families reach, with the feature `listen` |
//! | [`log`] | `LLAMERO_LOG`, with the feature `log` |

#![forbid(unsafe_code)]

pub mod duration;
#[cfg(feature = "listen")]
pub mod listen;
#[cfg(feature = "log")]
pub mod log;
