//! From a revision to a folder with the small files of its checkpoint.

use std::collections::BTreeSet;
use std::path::Path;

use llamero_checkpoint::LlamaConfig;

use crate::{Hub, HubError, HubOptions, Manifest, Repository};

/// Resolve `repository` to a commit, fetch the small files of its checkpoint into `folder`, which is made, and write the
/// manifest by which its weights are found. A folder that has the same commit already is left as it is.
///
/// # Errors
/// [`HubError`].
pub async fn prepare(
    options: &HubOptions,
    repository: &Repository,
    folder: &Path,
) -> Result<Manifest, HubError> {
    let hub = Hub::with(options)?;
    if let Some(found) = Manifest::read(folder)?
        && found.listing.repository == repository.name
        && found.listing.commit == repository.revision
        && found.endpoint == hub.endpoint()
    {
        return Ok(found);
    }
    let mut listing = hub.list(repository).await?;
    super::pull::create(folder)?;
    let small = listing.small()?;
    hub.download_all(&listing, &small, folder, &mut |_| {}).await?;
    LlamaConfig::read(&folder.join("config.json"))
        .map_err(|error| HubError::Checkpoint(Box::new(error.into())))?;
    let weights = listing.weights(folder)?;
    let wanted: BTreeSet<&String> = small.iter().chain(&weights).map(|file| &file.path).collect();
    listing.files.retain(|file| wanted.contains(&file.path));
    let manifest = Manifest {
        endpoint: hub.endpoint().to_owned(),
        ca_file: options.ca_file.clone(),
        listing,
    };
    manifest.write(folder)?;
    Ok(manifest)
}
