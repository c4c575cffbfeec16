//! What an entry of the cache is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{CacheError, at};

/// Name of the file that describes an entry.
const FILE: &str = "entry.json";
/// Hexadecimal digits of the digest in a key.
const DIGITS: usize = 16;

/// What an entry was made from. The same origin gives the same files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// Downloaded.
    Hub {
        /// Base URL of the Hub.
        endpoint: String,
        /// `ORG/NAME`.
        repository: String,
        /// The commit.
        commit: String,
        /// The one file that was asked for, a GGUF; absent: a checkpoint's folder.
        file: Option<String>,
    },
    /// Converted from a GGUF file.
    Gguf {
        /// Where the file is.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// When it was changed, in nanoseconds since 1970.
        modified: u64,
    },
    /// Quantised from a folder.
    Fp8 {
        /// The folder.
        path: PathBuf,
        /// SHA-256 over names, sizes and times of its files.
        files: String,
    },
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What the user calls it.
    pub name: String,
    /// What it was made from.
    pub origin: Origin,
    /// For repositories: under which revisions it was asked for, and when last, in Unix seconds.
    #[serde(default)]
    pub asked: BTreeMap<String, u64>,
}

impl Entry {
    /// An entry called `name`.
    #[must_use]
    pub fn new(name: impl Into<String>, origin: Origin) -> Self {
        Self {
            name: name.into(),
            origin,
            asked: BTreeMap::new(),
        }
    }

    /// Note that it was asked for as `revision` now.
    pub fn ask(&mut self, revision: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.asked.insert(revision.to_owned(), now.as_secs());
    }

    /// Name of its folder: readable, and different for different origins.
    #[must_use]
    pub fn key(&self) -> String {
        // Without the name, which only tells people what it is; the forms of `Origin` always make JSON.
        let origin = serde_json::to_vec(&self.origin).unwrap_or_default();
        let mut key: String = self
            .name
            .chars()
            .map(|char| {
                if char.is_ascii_alphanumeric() || "-_.".contains(char) {
                    char
                } else {
                    '-'
                }
            })
            .take(80)
            .collect();
        let digest = hex(&Sha256::digest(origin));
        key.push('-');
        key.push_str(digest.get(..DIGITS).unwrap_or(&digest));
        key
    }

    /// In words, for a list.
    #[must_use]
    pub fn description(&self) -> String {
        match &self.origin {
            Origin::Hub {
                commit, file: None, ..
            } => format!("commit {}", short(commit)),
            Origin::Hub {
                commit,
                file: Some(file),
                ..
            } => format!("{file}, commit {}", short(commit)),
            Origin::Gguf { path, .. } => format!("converted from {}", path.display()),
            Origin::Fp8 { path, .. } => format!("FP8 of {}", path.display()),
        }
    }

    /// Read the description in the folder of an entry; none where there is none.
    #[must_use]
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()
    }

    /// Write the description, whole or not at all.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn write(&self, folder: &Path) -> Result<(), CacheError> {
        let (path, part) = (folder.join(FILE), folder.join("entry.json.part"));
        let json = serde_json::to_vec_pretty(self).map_err(|error| at(&path)(error.into()))?;
        fs::write(&part, json).map_err(at(&part))?;
        fs::rename(&part, &path).map_err(at(&path))
    }
}

/// The first digits of a commit.
#[must_use]
pub fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

/// Hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_names_of_folders_and_follow_the_origin() {
        let origin = |commit: &str| Origin::Hub {
            endpoint: "https://hub".to_owned(),
            repository: "org/m".to_owned(),
            commit: commit.to_owned(),
            file: None,
        };
        let entry = Entry::new("org/../m", origin("a"));
        let key = entry.key();
        assert!(key.starts_with("org-..-m-") && !key.contains('/'), "{key}");
        assert_ne!(key, Entry::new("org/../m", origin("b")).key());
        let mut asked = entry;
        asked.ask("main");
        assert_eq!(asked.key(), key);
        let dir = tempfile::tempdir().unwrap();
        asked.write(dir.path()).unwrap();
        assert_eq!(Entry::read(dir.path()), Some(asked));
        for origin in [
            Origin::Gguf {
                path: "/a".into(),
                bytes: 1,
                modified: u64::MAX,
            },
            Origin::Fp8 {
                path: "/a".into(),
                files: "f".to_owned(),
            },
        ] {
            let entry = Entry::new("a", origin);
            entry.write(dir.path()).unwrap();
            assert_eq!(Entry::read(dir.path()), Some(entry));
        }
        assert_eq!(Entry::read(&dir.path().join("none")), None);
    }
}
