//! Which commit a folder of small files belongs to, and where its weights are.

use std::fs;
use std::path::{Path, PathBuf};

use llamero_checkpoint::ContentIdentity;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{HubError, Listing, RemoteFile};

/// Name of the file.
const NAME: &str = "llamero-hub.json";

/// Written beside the small files of a checkpoint whose weights are read by range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Base URL of the Hub.
    pub endpoint: String,
    /// Further certificates that are trusted.
    pub ca_file: Option<PathBuf>,
    /// The repository, the commit, and the files that make the checkpoint.
    pub listing: Listing,
    /// Whether all small files are there.
    pub complete: bool,
}

impl Manifest {
    /// Read the manifest of `folder`; none where the folder has its weights itself.
    ///
    /// # Errors
    /// [`HubError::Io`].
    pub fn read(folder: &Path) -> Result<Option<Self>, HubError> {
        let path = folder.join(NAME);
        let io = |source| HubError::Io {
            path: path.clone(),
            source,
        };
        match fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json)
                .map(Some)
                .map_err(|error| io(error.into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io(error)),
        }
    }

    /// Write it into `folder`, whole or not at all.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), HubError> {
        let (path, part) = (folder.join(NAME), folder.join("llamero-hub.json.part"));
        let io = |source| HubError::Io {
            path: path.clone(),
            source,
        };
        let json = serde_json::to_vec_pretty(self).map_err(|error| io(error.into()))?;
        fs::write(&part, json).map_err(io)?;
        fs::rename(&part, &path).map_err(io)
    }

    /// What the checkpoint is: name, size and hash of each of its files, and the commit where the Hub tells no hash of one.
    /// No weight is read for it.
    #[must_use]
    pub fn identity(&self) -> ContentIdentity {
        let mut files: Vec<&RemoteFile> = self.listing.files.iter().collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let mut hash = Sha256::new();
        for file in files {
            let content = file.sha256.as_ref().or(file.blob.as_ref());
            let content = content.unwrap_or(&self.listing.commit);
            hash.update(format!("{}\n{:?}\n{content}\n", file.path, file.bytes));
        }
        ContentIdentity::from(<[u8; 32]>::from(hash.finalize()))
    }

    /// Whether it is what was looked into before.
    ///
    /// # Errors
    /// [`HubError::Changed`].
    pub fn check(&self, told: ContentIdentity) -> Result<(), HubError> {
        let found = self.identity();
        if found == told {
            return Ok(());
        }
        Err(HubError::Changed {
            host: self.endpoint.clone(),
            what: format!("{}@{}", self.listing.repository, self.listing.commit),
            reason: format!("its files are {} now, they were {}", found.short(), told.short()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Audience;

    fn manifest(commit: &str, hash: Option<&str>) -> Manifest {
        let file = |path: &str| RemoteFile {
            path: path.to_owned(),
            bytes: Some(7),
            sha256: None,
            blob: hash.map(str::to_owned),
        };
        Manifest {
            endpoint: "https://hub".to_owned(),
            ca_file: None,
            listing: Listing {
                repository: "org/m".to_owned(),
                commit: commit.to_owned(),
                files: vec![file("b"), file("a")],
                audience: Audience::Cluster,
            },
            complete: true,
        }
    }

    #[test]
    fn the_identity_is_that_of_the_files_not_of_their_order_or_place() {
        let of = |commit: &str, hash| manifest(commit, hash).identity();
        assert_eq!(
            of("c", Some("1")),
            of("d", Some("1")),
            "only the text of a README differs"
        );
        assert_ne!(of("c", Some("1")), of("c", Some("2")));
        assert_ne!(
            of("c", None),
            of("d", None),
            "nothing but the commit tells them apart"
        );
        let mut other = manifest("c", Some("1"));
        other.listing.files.reverse();
        other.endpoint = "https://mirror".to_owned();
        assert_eq!(other.identity(), of("c", Some("1")));
        other.check(of("c", Some("1"))).unwrap();
        let error = other.check(of("c", Some("2"))).unwrap_err().to_string();
        assert!(error.contains("org/m@c changed at https://mirror"), "{error}");
    }

    #[test]
    fn is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), None);
        let mut written = manifest("c", None);
        written.write(dir.path()).unwrap();
        written.listing.audience = Audience::CommandLine;
        assert_eq!(Manifest::read(dir.path()).unwrap(), Some(written));
        fs::write(dir.path().join(NAME), "{").unwrap();
        assert!(matches!(Manifest::read(dir.path()), Err(HubError::Io { .. })));
    }
}
