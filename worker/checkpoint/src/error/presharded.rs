//! Why a folder with one file a rank cannot be used or made.

use std::ops::Range;
use std::path::PathBuf;

use crate::topology::Topology;

/// Why a folder with one file a rank cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum PreshardedError {
    /// The manifest is not what it should be.
    #[error("{}: the manifest is damaged: {reason}; copy the folder again, or make it again with `llamero-worker shard`", path.display())]
    BadManifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The manifest is of a later version of this program.
    #[error(
        "{}: the form of this folder is version {found}, and this program reads version {known}: make the folder again with \
         `llamero-worker shard` of this version, or use the version that made it", path.display()
    )]
    Version {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version that can be read.
        known: u32,
    },
    /// The file of a rank has not the tensors that its rank holds.
    #[error("{}: this is not the file of rank {rank}: {reason}; copy the folder again", path.display())]
    OtherFile {
        /// The file.
        path: PathBuf,
        /// The rank.
        rank: u32,
        /// What differs.
        reason: String,
    },
    /// Bytes of another content than was written.
    #[error(
        "{}: rows {}..{} of {tensor} are not what was written (their SHA-256 differs): copy the file again, or make the folder \
         again with `llamero-worker shard`", path.display(), rows.start, rows.end
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The rows, counted in the rank's part of the tensor.
        rows: Range<u64>,
    },
    /// What needs whole tensors was given parts of them.
    #[error("{} holds the parts of ranks ({made_for}): give the folder that it was made from", path.display())]
    NotWhole {
        /// The folder.
        path: PathBuf,
        /// For which groups it was made.
        made_for: Topology,
    },
}
