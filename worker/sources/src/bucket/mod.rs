//! A folder of a bucket: Amazon's S3 and what speaks the same, Google Cloud Storage, Azure Blob Storage.
//!
//! Protocol and credentials are `object_store`'s. It tries nothing again here: attempts are counted where all sources count
//! them.
//!
//! | module | what it is |
//! |---|---|
//! | [`address`] | `s3://BUCKET/FOLDER` |
//! | `connect` | the store of an address, with keys or the pod's cloud identity |
//! | `error` | what a refusal means |

pub mod address;
mod connect;
mod error;

use std::sync::Arc;

use futures::StreamExt as _;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt as _};

use self::address::Address;
use crate::client::Part;
use crate::origin::Opened;
use crate::{Access, Audience, FetchError, Listing, Patience, RemoteFile, checksums};

/// Objects of a folder that are looked at. A checkpoint has some hundred.
const MOST_OBJECTS: usize = 20_000;

/// A folder of a bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    /// As the user wrote it, without a slash at its end.
    uri: String,
    /// Whom an error names.
    host: String,
    folder: Path,
    pub(super) patience: Patience,
    pub(super) audience: Audience,
}

impl Bucket {
    /// The folder at `uri`, of the service at `endpoint` if that is not the cloud's own.
    ///
    /// # Errors
    /// [`FetchError::Address`], [`FetchError::NoKeys`], [`FetchError::Bundle`].
    pub(super) fn with(
        uri: &str,
        endpoint: Option<&str>,
        region: Option<&str>,
        access: &Access,
    ) -> Result<Self, FetchError> {
        let address = Address::parse(uri)?;
        let host = connect::host(&address, endpoint)?;
        let store = connect::store(&address, &host, endpoint, region, access)?;
        Ok(Self {
            store,
            uri: uri.trim_end_matches('/').to_owned(),
            host,
            folder: address.folder,
            patience: access.patience,
            audience: access.audience,
        })
    }

    /// Whom an error names.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The objects in the folder.
    ///
    /// # Errors
    /// [`FetchError`].
    pub(super) async fn list(&self) -> Result<Listing, FetchError> {
        let mut tries = crate::patience::Tries::new(self.patience, self.audience);
        loop {
            match self.list_once().await {
                Ok(listing) => return Ok(listing),
                Err(error) => tries.failed(error).await?,
            }
        }
    }

    async fn list_once(&self) -> Result<Listing, FetchError> {
        let mut files = Vec::new();
        let mut sums = None;
        let mut objects = self.store.list(Some(&self.folder));
        let mut looked_at = 0;
        while let Some(object) = objects.next().await {
            let object = object.map_err(|error| self.refusal(&error, &self.uri))?;
            looked_at += 1;
            if looked_at > MOST_OBJECTS {
                return Err(self.unusable(format!(
                    "more than {MOST_OBJECTS} objects lie below it; name the folder of the checkpoint itself"
                )));
            }
            let mut parts = object.location.prefix_match(&self.folder).into_iter().flatten();
            let (Some(name), None) = (parts.next(), parts.next()) else {
                continue;
            };
            if name.as_ref() == checksums::NAME {
                sums = Some(object.size);
                continue;
            }
            let Some(tag) = object.e_tag else {
                return Err(self.unusable(
                    "the service tells no ETags, so an object that is replaced while it is read could not be told".to_owned(),
                ));
            };
            files.push(RemoteFile {
                path: name.as_ref().to_owned(),
                bytes: Some(object.size),
                sha256: None,
                blob: None,
                tag: Some(quoted(&tag)),
            });
        }
        if files.is_empty() {
            return Err(self.unusable("there is no object in it; check bucket and folder".to_owned()));
        }
        let mut listing = Listing {
            repository: self.uri.clone(),
            commit: None,
            files,
            audience: self.audience,
        };
        if let Some(size) = sums {
            listing.add_sums(&self.sums(size).await?)?;
        }
        Ok(listing)
    }

    async fn sums(&self, size: u64) -> Result<Vec<u8>, FetchError> {
        let what = format!("{} of {}", checksums::NAME, self.uri);
        if size > checksums::MOST as u64 {
            return Err(self.unusable(format!("its {} has {size} bytes", checksums::NAME)));
        }
        let path = self.folder.clone().join(checksums::NAME);
        let found = self.store.get(&path).await;
        let found = found.map_err(|error| self.refusal(&error, &what))?;
        let bytes = found.bytes().await.map_err(|error| self.broken(&error))?;
        Ok(bytes.into())
    }

    /// Ask for a part of an object, once, if it still has the ETag that it was listed with.
    ///
    /// # Errors
    /// [`FetchError`].
    pub(super) async fn open(&self, file: &RemoteFile, part: Part, what: &str) -> Result<Opened, FetchError> {
        let range = match part {
            Part::From(0) => None,
            Part::From(from) => Some(GetRange::Offset(from)),
            Part::Of(range) => Some(GetRange::Bounded(range)),
        };
        let is_part = range.is_some();
        let options = GetOptions {
            if_match: file.tag.clone(),
            range,
            ..GetOptions::default()
        };
        let path = self.folder.clone().join(file.path.as_str());
        let found = self.store.get_opts(&path, options).await;
        let found = found.map_err(|error| self.refusal(&error, what))?;
        Ok(Opened::bucket(found, is_part, self))
    }

    fn unusable(&self, reason: String) -> FetchError {
        FetchError::Unusable {
            repository: self.uri.clone(),
            reason,
        }
    }
}

/// An ETag in the form of the header: some services leave the quotes out of listings.
pub(crate) fn quoted(tag: &str) -> String {
    format!("\"{}\"", tag.trim_matches('"'))
}
