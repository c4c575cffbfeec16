//! LlamaGroups, and the scale of a LlamaDeployment.

use k8s_openapi::{
    api::{
        autoscaling::v1::{Scale, ScaleSpec},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use llamero_api::{LlamaDeployment, LlamaGroup, group::LlamaGroupSpec, labels};
use llamero_core::{Key, plan::Confirm};

use super::{EffectError, Index, Writer, owned, writer::post_params};
use crate::{build::parts, observe::pods::phase};

/// Creates a group; that it exists already with the same owner is success.
pub(super) async fn create_group(
    writer: &Writer,
    index: &Index,
    deployment: &Key,
    uid: &str,
    name: &str,
    spec: &LlamaGroupSpec,
) -> Result<(), EffectError> {
    let owner = index.deployment(deployment)?;
    if owner.uid().as_deref() != Some(uid) {
        return Err(EffectError::Dropped(format!(
            "LlamaDeployment {deployment} is another one now"
        )));
    }
    let mut group_labels = labels::common(&deployment.name, labels::WORKER_APP);
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
    owned::create(writer, &writer.caches().groups, &group, uid)
        .await
        .map(drop)
}

/// Replaces a group's specification, fenced by its resource version, once what `confirm` wants is sure.
pub(super) async fn write_group(
    writer: &Writer,
    index: &Index,
    group: &Key,
    resource_version: &str,
    spec: &LlamaGroupSpec,
    confirm: &Confirm,
) -> Result<(), EffectError> {
    let seen = index.group(group)?;
    self::confirm(writer, group, confirm).await?;
    let patch = changes(&seen.spec, spec, resource_version)?;
    owned::patch_json(writer, &writer.caches().groups, group, patch).await?;
    writer.proofs().forget(&confirm.present);
    Ok(())
}

/// The answers to this process's own creations prove that pods exist. What they do not prove, after a restart or of pods that are gone, an
/// uncached list must show.
async fn confirm(writer: &Writer, group: &Key, confirm: &Confirm) -> Result<(), EffectError> {
    if confirm.gone.is_empty() && writer.proofs().all(&confirm.present) {
        return Ok(());
    }
    let pods = writer.api::<Pod>(&group.namespace);
    let ours = ListParams::default().labels(&format!("{}={}", labels::GROUP_NAME, group.name));
    let list = writer.send(pods.list(&ours)).await?;
    match contradiction(confirm, &list.items) {
        None => Ok(()),
        Some(surprise) => {
            // The caches are behind what the list shows: wait for them.
            for pod in list.items {
                writer.caches().pods.wrote(pod);
            }
            Err(EffectError::Dropped(surprise))
        }
    }
}

/// What is to be changed in a group, on the condition that it is still of this version. Only fields that differ are named, so that a field
/// which a newer schema has and this operator does not know stays.
fn changes(
    before: &LlamaGroupSpec,
    after: &LlamaGroupSpec,
    resource_version: &str,
) -> Result<json_patch::Patch, EffectError> {
    let json = |spec: &LlamaGroupSpec| {
        serde_json::to_value(spec).map_err(|error| EffectError::Dropped(format!("no JSON form: {error}")))
    };
    let whole = |spec| serde_json::json!({ "spec": spec });
    let mut operations = vec![json_patch::PatchOperation::Test(json_patch::TestOperation {
        path: pointer(&["metadata", "resourceVersion"]),
        value: resource_version.into(),
    })];
    operations.extend(json_patch::diff(&whole(json(before)?), &whole(json(after)?)).0);
    Ok(json_patch::Patch(operations))
}

fn pointer(path: &[&str]) -> json_patch::jsonptr::PointerBuf {
    json_patch::jsonptr::PointerBuf::from_tokens(path.iter().copied())
}

/// Writes `spec.replicas` through the scale subresource, of this very object and version.
pub(super) async fn scale(
    writer: &Writer,
    deployment: &Key,
    uid: &str,
    resource_version: &str,
    replicas: i32,
) -> Result<(), EffectError> {
    let wanted = Scale {
        metadata: ObjectMeta {
            name: Some(deployment.name.clone()),
            namespace: Some(deployment.namespace.clone()),
            uid: Some(uid.to_owned()),
            resource_version: Some(resource_version.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(ScaleSpec {
            replicas: Some(replicas),
        }),
        status: None,
    };
    let api = writer.api::<LlamaDeployment>(&deployment.namespace);
    let written = writer
        .send(api.replace_scale(&deployment.name, &post_params(), &wanted))
        .await?;
    writer.caches().deployments.note(
        &deployment.namespace,
        written.metadata.resource_version.as_deref(),
    );
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
    let how = DeleteParams::background();
    owned::delete(writer, &writer.caches().groups, group, uid, how).await
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
    fn a_write_names_only_what_differs_and_the_version_it_was_made_from() {
        let group = |change: fn(&mut serde_json::Value)| -> LlamaGroupSpec {
            let mut spec = json!({
                "deployment": "d", "revision": "r", "generation": 1,
                "members": [{"index": 0, "attempt": 0, "node": "a"}, {"index": 1, "attempt": 0, "node": "b"}],
                "template": {"modelName": "m", "source": {}, "maxContextLength": 1, "tensor": 1,
                    "pipeline": 1, "ranksPerPod": 1, "kvBytesPerRank": 1, "weightBytesPerRank": 1, "stallTimeout": "1s"}});
            change(&mut spec);
            serde_json::from_value(spec).unwrap()
        };
        let patch = changes(
            &group(|_| {}),
            &group(|s| {
                s["generation"] = json!(2);
                s["members"][1]["podUID"] = json!("u1");
            }),
            "7",
        )
        .unwrap();
        assert_eq!(
            serde_json::to_value(&patch).unwrap(),
            json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
                {"op": "replace", "path": "/spec/generation", "value": 2},
                {"op": "add", "path": "/spec/members/1/podUID", "value": "u1"},
            ])
        );
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
