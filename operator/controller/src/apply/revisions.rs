//! Kept snapshots, in `ControllerRevision`s. What one holds never changes; only its number does, when it becomes the newest again.

use k8s_openapi::{
    api::apps::v1::ControllerRevision, apimachinery::pkg::apis::meta::v1::ObjectMeta,
    apimachinery::pkg::runtime::RawExtension,
};
use kube::{ResourceExt as _, api::DeleteParams};
use llamero_api::{LlamaDeployment, labels};
use llamero_core::{Action, Key};
use serde_json::json;

use super::{EffectError, Writer, owned};
use crate::build::parts;

/// Creates a revision; that it exists already with the same owner is success.
pub(super) async fn create(
    writer: &Writer,
    owner: &LlamaDeployment,
    action: &Action,
) -> Result<(), EffectError> {
    let Action::CreateRevision {
        deployment,
        deployment_uid,
        name,
        digest,
        number,
        template,
    } = action
    else {
        return Err(EffectError::Dropped("not a revision".to_owned()));
    };
    if owner.uid().as_ref() != Some(deployment_uid) {
        return Err(EffectError::Dropped(format!(
            "LlamaDeployment {deployment} is another one now"
        )));
    }
    let mut own_labels = labels::common(&deployment.name, labels::WORKER_APP);
    own_labels.insert(labels::REVISION.to_owned(), digest.clone());
    let revision = ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(deployment.namespace.clone()),
            labels: Some(own_labels),
            owner_references: parts::owner_reference(owner).map(|reference| vec![reference]),
            ..ObjectMeta::default()
        },
        revision: *number,
        data: Some(RawExtension(json!({ "template": template }))),
    };
    owned::create(writer, &writer.caches().revisions, &revision, deployment_uid)
        .await
        .map(drop)
}

/// Gives this very revision another number.
pub(super) async fn renumber(
    writer: &Writer,
    deployment: &Key,
    name: &str,
    uid: &str,
    number: i64,
) -> Result<(), EffectError> {
    let operations = json!([
        {"op": "test", "path": "/metadata/uid", "value": uid},
        {"op": "replace", "path": "/revision", "value": number},
    ]);
    let patch = serde_json::from_value(operations)
        .map_err(|error| EffectError::Dropped(format!("no JSON form: {error}")))?;
    let key = deployment.sibling(name);
    owned::patch_json(writer, &writer.caches().revisions, &key, patch).await
}

/// Deletes this very revision.
pub(super) async fn delete(
    writer: &Writer,
    deployment: &Key,
    name: &str,
    uid: &str,
) -> Result<(), EffectError> {
    let (key, how) = (deployment.sibling(name), DeleteParams::background());
    owned::delete(writer, &writer.caches().revisions, &key, uid, how).await
}
