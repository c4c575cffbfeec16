//! Objects that are server-side applied.

use std::fmt::Debug;

use kube::{Resource, ResourceExt as _, api::Patch, core::NamespaceResourceScope};
use llamero_core::{Key, children::ManagedObject};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    EffectError, Writer,
    owned::{is_controlled_by, kind_of},
    writer::apply_params,
};

/// Applies an object that belongs to the owner with this UID.
pub(super) async fn apply(
    writer: &Writer,
    owner: &Key,
    owner_uid: &str,
    object: &ManagedObject,
) -> Result<(), EffectError> {
    match object {
        ManagedObject::Service(wanted) => {
            let written = apply_owned(writer, owner, owner_uid, wanted.as_ref()).await?;
            writer.caches().services.wrote(written);
        }
        ManagedObject::Policy(wanted) => {
            let written = apply_owned(writer, owner, owner_uid, wanted.as_ref()).await?;
            writer.caches().policies.wrote(written);
        }
        ManagedObject::Budget(wanted) => {
            let written = apply_owned(writer, owner, owner_uid, wanted.as_ref()).await?;
            writer.caches().budgets.wrote(written);
        }
    }
    Ok(())
}

/// Server-side apply of an object that nobody else may own.
async fn apply_owned<K>(writer: &Writer, owner: &Key, owner_uid: &str, wanted: &K) -> Result<K, EffectError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Serialize
        + DeserializeOwned
        + Debug,
{
    let name = wanted.name_any();
    if !is_controlled_by(wanted, owner_uid) {
        return Err(EffectError::Dropped(format!(
            "the owner of {name} is another one now"
        )));
    }
    let api = writer.api::<K>(&owner.namespace);
    if writer
        .send(api.get_opt(&name))
        .await?
        .is_some_and(|found| !is_controlled_by(&found, owner_uid))
    {
        let kind = kind_of::<K>();
        return Err(EffectError::Foreign { kind, name });
    }
    writer
        .send(api.patch(&name, &apply_params(), &Patch::Apply(wanted)))
        .await
}
