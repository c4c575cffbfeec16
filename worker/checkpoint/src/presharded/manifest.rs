//! `llamero-shards.json`: for whom a folder was made, and of what.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::PreshardedError;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::identity::ContentIdentity;
use crate::io_error::read_if_there;
use crate::safetensors::TensorInfo;
use crate::topology::Topology;

/// Name of the manifest.
pub const MANIFEST_NAME: &str = "llamero-shards.json";
/// The version of the form that this program writes and reads.
const FORMAT_VERSION: u32 = 1;
/// Bounds of what a manifest may ask for: a block is held in memory.
const BLOCK_BYTES: std::ops::RangeInclusive<u64> = 1 << 12..=1 << 26;

/// What a folder with one file a rank was made for, and from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShardManifest {
    /// Version of this form.
    pub format_version: u32,
    /// For which groups.
    pub topology: Topology,
    /// The content identity of the source when the folder was made. That of the folder is computed anew, because the
    /// tokenizer's files count and may be changed.
    pub source: ContentIdentity,
    /// Bytes of rows that a block has at most, unless 32 rows are more.
    pub block_bytes: u64,
    /// The weights and scales of the whole model.
    pub tensors: BTreeMap<String, WholeTensor>,
    /// Of every tensor of the source, in the order of names, the digest of name, type, shape and samples: the part of the
    /// identity that only the source can tell.
    pub samples: Vec<ContentIdentity>,
    /// The files, by rank.
    pub files: Vec<RankFileEntry>,
}

/// A tensor of the whole model, of which the ranks have parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WholeTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
}

/// The file of a rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RankFileEntry {
    /// Its name in the folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of the table of its blocks' digests.
    pub table: ContentIdentity,
}

impl ShardManifest {
    pub(super) fn new(topology: Topology, source: ContentIdentity) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            topology,
            source,
            block_bytes: super::BLOCK_BYTES,
            tensors: BTreeMap::new(),
            samples: Vec::new(),
            files: Vec::new(),
        }
    }

    /// The manifest of `folder`; none where the folder is no such one.
    ///
    /// # Errors
    /// It is damaged, of another version, or cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            format_version: u32,
        }
        let path = folder.join(MANIFEST_NAME);
        let Some(json) = read_if_there(&path)? else {
            return Ok(None);
        };
        let damaged = |reason: String| PreshardedError::BadManifest {
            path: path.clone(),
            reason,
        };
        let version: Version = serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
        if version.format_version != FORMAT_VERSION {
            return Err(PreshardedError::Version {
                path,
                found: version.format_version,
                known: FORMAT_VERSION,
            }
            .into());
        }
        let manifest: Self = serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
        manifest.check().map_err(damaged)?;
        Ok(Some(manifest))
    }

    /// Whether its figures are possible; the error is a phrase for a person.
    fn check(&self) -> Result<(), String> {
        if !BLOCK_BYTES.contains(&self.block_bytes) {
            return Err(format!("blocks of {} bytes", self.block_bytes));
        }
        let (topology, files) = (self.topology, self.files.len());
        if topology.tensor == 0 || topology.pipeline == 0 || topology.ranks() as usize != files {
            return Err(format!("{files} files for {topology}"));
        }
        let odd = |file: &&RankFileEntry| file.name.is_empty() || file.name.contains(['/', '\0']);
        if let Some(file) = self.files.iter().find(odd) {
            return Err(format!("the file name {:?} leads out of the folder", file.name));
        }
        Ok(())
    }

    /// The tensors of the whole model as a header would list them, each by itself.
    pub(crate) fn infos(&self, folder: &Path) -> Result<BTreeMap<String, TensorInfo>, PreshardedError> {
        let info = |(name, tensor): (&String, &WholeTensor)| {
            let bytes = tensor
                .shape
                .iter()
                .try_fold(tensor.dtype.size(), |product, dim| product.checked_mul(*dim))
                .ok_or_else(|| PreshardedError::BadManifest {
                    path: folder.join(MANIFEST_NAME),
                    reason: format!("tensor {name} has an impossible shape {:?}", tensor.shape),
                })?;
            let info = TensorInfo {
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                range: 0..bytes,
            };
            Ok((name.clone(), info))
        };
        self.tensors.iter().map(info).collect()
    }
}
