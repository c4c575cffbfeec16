//! Llamero without Kubernetes: one binary that fetches or converts a checkpoint and talks with it.
//!
//! ```text
//! llamero run ── source ── prepare ─┬─ hub ── cache        (org/name: downloaded once)
//!                                   ├─ convert ── cache    (FILE.gguf: converted once)
//!                                   └─ DIR                 (as it is)
//!                  │
//!                  └─ engine in this process ─┬─ chat       (the terminal)
//!                                             └─ serve      (the gateway's HTTP)
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`options`] | the command line |
//! | [`source`] | what the user named: a folder, a GGUF file, a repository |
//! | [`cache`] | what was downloaded or made, and the locks on it |
//! | [`prepare`] | from a source to a folder that the engine loads |
//! | [`run`] | `llamero run` |
//! | [`chat`] | the engine as who answers in a chat |
//! | [`serve`] | the OpenAI API in this process |
//! | [`manage`] | `llamero pull`, `list` and `rm` |

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
#![forbid(unsafe_code)]

pub mod cache;
pub mod chat;
pub mod manage;
pub mod options;
pub mod prepare;
pub mod run;
pub mod serve;
pub mod source;
