//! LlamaGroups, Services and disruption budgets.

use std::fmt::Debug;

use k8s_openapi::{
    api::{
        core::v1::{Pod, Service},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, Preconditions},
    core::NamespaceResourceScope,
};
use llamero_api::{LlamaGroup, group::LlamaGroupSpec, labels};
use llamero_core::{Key, plan::Confirm};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    EffectError, View, Writer,
    writer::{apply_params, post_params},
};
use crate::{
    build::{parts, service},
    observe::pods::phase,
    watch::Written,
};

/// Whether the controlling owner has this UID.
pub(super) fn is_controlled_by(object: &impl Resource, uid: &str) -> bool {
    object
        .owner_references()
        .iter()
        .any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

/// Creates a group; that it exists already with the same owner is success.
pub(super) async fn create_group(
    writer: &Writer,
    view: &View,
    deployment: &Key,
    uid: &str,
    name: &str,
    spec: &LlamaGroupSpec,
) -> Result<(), EffectError> {
    let owner = view.deployment(deployment)?;
    if owner.uid().as_deref() != Some(uid) {
        return Err(EffectError::Dropped(format!(
            "LlamaDeployment {deployment} is another one now"
        )));
    }
    let mut group_labels = parts::common_labels(&deployment.name, labels::WORKER_APP);
    group_labels.insert(labels::REVISION.to_owned(), spec.revision.clone());
    let group = LlamaGroup {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(deployment.namespace.clone()),
            labels: Some(group_labels),
            owner_references: parts::owner_reference(owner.as_ref()).map(|reference| vec![reference]),
            ..ObjectMeta::default()
        },
        spec: spec.clone(),
        status: None,
    };
    let api = writer.api::<LlamaGroup>(&deployment.namespace);
    match writer.send(api.create(&post_params(), &group)).await {
        Ok(created) => {
            writer.note(|written| Written::note(&mut written.groups, &created));
            Ok(())
        }
        Err(error) if already_exists(&error) => {
            let found = writer.send(api.get(name)).await?;
            if is_controlled_by(&found, uid) {
                writer.note(|written| Written::note(&mut written.groups, &found));
                Ok(())
            } else {
                Err(EffectError::Foreign {
                    kind: "LlamaGroup",
                    name: name.to_owned(),
                })
            }
        }
        Err(error) => Err(error),
    }
}

/// Replaces a group's specification, fenced by its resource version, after an uncached list has shown what `confirm` wants.
pub(super) async fn write_group(
    writer: &Writer,
    view: &View,
    group: &Key,
    resource_version: &str,
    spec: &LlamaGroupSpec,
    confirm: &Confirm,
) -> Result<(), EffectError> {
    let seen = view.group(group)?;
    if !confirm.present.is_empty() || !confirm.gone.is_empty() {
        let pods = writer.api::<Pod>(&group.namespace);
        let ours = ListParams::default().labels(&format!("{}={}", labels::GROUP_NAME, group.name));
        let list = writer.send(pods.list(&ours)).await?;
        if let Some(surprise) = contradiction(confirm, &list.items) {
            // The caches are behind what the list shows: wait for them.
            for pod in &list.items {
                writer.note(|written| Written::note(&mut written.pods, pod));
            }
            return Err(EffectError::Dropped(surprise));
        }
    }
    let mut next = LlamaGroup {
        metadata: seen.metadata.clone(),
        spec: spec.clone(),
        status: None,
    };
    next.metadata.resource_version = Some(resource_version.to_owned());
    let api = writer.api::<LlamaGroup>(&group.namespace);
    let written = writer
        .send(api.replace(&group.name, &post_params(), &next))
        .await?;
    writer.note(|slots| Written::note(&mut slots.groups, &written));
    Ok(())
}

/// What an uncached list shows otherwise than `confirm` wants it.
fn contradiction(confirm: &Confirm, pods: &[Pod]) -> Option<String> {
    let alive = |uid: &String| {
        pods.iter().any(|pod| {
            pod.metadata.uid.as_ref() == Some(uid)
                && pod.metadata.deletion_timestamp.is_none()
                && !phase(pod).ended()
        })
    };
    let missing = confirm
        .present
        .iter()
        .find(|uid| !alive(uid))
        .map(|uid| format!("pod with uid {uid} is not there"));
    missing.or_else(|| {
        confirm
            .gone
            .iter()
            .find(|uid| alive(uid))
            .map(|uid| format!("pod with uid {uid} is still there"))
    })
}

/// Deletes a group; its pods follow by their owner references.
pub(super) async fn delete_group(writer: &Writer, group: &Key, uid: &str) -> Result<(), EffectError> {
    let api = writer.api::<LlamaGroup>(&group.namespace);
    let parameters = DeleteParams::background().preconditions(Preconditions {
        uid: Some(uid.to_owned()),
        resource_version: None,
    });
    gone_is_success(
        writer
            .send(api.delete(&group.name, &parameters))
            .await
            .map(|answer| {
                if let Some(deleted) = answer.left() {
                    writer.note(|written| Written::note(&mut written.groups, &deleted));
                }
            }),
    )
}

/// Not found, or another object of that name: what was to be deleted is gone.
pub(super) fn gone_is_success(result: Result<(), EffectError>) -> Result<(), EffectError> {
    match result {
        Err(EffectError::Api(kube::Error::Api(status))) if status.is_not_found() || status.is_conflict() => {
            Ok(())
        }
        other => other,
    }
}

pub(super) fn already_exists(error: &EffectError) -> bool {
    matches!(error, EffectError::Api(kube::Error::Api(status)) if status.is_already_exists())
}

/// Applies the Service in front of a deployment's leaders.
pub(super) async fn apply_service(
    writer: &Writer,
    view: &View,
    deployment: &Key,
    uid: &str,
) -> Result<(), EffectError> {
    let wanted = service::leader_service(view.deployment(deployment)?);
    let written = apply_owned::<Service>(writer, deployment, uid, &wanted).await?;
    writer.note(|slots| Written::note(&mut slots.services, &written));
    Ok(())
}

/// Applies the disruption budget of a group.
pub(super) async fn apply_budget(
    writer: &Writer,
    view: &View,
    group: &Key,
    uid: &str,
    min_available: i32,
) -> Result<(), EffectError> {
    let wanted = service::disruption_budget(view.group(group)?, min_available);
    let written = apply_owned::<PodDisruptionBudget>(writer, group, uid, &wanted).await?;
    writer.note(|slots| Written::note(&mut slots.budgets, &written));
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
        let kind = std::any::type_name::<K>().rsplit("::").next().unwrap_or("object");
        return Err(EffectError::Foreign { kind, name });
    }
    writer
        .send(api.patch(&name, &apply_params(), &Patch::Apply(wanted)))
        .await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, deleted: bool, phase: &str) -> Pod {
        let deletion = deleted.then_some("2026-01-01T00:00:00Z");
        let metadata = json!({"name": uid, "uid": uid, "deletionTimestamp": deletion});
        serde_json::from_value(json!({"metadata": metadata, "status": {"phase": phase}})).unwrap()
    }

    #[test]
    fn a_list_confirms_what_lives_and_what_is_gone() {
        let pods = [
            pod("a", false, "Pending"),
            pod("b", true, "Running"),
            pod("c", false, "Failed"),
        ];
        let confirm = |present: &[&str], gone: &[&str]| {
            let own = |list: &[&str]| list.iter().map(|uid| (*uid).to_owned()).collect();
            contradiction(
                &Confirm {
                    present: own(present),
                    gone: own(gone),
                },
                &pods,
            )
        };
        assert_eq!(confirm(&["a"], &["b", "c", "d"]), None);
        assert!(confirm(&["b"], &[]).is_some());
        assert!(confirm(&["c"], &[]).is_some());
        assert!(confirm(&["d"], &[]).is_some());
        assert!(confirm(&[], &["a"]).is_some());
    }
}
