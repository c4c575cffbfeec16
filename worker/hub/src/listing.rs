//! The files of a commit.

use serde::{Deserialize, Serialize};

use super::client::{Part, answer, is_sha256};
use super::patience::Tries;
use super::{Audience, Hub, HubError, Repository};

/// Most bytes of a listing; the largest repositories have some hundred files.
const MOST: usize = 16 << 20;

/// A commit and its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// `ORG/NAME`.
    pub repository: String,
    /// The commit that the revision stands for now.
    pub commit: String,
    /// Its files.
    pub files: Vec<RemoteFile>,
    /// Who reads errors.
    #[serde(skip)]
    pub audience: Audience,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteFile {
    /// Path in the repository.
    pub path: String,
    /// Size, if the Hub tells it.
    pub bytes: Option<u64>,
    /// SHA-256, which the Hub tells of files in LFS.
    pub sha256: Option<String>,
    /// Git's own name of the content, which the Hub tells of all files.
    #[serde(default)]
    pub blob: Option<String>,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    #[serde(alias = "oid")]
    sha256: Option<String>,
    size: Option<u64>,
}

impl Hub {
    /// The files of a repository.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn list(&self, repository: &Repository) -> Result<Listing, HubError> {
        let mut tries = Tries::new(self.patience, self.audience);
        loop {
            match self.list_once(repository).await {
                Ok(listing) => return Ok(listing),
                Err(error) => tries.failed(error).await?,
            }
        }
    }

    async fn list_once(&self, repository: &Repository) -> Result<Listing, HubError> {
        let Repository { name, revision } = repository;
        let what = format!("{name}@{revision}");
        let segments = ["api", "models"].into_iter().chain(name.split('/'));
        let mut url = self.url(segments.chain(["revision", revision.as_str()]));
        url.set_query(Some("blobs=true"));
        let mut response = self.get(url.clone(), Part::From(0), &what).await?.response;
        let mut json = Vec::new();
        while let Some(bytes) = response
            .chunk()
            .await
            .map_err(|error| self.network(&url, &error))?
        {
            json.extend_from_slice(&bytes);
            if json.len() > MOST {
                return Err(answer(&url, &what, format!("it is longer than {MOST} bytes")));
            }
        }
        let revision: Revision = serde_json::from_slice(&json).map_err(|error| answer(&url, &what, error))?;
        let commit = revision.sha;
        if commit.is_empty() || !commit.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(answer(&url, &what, format!("{commit:?} is not a commit")));
        }
        let files = revision.siblings.into_iter().map(RemoteFile::from).collect();
        Ok(Listing {
            repository: name.clone(),
            commit,
            files,
            audience: self.audience,
        })
    }
}

impl From<Sibling> for RemoteFile {
    fn from(sibling: Sibling) -> Self {
        let (sha256, bytes) = match sibling.lfs {
            Some(lfs) => (lfs.sha256, lfs.size),
            None => (None, None),
        };
        Self {
            path: sibling.rfilename,
            bytes: bytes.or(sibling.size),
            sha256: sha256
                .filter(|text| is_sha256(text))
                .map(|text| text.to_ascii_lowercase()),
            blob: sibling.blob_id,
        }
    }
}
