//! Who is who between the parts of Llamero, and who may call whom.
//!
//! ```text
//!  pod ── signing request + token of its service account ──► operator: TokenReview, member of a group? ──► certificate, 24 h
//!  pod ◄─────────────── TLS 1.3, certificates on both sides, SPIFFE IDs ───────────────► pod
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`spiffe`] | identities |
//! | [`access`] | the table of who may call what |
//! | [`guard`] | its enforcement in gRPC servers |
//! | [`authority`] | the certificate authority |
//! | [`rotation`] | when one authority may take the place of another |
//! | [`certificate`] | what stands in a certificate |
//! | [`credentials`] | certificate and key in use, swapped when renewed |
//! | [`verify`] | whether a server is who is expected |
//! | [`admitted`] | clients that a user admits |
//! | [`accept`], [`connect`] | both ends of connections |
//! | [`explain`] | why a link did not come about |
//! | `quiet` | how often a log tells of an address |
//! | `room` | how many connections there may be |
//! | [`serving`] | how a gRPC server takes connections |
//! | [`enrol`] | how a pod comes by its certificate, and renews it |
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

pub mod accept;
pub mod access;
pub mod admitted;
pub mod authority;
pub mod certificate;
pub mod connect;
pub mod credentials;
pub mod enrol;
pub mod explain;
pub mod guard;
mod quiet;
mod room;
pub mod rotation;
pub mod serving;
pub mod spiffe;
pub mod verify;

pub use serving::Serving;
pub use spiffe::{Identity, Role};
