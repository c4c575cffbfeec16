//! A checkpoint that lies elsewhere: listed, downloaded, or read by ranges.
//!
//! It is a repository of a Hugging Face Hub or of a server that speaks the same, a folder of a web server, or one of a bucket.
//! A program without a cluster downloads whole files and goes on where an earlier try ended. A worker pod keeps only the
//! small ones, and each of its ranks reads the bytes of its own shard. Whatever the place, attempts are counted, ranges
//! checked and files pinned in the same way: by the commit of a Hub, else by ETags.
//!
//! ```text
//! Place ── Origin ── list ── choose ─┬─ pull ── download ── partial     (whole files on a disk)
//!                                    └─ prepare ── Manifest ── weights  (small files on a disk, the rest by range)
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`error`] | what can go wrong, in words for the user |
//! | [`place`] | where a checkpoint is, and what opens it |
//! | [`origin`] | a place that can be asked, whatever its protocol |
//! | [`client`] | one request over HTTP: redirects, the token, refusals |
//! | [`hub`], [`repository`] | a Hub, and `ORG/NAME@REVISION` |
//! | [`web`] | a folder of a web server |
//! | [`bucket`] | a folder of a bucket |
//! | [`listing`] | the files, as a Hub lists those of a commit |
//! | `checksums` | `SHA256SUMS` |
//! | [`choose`] | which of them make a checkpoint |
//! | [`patience`] | how often something is tried again, and when |
//! | [`partial`] | a file that is not whole yet |
//! | [`download`] | one file, however often the connection breaks |
//! | [`pull`] | all files of a checkpoint |
//! | [`manifest`] | what a folder of small files belongs to |
//! | [`prepare`] | from a place to such a folder |
//! | [`weights`] | weight files that are read by range |

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

pub mod bucket;
mod checksums;
pub mod choose;
pub mod client;
pub mod download;
pub mod error;
pub mod hub;
pub mod listing;
pub mod manifest;
pub mod origin;
pub mod partial;
pub mod patience;
pub mod place;
pub mod prepare;
pub mod pull;
pub mod repository;
pub mod web;
pub mod weights;

pub use bucket::Bucket;
pub use error::{Audience, FetchError};
pub use hub::Hub;
pub use listing::{Listing, RemoteFile};
pub use manifest::Manifest;
pub use origin::Origin;
pub use patience::Patience;
pub use place::{Access, Place};
pub use prepare::prepare;
pub use repository::Repository;
pub use web::Web;
pub use weights::open;
