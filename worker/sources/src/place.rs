//! Where a checkpoint is, and what opens it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Audience, Patience, Repository};

/// Where a checkpoint is. It stands in manifests, so there is no secret in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Place {
    /// A repository of a Hub.
    Hub {
        /// Base URL of the Hub.
        endpoint: String,
        /// Which one.
        repository: Repository,
    },
    /// Files below a URL.
    Web {
        /// The URL of their folder.
        url: String,
    },
    /// Objects of a bucket.
    Bucket {
        /// `s3://BUCKET/FOLDER`, also `gs://` and `az://`.
        uri: String,
        /// Base URL of the service, if it is not the cloud's own.
        endpoint: Option<String>,
        /// Region of the bucket.
        region: Option<String>,
    },
}

impl Place {
    /// Whether both are the same repository, folder or bucket, whatever the revision.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Hub { endpoint, repository },
                Self::Hub {
                    endpoint: theirs,
                    repository: other,
                },
            ) => {
                endpoint.trim_end_matches('/') == theirs.trim_end_matches('/')
                    && repository.name == other.name
            }
            _ => self == other,
        }
    }

    /// Whom an error names.
    pub(crate) fn host(&self) -> String {
        match self {
            Self::Hub { endpoint, .. } => endpoint.clone(),
            Self::Web { url } => url.clone(),
            Self::Bucket { uri, endpoint, .. } => endpoint.clone().unwrap_or_else(|| uri.clone()),
        }
    }

    /// Who reads errors about it, of whom only the kind is known.
    pub(crate) fn audience(&self, of: Audience) -> Audience {
        match (of, self) {
            (Audience::CommandLine, _) => of,
            (_, Self::Hub { .. }) => Audience::HuggingFace,
            (_, Self::Web { .. }) => Audience::Https,
            (_, Self::Bucket { .. }) => Audience::Bucket,
        }
    }
}

/// What opens a place.
#[derive(Clone, Default)]
pub struct Access {
    /// Access token, for a Hub and for files below a URL.
    pub token: Option<String>,
    /// Variables of the environment, where keys of a bucket are looked for under the names that the clouds' own tools know.
    pub variables: Vec<(String, String)>,
    /// Keys of a bucket must stand there: the pod's cloud identity is not asked.
    pub needs_keys: bool,
    /// A PEM file with further certificates that are trusted.
    pub ca_file: Option<PathBuf>,
    /// How often something is tried again.
    pub patience: Patience,
    /// Who reads errors: somebody at a terminal, or somebody who reads the status of a `LlamaDeployment`, of whatever source.
    pub audience: Audience,
}

impl Access {
    /// Whether there is a variable of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.variables.iter().any(|(known, _)| known == name)
    }
}

/// Without what must not be read in a log.
impl fmt::Debug for Access {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Access")
            .field("needs_keys", &self.needs_keys)
            .field("ca_file", &self.ca_file)
            .field("patience", &self.patience)
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}
