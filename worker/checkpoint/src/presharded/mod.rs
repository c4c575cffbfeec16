//! Folders that are made once for a group of some [`Topology`], with one file a rank, so that a rank reads one file from its
//! beginning to its end instead of strips of every tensor.
//!
//! ```text
//! llamero-shards.json               topology, identity of the source, all tensors, digests of the files' block tables
//! rank-00000-of-00016.safetensors   the parts of rank 0, in the order in which they are loaded
//! config.json, tokenizer.json, …    as they are in the source
//! ```
//!
//! A rank's file is a safetensors file. Its first tensor is a table of SHA-256 digests, one for each block of rows of each part;
//! a block's scales count to it. What a rank loads are whole blocks, so each is checked when it is read, and the table itself is
//! checked by the digest in the manifest.
//!
//! | module | what it is |
//! |---|---|
//! | [`manifest`] | `llamero-shards.json` |
//! | `content` | which tensors and blocks the file of a rank has |
//! | `rank_file` | reading one |
//! | [`make`] | making such a folder |
//! | `part` | a rank's file while it is made |
//! | `journal` | how far that has come |

mod content;
mod journal;
pub mod make;
pub mod manifest;
mod part;
mod rank_file;

pub(crate) use content::check_files;
pub use make::{ShardOptions, to_shards};
pub use manifest::{MANIFEST_NAME, ShardManifest};
pub(crate) use rank_file::RankFile;

pub use crate::error::PreshardedError;

/// Bytes of rows that a block has at most, unless 32 rows are more: what a rank loads at a time.
pub(crate) const BLOCK_BYTES: u64 = crate::load::CHUNK_BYTES;
