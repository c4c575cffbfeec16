//! Where a checkpoint comes from: a folder, or a repository of a Hub.

use std::path::{Path, PathBuf};

use clap::Args;
use llamero_checkpoint::Checkpoint;
use llamero_hub::{Audience, HubError, HubOptions, Manifest, Patience, Repository};

/// The variable with the access token. Ranks get it from their supervisor with its environment.
const TOKEN: &str = "HF_TOKEN";

/// A repository of a Hub.
#[derive(Debug, Clone, Default, Args)]
pub struct HubArgs {
    /// Read the weights from this repository, each rank its own bytes; the small files are put into the model folder. The
    /// variable HF_TOKEN has the access token
    #[arg(long, value_name = "ORG/NAME")]
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
    /// A PEM file with further certificates that are trusted
    #[arg(long, value_name = "PATH", requires = "hub_repository")]
    pub hub_ca_file: Option<PathBuf>,
}

impl HubArgs {
    /// Put the small files of the repository into `folder`, if a repository is asked for; what it is then. A failure that may
    /// pass is tried again as `patience` says.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn prepare(&self, folder: &Path, patience: Patience) -> Result<Option<Manifest>, HubError> {
        let Some(name) = &self.hub_repository else {
            return Ok(None);
        };
        let repository = Repository::parse(&format!("{name}@{}", self.hub_revision)).ok_or_else(|| {
            HubError::Unusable {
                repository: name.clone(),
                reason: "write a repository as ORG/NAME, and a branch, tag or commit as its revision"
                    .to_owned(),
            }
        })?;
        let options = HubOptions {
            endpoint: self.hub_endpoint.clone(),
            ca_file: self.hub_ca_file.clone(),
            patience,
            ..options()
        };
        llamero_hub::prepare(&options, &repository, folder)
            .await
            .map(Some)
    }
}

/// Open the checkpoint of `folder`, wherever its weights are.
///
/// # Errors
/// [`HubError`].
pub fn open(folder: &Path) -> Result<Checkpoint, HubError> {
    llamero_hub::open(folder, &options())
}

/// Token and patience; the rest stands in the folder's manifest.
fn options() -> HubOptions {
    let token = std::env::var(TOKEN).unwrap_or_default();
    let token = token.trim();
    HubOptions {
        token: (!token.is_empty()).then(|| token.to_owned()),
        patience: Patience::default(),
        audience: Audience::Cluster,
        ..HubOptions::default()
    }
}
