//! Single objects that belong to an owner: created once, JSON-patched under a test, deleted by UID. The cache is told what came of it.

use std::fmt::Debug;

use kube::{
    Resource, ResourceExt as _,
    api::{DeleteParams, Patch, Preconditions},
    core::NamespaceResourceScope,
};
use llamero_core::Key;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    EffectError, Writer,
    writer::{patch_params, post_params},
};
use crate::{build::parts::namespace_of, watch::Scoped};

/// Kinds that are handled so.
pub(super) trait Owned:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Owned for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// Forms in which a cache keeps objects.
pub(super) trait Kept: Clone + PartialEq + Send + 'static {}

impl<T: Clone + PartialEq + Send + 'static> Kept for T {}

/// Whether the controlling owner has this UID.
pub(super) fn is_controlled_by(object: &impl Resource, uid: &str) -> bool {
    object
        .owner_references()
        .iter()
        .any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

/// Creates an object. That one of this name and owner exists already is success: the answer to an earlier request was lost, or the cache is
/// behind. The object as it is there; its UID is the proof that it exists.
pub(super) async fn create<K: Owned, T: Kept>(
    writer: &Writer,
    cache: &Scoped<K, T>,
    wanted: &K,
    owner_uid: &str,
) -> Result<K, EffectError> {
    let api = writer.api::<K>(&namespace_of(wanted));
    let there = match writer.send(api.create(&post_params(), wanted)).await {
        Err(error) if already_exists(&error) => {
            let name = wanted.name_any();
            let found = writer.send(api.get(&name)).await?;
            if !is_controlled_by(&found, owner_uid) {
                let kind = kind_of::<K>();
                return Err(EffectError::Foreign { kind, name });
            }
            found
        }
        other => other?,
    };
    cache.wrote(there.clone());
    Ok(there)
}

/// JSON-patches an object. A `test` that does not hold drops the step: the object was written, or is another one by now.
pub(super) async fn patch_json<K: Owned, T: Kept>(
    writer: &Writer,
    cache: &Scoped<K, T>,
    key: &Key,
    patch: json_patch::Patch,
) -> Result<(), EffectError> {
    let api = writer.api::<K>(&key.namespace);
    let patch = Patch::Json::<K>(patch);
    match writer.send(api.patch(&key.name, &patch_params(), &patch)).await {
        Ok(written) => {
            cache.wrote(written);
            Ok(())
        }
        Err(EffectError::Api(kube::Error::Api(status))) if test_failed(&status) => {
            Err(EffectError::Dropped(status.message))
        }
        Err(error) => Err(error),
    }
}

/// Deletes this very object; `how` says all but the precondition. That it is gone is success.
pub(super) async fn delete<K: Owned, T: Kept>(
    writer: &Writer,
    cache: &Scoped<K, T>,
    key: &Key,
    uid: &str,
    how: DeleteParams,
) -> Result<(), EffectError> {
    let api = writer.api::<K>(&key.namespace);
    let this_one = how.preconditions(Preconditions {
        uid: Some(uid.to_owned()),
        resource_version: None,
    });
    match writer.send(api.delete(&key.name, &this_one)).await {
        Ok(answer) => {
            if let Some(deleted) = answer.left() {
                cache.wrote(deleted);
            }
            Ok(())
        }
        // Not found, or another object of that name: what was to be deleted is gone.
        Err(EffectError::Api(kube::Error::Api(status))) if status.is_not_found() || status.is_conflict() => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Name of the kind, for people.
pub(super) fn kind_of<K>() -> &'static str {
    std::any::type_name::<K>().rsplit("::").next().unwrap_or("object")
}

fn already_exists(error: &EffectError) -> bool {
    matches!(error, EffectError::Api(kube::Error::Api(status)) if status.is_already_exists())
}

/// The API server answers so when a `test` of a JSON patch does not hold.
fn test_failed(status: &kube::core::Status) -> bool {
    status.code == 422
        && status.reason == "Invalid"
        && status.details.as_ref().is_none_or(|d| d.causes.is_empty())
}
