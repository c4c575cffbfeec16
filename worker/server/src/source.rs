//! Where a checkpoint comes from: a folder, a repository of a Hub, a folder of a web server, or one of a bucket.

use std::path::{Path, PathBuf};

use clap::Args;
use llamero_checkpoint::Checkpoint;
use llamero_sources::{Access, Audience, FetchError, Manifest, Patience, Place, Repository};

/// The variable with the access token for a Hub. Ranks get it from their supervisor with its environment.
const HUB_TOKEN: &str = "HF_TOKEN";
/// The variable with the access token for files below a URL.
const WEB_TOKEN: &str = "LLAMERO_SOURCE_TOKEN";

/// Where the weights are, if not in the model folder, which then gets the small files; each rank reads its own bytes.
#[derive(Debug, Clone, Default, Args)]
pub struct SourceArgs {
    /// Read the weights from this repository of a Hub. The variable HF_TOKEN has the access token
    #[arg(long, value_name = "ORG/NAME", group = "place")]
    pub hub_repository: Option<String>,
    /// Branch, tag or commit
    #[arg(
        long,
        value_name = "REVISION",
        default_value = "main",
        requires = "hub_repository"
    )]
    pub hub_revision: String,
    /// The Hub that the repository is at
    #[arg(
        long,
        value_name = "URL",
        env = "HF_ENDPOINT",
        default_value = "https://huggingface.co"
    )]
    pub hub_endpoint: String,
    /// Read the weights from the files below this URL. The variable LLAMERO_SOURCE_TOKEN has the access token
    #[arg(long, value_name = "URL", group = "place")]
    pub web_url: Option<String>,
    /// Read the weights from this folder of a bucket: s3://BUCKET/FOLDER, gs://... or az://... Keys are taken from the
    /// variables of the cloud's own tools, else from the identity that the cloud gives this machine
    #[arg(long, value_name = "URI", group = "place")]
    pub bucket_uri: Option<String>,
    /// The service that the bucket is at, if it is not the cloud's own
    #[arg(long, value_name = "URL", requires = "bucket_uri")]
    pub bucket_endpoint: Option<String>,
    /// Region of the bucket
    #[arg(long, value_name = "REGION", requires = "bucket_uri")]
    pub bucket_region: Option<String>,
    /// Refuse to go on without keys in the variables
    #[arg(long, requires = "bucket_uri")]
    pub bucket_keys: bool,
    /// A PEM file with further certificates that are trusted
    #[arg(long, value_name = "PATH", requires = "place", alias = "hub-ca-file")]
    pub source_ca_file: Option<PathBuf>,
}

impl SourceArgs {
    /// Put the small files of the checkpoint into `folder`, if it lies elsewhere; what it is then. A failure that may pass is
    /// tried again as `patience` says.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn prepare(&self, folder: &Path, patience: Patience) -> Result<Option<Manifest>, FetchError> {
        let Some(place) = self.place()? else {
            return Ok(None);
        };
        let access = Access {
            ca_file: self.source_ca_file.clone(),
            needs_keys: self.bucket_keys,
            patience,
            ..access(self.web_url.is_some())
        };
        llamero_sources::prepare(&access, &place, folder).await.map(Some)
    }

    fn place(&self) -> Result<Option<Place>, FetchError> {
        if let Some(url) = &self.web_url {
            return Ok(Some(Place::Web { url: url.clone() }));
        }
        if let Some(uri) = &self.bucket_uri {
            return Ok(Some(Place::Bucket {
                uri: uri.clone(),
                endpoint: self.bucket_endpoint.clone(),
                region: self.bucket_region.clone(),
            }));
        }
        let Some(name) = &self.hub_repository else {
            return Ok(None);
        };
        let repository = Repository::parse(&format!("{name}@{}", self.hub_revision)).ok_or_else(|| {
            FetchError::Unusable {
                repository: name.clone(),
                reason: "write a repository as ORG/NAME, and a branch, tag or commit as its revision"
                    .to_owned(),
            }
        })?;
        Ok(Some(Place::Hub {
            endpoint: self.hub_endpoint.clone(),
            repository,
        }))
    }
}

/// Open the checkpoint of `folder`, wherever its weights are.
///
/// # Errors
/// [`FetchError`].
pub fn open(folder: &Path) -> Result<Checkpoint, FetchError> {
    let manifest = Manifest::read(folder)?;
    let is_web = manifest.is_some_and(|manifest| matches!(manifest.place, Place::Web { .. }));
    llamero_sources::open(folder, &access(is_web))
}

/// Token and patience; the rest stands in the folder's manifest.
fn access(is_web: bool) -> Access {
    let variable = if is_web { WEB_TOKEN } else { HUB_TOKEN };
    let token = std::env::var(variable).unwrap_or_default();
    let token = token.trim();
    Access {
        token: (!token.is_empty()).then(|| token.to_owned()),
        variables: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        patience: Patience::default(),
        // Which source it is, is known from the place.
        audience: Audience::HuggingFace,
        ..Access::default()
    }
}
