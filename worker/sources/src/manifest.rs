//! What a folder of small files belongs to, and where its weights are.

use std::fs;
use std::path::{Path, PathBuf};

use llamero_checkpoint::ContentIdentity;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Audience, FetchError, Listing, Place, RemoteFile};

/// Name of the file.
pub const NAME: &str = "llamero-sources.json";

/// Written beside the small files of a checkpoint whose weights are read by range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Where the checkpoint is.
    pub place: Place,
    /// Further certificates that are trusted.
    pub ca_file: Option<PathBuf>,
    /// Whether its keys must stand in the environment.
    pub needs_keys: bool,
    /// The files that make the checkpoint, and what they are of.
    pub listing: Listing,
    /// Whether all small files are there.
    pub complete: bool,
}

impl Manifest {
    /// Read the manifest of `folder`; none where the folder has its weights itself.
    ///
    /// # Errors
    /// [`FetchError::Io`].
    pub fn read(folder: &Path) -> Result<Option<Self>, FetchError> {
        let path = folder.join(NAME);
        let io = |source| FetchError::Io {
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
    pub(crate) fn write(&self, folder: &Path) -> Result<(), FetchError> {
        let (path, part) = (folder.join(NAME), folder.join("llamero-sources.json.part"));
        let io = |source| FetchError::Io {
            path: path.clone(),
            source,
        };
        let json = serde_json::to_vec_pretty(self).map_err(|error| io(error.into()))?;
        fs::write(&part, json).map_err(io)?;
        fs::rename(&part, &path).map_err(io)
    }

    /// What the checkpoint is: name, size, hash and ETag of each of its files, as far as they are told, else the commit. No
    /// weight is read for it.
    #[must_use]
    pub fn identity(&self) -> ContentIdentity {
        let mut files: Vec<&RemoteFile> = self.listing.files.iter().collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let mut digest = Sha256::new();
        for file in files {
            let hash = file.sha256.as_ref().or(file.blob.as_ref());
            // Sums beside the files may be older than the files, so ETags count beside them.
            let told = match (hash, &file.tag) {
                (None, None) => self.listing.commit.clone(),
                (Some(hash), None) => Some(hash.clone()),
                (hash, Some(tag)) => Some(format!("{tag} {}", hash.map_or("", String::as_str))),
            };
            let content = told.unwrap_or_default();
            digest.update(format!("{}\n{:?}\n{content}\n", file.path, file.bytes));
        }
        ContentIdentity::from(<[u8; 32]>::from(digest.finalize()))
    }

    /// Whether it is what was looked into before.
    ///
    /// # Errors
    /// [`FetchError::Changed`].
    pub fn check(&self, told: ContentIdentity) -> Result<(), FetchError> {
        let found = self.identity();
        if found == told {
            return Ok(());
        }
        Err(FetchError::Changed {
            host: self.place.host(),
            what: self.listing.name(),
            reason: format!("its files are {} now, they were {}", found.short(), told.short()),
            audience: self.place.audience(Audience::HuggingFace),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Repository;

    fn hub(endpoint: &str) -> Place {
        let repository = Repository {
            name: "org/m".to_owned(),
            revision: "main".to_owned(),
        };
        let endpoint = endpoint.to_owned();
        Place::Hub { endpoint, repository }
    }

    fn manifest(commit: &str, hash: Option<&str>) -> Manifest {
        let file = |path: &str| RemoteFile {
            path: path.to_owned(),
            bytes: Some(7),
            sha256: None,
            blob: hash.map(str::to_owned),
            tag: None,
        };
        Manifest {
            place: hub("https://hub"),
            ca_file: None,
            needs_keys: false,
            listing: Listing {
                repository: "org/m".to_owned(),
                commit: Some(commit.to_owned()),
                files: vec![file("b"), file("a")],
                audience: Audience::HuggingFace,
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
        other.place = hub("https://mirror");
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
        assert!(matches!(Manifest::read(dir.path()), Err(FetchError::Io { .. })));
    }
}
