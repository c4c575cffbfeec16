//! A Hugging Face Hub, or a server that speaks the same.

use reqwest::Url;

use crate::client::Http;
use crate::{Access, FetchError, Listing, Patience};

/// A Hub and how it is spoken to.
#[derive(Debug, Clone)]
pub struct Hub {
    pub(super) http: Http,
}

impl Hub {
    /// The Hub at `endpoint`, as the owner of `token`, for somebody at a terminal.
    ///
    /// # Errors
    /// [`FetchError::Endpoint`], [`FetchError::Token`].
    pub fn new(endpoint: &str, token: Option<&str>, patience: Patience) -> Result<Self, FetchError> {
        let access = Access {
            token: token.map(str::to_owned),
            patience,
            ..Access::default()
        };
        Self::with(endpoint, &access)
    }

    /// The Hub at `endpoint`.
    ///
    /// # Errors
    /// [`FetchError::Endpoint`], [`FetchError::Token`], [`FetchError::Bundle`].
    pub fn with(endpoint: &str, access: &Access) -> Result<Self, FetchError> {
        let http = Http::with(endpoint, access)?.ok_or_else(|| FetchError::Endpoint {
            endpoint: endpoint.to_owned(),
            audience: access.audience,
        })?;
        Ok(Self { http })
    }

    /// Base URL without a slash at its end.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.http.base()
    }

    /// `{endpoint}/{repository}/resolve/{commit}/{path}`.
    pub(super) fn file_url(&self, listing: &Listing, path: &str) -> Url {
        let commit = listing.commit.as_deref().unwrap_or("main");
        let repository = listing.repository.split('/');
        self.http
            .url(repository.chain(["resolve", commit]).chain(path.split('/')))
    }
}
