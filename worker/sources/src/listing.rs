//! The files of a checkpoint, as a Hub lists those of a commit.

use serde::{Deserialize, Serialize};

use super::client::{Part, answer, is_sha256, network};
use super::patience::Tries;
use super::{Audience, FetchError, Hub, Repository, checksums};

/// Most bytes of a listing; the largest repositories have some hundred files.
const MOST: usize = 16 << 20;

/// Files, and what they are of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// `ORG/NAME`, or an address without secrets in it.
    pub repository: String,
    /// The commit that the revision stands for now, at a Hub.
    pub commit: Option<String>,
    /// The files.
    pub files: Vec<RemoteFile>,
    /// Who reads errors.
    #[serde(skip)]
    pub audience: Audience,
}

/// A file of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteFile {
    /// Path in the repository.
    pub path: String,
    /// Size, if it is told.
    pub bytes: Option<u64>,
    /// SHA-256: a Hub tells it of files in LFS, elsewhere it stands in `SHA256SUMS`.
    pub sha256: Option<String>,
    /// Git's own name of the content, which a Hub tells of all files.
    #[serde(default)]
    pub blob: Option<String>,
    /// What changes when the file does, where no commit pins it: its ETag, or `of ` and the time of its last change.
    #[serde(default)]
    pub tag: Option<String>,
}

impl Listing {
    /// What a Hub says of a commit of the repository `name`, in JSON.
    ///
    /// # Errors
    /// Why it is no such answer.
    pub fn of_commit(name: &str, json: &[u8], audience: Audience) -> Result<Self, String> {
        let revision: Revision = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let commit = revision.sha;
        if commit.is_empty() || !commit.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(format!("{commit:?} is not a commit"));
        }
        Ok(Self {
            repository: name.to_owned(),
            commit: Some(commit),
            files: revision.siblings.into_iter().map(RemoteFile::from).collect(),
            audience,
        })
    }

    /// The listing itself, for an error.
    pub(crate) fn name(&self) -> String {
        match &self.commit {
            Some(commit) => format!("{}@{commit}", self.repository),
            None => self.repository.clone(),
        }
    }

    /// Take the digests that `sums`, a file `SHA256SUMS`, has of its files.
    ///
    /// # Errors
    /// [`FetchError::Unusable`] with the first line that is none.
    pub fn add_sums(&mut self, sums: &[u8]) -> Result<(), FetchError> {
        let text = String::from_utf8_lossy(sums);
        checksums::apply(&text, &mut self.files).map_err(|line| FetchError::Unusable {
            repository: self.repository.clone(),
            reason: format!(
                "its {} has the line {line:?}; make it by `sha256sum * > {0}` in the folder, or remove it",
                checksums::NAME
            ),
        })
    }

    /// One of its files, for an error.
    pub(crate) fn what(&self, path: &str) -> String {
        format!("{path} of {}", self.name())
    }
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
    /// [`FetchError`].
    pub async fn list(&self, repository: &Repository) -> Result<Listing, FetchError> {
        let mut tries = Tries::new(self.http.patience, self.http.audience);
        loop {
            match self.list_once(repository).await {
                Ok(listing) => return Ok(listing),
                Err(error) => tries.failed(error).await?,
            }
        }
    }

    async fn list_once(&self, repository: &Repository) -> Result<Listing, FetchError> {
        let Repository { name, revision } = repository;
        let what = format!("{name}@{revision}");
        let segments = ["api", "models"].into_iter().chain(name.split('/'));
        let mut url = self.http.url(segments.chain(["revision", revision.as_str()]));
        url.set_query(Some("blobs=true"));
        let found = self.http.get(url.clone(), Part::From(0), None, &what).await?;
        let mut response = found.response;
        let mut json = Vec::new();
        while let Some(bytes) = response
            .chunk()
            .await
            .map_err(|error| network(&url, &error, self.http.audience))?
        {
            json.extend_from_slice(&bytes);
            if json.len() > MOST {
                return Err(answer(&url, &what, format!("it is longer than {MOST} bytes")));
            }
        }
        Listing::of_commit(name, &json, self.http.audience).map_err(|reason| answer(&url, &what, reason))
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
            tag: None,
        }
    }
}
