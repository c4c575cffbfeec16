//! From a place to a folder with the small files of its checkpoint.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use llamero_checkpoint::LlamaConfig;

use crate::{Access, FetchError, Listing, Manifest, Origin, Place, RemoteFile};

/// Resolve `place` to what is there now, fetch the small files of its checkpoint into `folder`, which is made, and write the
/// manifest by which its weights are found. A folder that has the same already is left as it is; the files of something else
/// are replaced.
///
/// # Errors
/// [`FetchError`]; also when the folder has files that are not from a source.
pub async fn prepare(access: &Access, place: &Place, folder: &Path) -> Result<Manifest, FetchError> {
    let origin = Origin::connect(place, access)?;
    let found = Manifest::read(folder)?.filter(|found| found.place.is_same(place));
    if let (Some(found), Place::Hub { repository, .. }) = (found, place)
        && found.complete
        && found.listing.commit.as_ref() == Some(&repository.revision)
    {
        return Ok(found);
    }
    super::pull::create(folder)?;
    let mut listing = origin.list(place, folder).await?;
    let small = listing.small()?;
    let mut manifest = Manifest {
        place: place.clone(),
        ca_file: access.ca_file.clone(),
        needs_keys: access.needs_keys,
        listing: listing.clone(),
        complete: false,
    };
    begin(folder, &manifest, &small)?;
    origin.download_all(&listing, &small, folder, &mut |_| {}).await?;
    LlamaConfig::read(&folder.join("config.json"))
        .map_err(|error| FetchError::Checkpoint(Box::new(error.into())))?;
    let weights = listing.weights(folder)?;
    let wanted: BTreeSet<&String> = small.iter().chain(&weights).map(|file| &file.path).collect();
    listing.files.retain(|file| wanted.contains(&file.path));
    manifest.listing = listing;
    manifest.complete = true;
    manifest.write(folder)?;
    Ok(manifest)
}

/// Have a folder in which every file is of this listing. What an interrupted attempt has left of it is gone on with.
fn begin(folder: &Path, begun: &Manifest, small: &[RemoteFile]) -> Result<(), FetchError> {
    match Manifest::read(folder)? {
        Some(found) if found.place.is_same(&begun.place) && is_same(&found.listing, begun, small) => {}
        Some(_) => clear(folder)?,
        None if small.iter().any(|file| folder.join(&file.path).exists()) => {
            return Err(FetchError::Unusable {
                repository: begun.listing.repository.clone(),
                reason: format!(
                    "{} has files of a checkpoint that did not come from a source; name an empty folder",
                    folder.display()
                ),
            });
        }
        None => {}
    }
    begun.write(folder)
}

/// Whether what an earlier attempt has left in the folder, first bytes of weights among it, is of what is there now.
fn is_same(found: &Listing, begun: &Manifest, small: &[RemoteFile]) -> bool {
    match &begun.listing.commit {
        Some(commit) => found.commit.as_ref() == Some(commit),
        None => {
            let is_there = |file: &RemoteFile| found.find(&file.path) == Some(file);
            let is_still = |file: &RemoteFile| begun.listing.find(&file.path) == Some(file);
            small.iter().all(is_there) && found.files.iter().all(is_still)
        }
    }
}

/// Remove what belongs to something else.
fn clear(folder: &Path) -> Result<(), FetchError> {
    let io = |source| FetchError::Io {
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
