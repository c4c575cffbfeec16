//! Files below a URL: a folder of an ordinary web server, which is not listed but asked for by the names that a checkpoint has.

use std::collections::BTreeSet;
use std::path::Path;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use llamero_checkpoint::safetensors::{INDEX_NAME, SINGLE_NAME, WeightIndex};
use reqwest::Url;

use crate::choose::{OPTIONAL, REQUIRED, is_plain};
use crate::client::{Http, Part, answer};
use crate::origin::Opened;
use crate::weights::{HEAD_BYTES, heads};
use crate::{Access, FetchError, Listing, RemoteFile, checksums};

/// Requests at a time.
const AT_ONCE: usize = 32;
/// Most bytes of an index; that of 405B has 200,000.
const MOST_INDEX: usize = 64 << 20;

/// A folder of a web server.
#[derive(Debug, Clone)]
pub struct Web {
    pub(super) http: Http,
}

/// What was found of a file by asking for its first bytes.
struct Found {
    file: RemoteFile,
    head: Vec<u8>,
}

impl Web {
    /// The folder at `url`.
    ///
    /// # Errors
    /// [`FetchError::Address`], [`FetchError::Token`], [`FetchError::Bundle`].
    pub(super) fn with(url: &str, access: &Access) -> Result<Self, FetchError> {
        let http = Http::with(url, access)?.ok_or_else(|| FetchError::Address {
            given: url.to_owned(),
            wanted: "the address of a folder; write one such as https://example.com/models/llama-8b in \
                     model.source.https.url",
        })?;
        Ok(Self { http })
    }

    /// `{url}/{path}`.
    pub(super) fn file_url(&self, path: &str) -> Url {
        self.http.url(path.split('/'))
    }

    /// The files of the checkpoint, each asked for once; the first bytes of the weights are kept in `folder`.
    ///
    /// # Errors
    /// [`FetchError`].
    pub(super) async fn list(&self, folder: &Path) -> Result<Listing, FetchError> {
        let mut listing = Listing {
            repository: self.http.base().to_owned(),
            commit: None,
            files: Vec::new(),
            audience: self.http.audience,
        };
        // What is required comes first: a refusal of that is the user's to read, one of a file that may be missing is not.
        for name in REQUIRED {
            let found = self.find(&listing, name).await?;
            listing.files.push(found.file);
        }
        let weights = match self.optional(&listing, INDEX_NAME).await? {
            None => BTreeSet::from([SINGLE_NAME.to_owned()]),
            Some(index) => {
                let bytes = self.whole(&listing, &index.file, MOST_INDEX).await?;
                listing.files.push(index.file);
                names(&bytes).map_err(|reason| FetchError::Unusable {
                    repository: listing.repository.clone(),
                    reason,
                })?
            }
        };
        let optional = OPTIONAL.into_iter().chain([checksums::NAME]);
        let optional = stream::iter(optional.filter(|name| *name != INDEX_NAME))
            .map(|name| self.optional(&listing, name))
            .buffered(AT_ONCE)
            .try_filter_map(|found| async { Ok(found) });
        let optional: Vec<Found> = optional.try_collect().await?;
        let weights = stream::iter(&weights)
            .map(|name| self.find(&listing, name))
            .buffered(AT_ONCE);
        let weights: Vec<Found> = weights.try_collect().await?;
        for found in &weights {
            heads::keep(folder, &found.file, &found.head);
        }
        let found = optional.into_iter().chain(weights).map(|found| found.file);
        listing.files.extend(found);
        self.add_sums(&mut listing).await?;
        Ok(listing)
    }

    /// Take the digests of `SHA256SUMS`, if there is one, which is no file of the checkpoint.
    async fn add_sums(&self, listing: &mut Listing) -> Result<(), FetchError> {
        let Some(place) = listing.files.iter().position(|file| file.path == checksums::NAME) else {
            return Ok(());
        };
        let file = listing.files.remove(place);
        let sums = self.whole(listing, &file, checksums::MOST).await?;
        listing.add_sums(&sums)
    }

    /// A file that may be missing. Stores that show no listing refuse what is not there (403); an empty file has no first byte
    /// (416).
    async fn optional(&self, listing: &Listing, name: &str) -> Result<Option<Found>, FetchError> {
        match self.find(listing, name).await {
            Err(
                FetchError::NotFound { .. }
                | FetchError::Refused { status: 403, .. }
                | FetchError::Status { status: 416, .. },
            ) => Ok(None),
            found => found.map(Some),
        }
    }

    /// What a file is, and its first bytes.
    async fn find(&self, listing: &Listing, name: &str) -> Result<Found, FetchError> {
        let mut tries = crate::patience::Tries::new(self.http.patience, self.http.audience);
        loop {
            match self.find_once(listing, name).await {
                Ok(found) => return Ok(found),
                Err(error) => tries.failed(error).await?,
            }
        }
    }

    async fn find_once(&self, listing: &Listing, name: &str) -> Result<Found, FetchError> {
        let what = listing.what(name);
        let url = self.file_url(name);
        let answered = self.http.get(url.clone(), Part::Of(0..HEAD_BYTES), None, &what);
        let mut opened = Opened::http(answered.await?, true, self.http.audience);
        let file = RemoteFile {
            path: name.to_owned(),
            bytes: opened.total,
            sha256: opened.sha256.take(),
            blob: None,
            tag: opened.tag.take(),
        };
        let Some(bytes) = file.bytes else {
            return Err(answer(&url, &what, "it does not say how long the file is"));
        };
        if file.tag.is_none() {
            let reason = "it tells neither an ETag nor the time of the last change, so a file that is replaced while it is \
                          read could not be told; take a server that does";
            return Err(answer(&url, &what, reason));
        }
        let wanted = bytes.min(HEAD_BYTES) as usize;
        let head = read(&mut opened, wanted).await?;
        Ok(Found { file, head })
    }

    /// All bytes of a small file.
    async fn whole(&self, listing: &Listing, file: &RemoteFile, most: usize) -> Result<Vec<u8>, FetchError> {
        let mut tries = crate::patience::Tries::new(self.http.patience, self.http.audience);
        let bytes = usize::try_from(file.bytes.unwrap_or(0)).unwrap_or(usize::MAX);
        let (what, url) = (listing.what(&file.path), self.file_url(&file.path));
        if bytes > most {
            return Err(answer(&url, &what, format!("it is longer than {most} bytes")));
        }
        loop {
            let answered = self
                .http
                .get(url.clone(), Part::From(0), file.tag.as_deref(), &what);
            let read = async {
                let mut opened = Opened::http(answered.await?, true, self.http.audience);
                read(&mut opened, bytes).await
            };
            match read.await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => tries.failed(error).await?,
            }
        }
    }
}

/// `wanted` bytes of an answer.
async fn read(opened: &mut Opened, wanted: usize) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::with_capacity(wanted);
    while bytes.len() < wanted {
        let Some(chunk) = opened.chunk().await? else {
            return Err(FetchError::Network {
                host: opened.host.clone(),
                reason: "the connection ended before the file did".to_owned(),
            });
        };
        bytes.extend_from_slice(&chunk);
    }
    bytes.truncate(wanted);
    Ok(bytes)
}

/// The files that an index names.
///
/// # Errors
/// It is no index, or names a file that is not beside it.
pub fn names(index: &[u8]) -> Result<BTreeSet<String>, String> {
    let index: WeightIndex =
        serde_json::from_slice(index).map_err(|error| format!("{INDEX_NAME} is damaged: {error}"))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    // A name from the network becomes a part of a URL and of a path here.
    match names.iter().find(|name| !is_plain(name)) {
        Some(wrong) => Err(format!(
            "{INDEX_NAME} names the file {wrong:?}, which is not beside it"
        )),
        None => Ok(names),
    }
}
