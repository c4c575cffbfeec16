//! Listing and downloading a repository of a Hugging Face Hub, or of a server that speaks the same HTTP.
//!
//! `GET /api/models/{repository}/revision/{revision}?blobs=true` names the commit and its files;
//! `GET /{repository}/resolve/{commit}/{file}` redirects to their bytes, which are read from where an earlier try ended.
//! <https://huggingface.co/docs/hub/api>
//!
//! | module | what it is |
//! |---|---|
//! | [`error`] | what can go wrong, in words for the user |
//! | [`client`] | one request: redirects, the token, the Hub's error codes |
//! | [`listing`] | the files of a commit |
//! | [`choose`] | which of them make a checkpoint |
//! | [`patience`] | how often something is tried again, and when |
//! | [`partial`] | a file that is not whole yet |
//! | [`download`] | one file, however often the connection breaks |
//! | [`pull`] | all files of a checkpoint |

pub mod choose;
pub mod client;
pub mod download;
pub mod error;
pub mod listing;
pub mod partial;
pub mod patience;
pub mod pull;

pub use client::Hub;
pub use error::HubError;
pub use listing::{Listing, RemoteFile};
pub use patience::Patience;
