//! Lists, a page at a time, so that a large cluster is never held twice.

use std::fmt::Debug;

use anyhow::Result;
use kube::{Api, api::ListParams};
use serde::de::DeserializeOwned;

use super::say;

/// Objects of a page.
const PAGE: u32 = 500;

/// Hands every object to `each`.
///
/// # Errors
/// What the API server refuses, in words.
pub async fn each<K>(api: &Api<K>, what: &str, mut each: impl FnMut(K)) -> Result<()>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api
            .list(&params)
            .await
            .map_err(|error| say::refused(error, "list", what))?;
        page.items.into_iter().for_each(&mut each);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(()),
        }
    }
}

/// All objects.
///
/// # Errors
/// As [`each`].
pub async fn all<K>(api: &Api<K>, what: &str) -> Result<Vec<K>>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut objects = Vec::new();
    each(api, what, |object| objects.push(object)).await?;
    Ok(objects)
}
