//! How a pod comes by its certificate: it makes a key, which never leaves its memory, and asks the operator to sign for it. The token of its
//! service account, bound to the pod and meant for the audience `llamero` only, says who it is.
//!
//! | module | what it is |
//! |---|---|
//! | [`args`] | where to enrol, as command-line flags |
//! | [`client`] | enrols, and renews after half of a certificate's life |
//! | [`service`] | `llamero.v1.Enrolment` |
//! | [`limit`] | how often an address may ask |

pub mod args;
pub mod client;
pub mod limit;
pub mod service;

/// Audience of the tokens.
pub const AUDIENCE: &str = "llamero";
/// Longest token that is read or sent.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;
