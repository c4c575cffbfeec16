//! Kept snapshots, in `ControllerRevision`s. What one holds never changes; only its number does, when it becomes the newest again.

use k8s_openapi::{
    api::apps::v1::ControllerRevision, apimachinery::pkg::apis::meta::v1::ObjectMeta,
    apimachinery::pkg::runtime::RawExtension,
};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, Patch, Preconditions},
};
use llamero_api::{LlamaDeployment, labels};
use llamero_core::{Action, Key};
use serde_json::json;

use super::{
    EffectError, Writer,
    objects::{already_exists, gone_is_success, is_controlled_by, test_failed},
    writer::{patch_params, post_params},
};
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
    let api = writer.api::<ControllerRevision>(&deployment.namespace);
    match writer.send(api.create(&post_params(), &revision)).await {
        Ok(created) => {
            writer.caches().revisions.wrote(created);
            Ok(())
        }
        Err(error) if already_exists(&error) => {
            let found = writer.send(api.get(name)).await?;
            if is_controlled_by(&found, deployment_uid) {
                writer.caches().revisions.wrote(found);
                Ok(())
            } else {
                Err(EffectError::Foreign {
                    kind: "ControllerRevision",
                    name: name.clone(),
                })
            }
        }
        Err(error) => Err(error),
    }
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
    let patch: json_patch::Patch = serde_json::from_value(operations)
        .map_err(|error| EffectError::Dropped(format!("no JSON form: {error}")))?;
    let api = writer.api::<ControllerRevision>(&deployment.namespace);
    match writer
        .send(api.patch(name, &patch_params(), &Patch::Json::<ControllerRevision>(patch)))
        .await
    {
        Ok(written) => {
            writer.caches().revisions.wrote(written);
            Ok(())
        }
        Err(EffectError::Api(kube::Error::Api(status))) if test_failed(&status) => {
            Err(EffectError::Dropped(status.message))
        }
        Err(error) => Err(error),
    }
}

/// Deletes this very revision.
pub(super) async fn delete(
    writer: &Writer,
    deployment: &Key,
    name: &str,
    uid: &str,
) -> Result<(), EffectError> {
    let api = writer.api::<ControllerRevision>(&deployment.namespace);
    let parameters = DeleteParams::background().preconditions(Preconditions {
        uid: Some(uid.to_owned()),
        resource_version: None,
    });
    gone_is_success(writer.send(api.delete(name, &parameters)).await.map(drop))
}
