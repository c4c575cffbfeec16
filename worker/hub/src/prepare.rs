//! From a revision to a folder with the small files of its checkpoint.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use llamero_checkpoint::LlamaConfig;

use crate::{Hub, HubError, HubOptions, Listing, Manifest, RemoteFile, Repository};

/// Resolve `repository` to a commit, fetch the small files of its checkpoint into `folder`, which is made, and write the
/// manifest by which its weights are found. A folder that has the same commit already is left as it is; the files of another
/// one are replaced.
///
/// # Errors
/// [`HubError`]; also when the folder has files that are not from a Hub.
pub async fn prepare(
    options: &HubOptions,
    repository: &Repository,
    folder: &Path,
) -> Result<Manifest, HubError> {
    let hub = Hub::with(options)?;
    let found = Manifest::read(folder)?
        .filter(|found| found.listing.repository == repository.name && found.endpoint == hub.endpoint());
    if let Some(found) = found
        && found.complete
        && found.listing.commit == repository.revision
    {
        return Ok(found);
    }
    let mut listing = hub.list(repository).await?;
    let small = listing.small()?;
    begin(folder, &hub, &listing, &small, options)?;
    hub.download_all(&listing, &small, folder, &mut |_| {}).await?;
    LlamaConfig::read(&folder.join("config.json"))
        .map_err(|error| HubError::Checkpoint(Box::new(error.into())))?;
    let weights = listing.weights(folder)?;
    let wanted: BTreeSet<&String> = small.iter().chain(&weights).map(|file| &file.path).collect();
    listing.files.retain(|file| wanted.contains(&file.path));
    let manifest = manifest(&hub, listing, options, true);
    manifest.write(folder)?;
    Ok(manifest)
}

fn manifest(hub: &Hub, listing: Listing, options: &HubOptions, complete: bool) -> Manifest {
    Manifest {
        endpoint: hub.endpoint().to_owned(),
        ca_file: options.ca_file.clone(),
        listing,
        complete,
    }
}

/// Have a folder in which every file is of this commit. What an interrupted attempt has left of it is gone on with.
fn begin(
    folder: &Path,
    hub: &Hub,
    listing: &Listing,
    small: &[RemoteFile],
    options: &HubOptions,
) -> Result<(), HubError> {
    super::pull::create(folder)?;
    let begun = manifest(hub, listing.clone(), options, false);
    match Manifest::read(folder)? {
        Some(found) if found.endpoint == begun.endpoint && found.listing.commit == listing.commit => {}
        Some(_) => clear(folder)?,
        None if small.iter().any(|file| folder.join(&file.path).exists()) => {
            return Err(HubError::Unusable {
                repository: listing.repository.clone(),
                reason: format!(
                    "{} has files of a checkpoint that did not come from a Hub; name an empty folder",
                    folder.display()
                ),
            });
        }
        None => {}
    }
    begun.write(folder)
}

/// Remove what belongs to another commit.
fn clear(folder: &Path) -> Result<(), HubError> {
    let io = |source| HubError::Io {
        path: folder.to_owned(),
        source,
    };
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_file() {
            fs::remove_file(&path).map_err(io)?;
        }
    }
    Ok(())
}
