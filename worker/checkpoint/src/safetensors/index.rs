//! `model.safetensors.index.json`: which file holds which tensor.
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "what comes in from outside must not be able to end the process, nor become another number"
    )
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::SafetensorsError;
use crate::io_error::{IoError, is_file};

/// Name of the index of a checkpoint in several files.
pub const INDEX_NAME: &str = "model.safetensors.index.json";
/// Name of a checkpoint in one file.
pub const SINGLE_NAME: &str = "model.safetensors";

/// The index of a checkpoint in several files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WeightIndex {
    /// Holds `total_size`, the bytes of all tensors; other keys occur.
    #[serde(default)]
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// File name by tensor name.
    pub weight_map: BTreeMap<String, String>,
}

impl WeightIndex {
    /// Read the index at `path` and check that every file it names lies beside it.
    pub fn read(path: &Path) -> Result<Self, SafetensorsError> {
        let index = Self::read_alone(path)?;
        let files = index.files();
        let mut missing = Vec::new();
        for file in &files {
            if !is_file(&path.with_file_name(file))? {
                missing.push(*file);
            }
        }
        if let Some(first) = missing.first() {
            return Err(SafetensorsError::MissingFile {
                path: path.to_path_buf(),
                file: (*first).to_owned(),
                missing: missing.len(),
                total: files.len(),
            });
        }
        Ok(index)
    }

    /// Read the index at `path`; the files lie somewhere else.
    pub fn read_alone(path: &Path) -> Result<Self, SafetensorsError> {
        let bytes = fs::read(path).map_err(IoError::at("read", path))?;
        let damaged = |reason| SafetensorsError::BadIndex {
            path: path.to_path_buf(),
            reason,
        };
        let index: Self = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if let Some(odd) = index
            .files()
            .iter()
            .find(|file| file.contains(['/', '\0']) || file.is_empty())
        {
            return Err(damaged(format!("the file name {odd:?} leads out of the folder")));
        }
        Ok(index)
    }

    /// The files that the index names.
    #[must_use]
    pub fn files(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}
