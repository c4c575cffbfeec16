//! What operator, gateway and worker have alike: how users write settings, and rules that two of them follow. A leaf: what the resource
//! types need of it brings nothing along.
//!
//! | module | what it is |
//! |---|---|
//! | [`duration`] | spans of time, in resources and on command lines |
//! | [`hash`] | hashes that are the same in every process and build |
//! | [`kv`] | what a token takes in the KV cache |
//! | [`limits`] | ranges of settings, and sizes that gateway and worker agree on |
//! | [`listen`] | sockets that both address families reach, with the feature `listen` |
//! | [`losses`] | requests that bring down whoever works on them |
//! | [`log`] | `LLAMERO_LOG`, with the feature `log` |
//! | [`memory`] | what a rank's process takes beside weights and KV cache |

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "what comes in from outside must not be able to end the process, nor become another number"
    )
)]

pub mod duration;
pub mod hash;
pub mod kv;
pub mod limits;
#[cfg(feature = "listen")]
pub mod listen;
#[cfg(feature = "log")]
pub mod log;
pub mod losses;
pub mod memory;
