//! A repository of a Hugging Face Hub, or of a server that speaks the same HTTP: listed, downloaded, or read by ranges.
//!
//! `GET /api/models/{repository}/revision/{revision}?blobs=true` names the commit and its files;
//! `GET /{repository}/resolve/{commit}/{file}` redirects to their bytes. A program without a cluster downloads whole files
//! and goes on where an earlier try ended. A worker pod keeps only the small ones, and each of its ranks reads the
//! bytes of its own shard. <https://huggingface.co/docs/hub/api>
//!
//! ```text
//! list ── choose ─┬─ pull ── download ── partial            (whole files on a disk)
//!                 └─ prepare ── Manifest ── weights         (small files on a disk, the rest by range)
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`error`] | what can go wrong, in words for the user |
//! | [`repository`] | `ORG/NAME@REVISION` |
//! | [`client`] | one request: redirects, the token, the Hub's error codes |
//! | [`listing`] | the files of a commit |
//! | [`choose`] | which of them make a checkpoint |
//! | [`patience`] | how often something is tried again, and when |
//! | [`partial`] | a file that is not whole yet |
//! | [`download`] | one file, however often the connection breaks |
//! | [`pull`] | all files of a checkpoint |
//! | [`manifest`] | which commit a folder of small files belongs to |
//! | [`prepare`] | from a revision to such a folder |
//! | [`weights`] | weight files that are read by range |

#![forbid(unsafe_code)]

pub mod choose;
pub mod client;
pub mod download;
pub mod error;
pub mod listing;
pub mod manifest;
pub mod partial;
pub mod patience;
pub mod prepare;
pub mod pull;
pub mod repository;
pub mod weights;

pub use client::{Hub, HubOptions};
pub use error::{Audience, HubError};
pub use listing::{Listing, RemoteFile};
pub use manifest::Manifest;
pub use patience::Patience;
pub use prepare::prepare;
pub use repository::Repository;
pub use weights::open;
