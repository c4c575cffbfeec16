//! Create, bind and delete pods. Never server-side applied: an apply from a stale cache would bring a deleted pod back.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt as _,
    api::{DeleteParams, PatchParams, Preconditions},
};
use llamero_api::labels::FIELD_MANAGER;
use llamero_core::{Key, plan::PodRef};

use super::{
    EffectError, View, Writer,
    objects::{already_exists, gone_is_success, is_controlled_by},
    writer::post_params,
};
use crate::{
    build::{bind, inspect, pod},
    watch::Written,
};

/// Creates the gated pod of a member.
pub(super) async fn create_member(
    writer: &Writer,
    view: &View,
    group: &Key,
    name: &str,
    index: i32,
    attempt: i32,
) -> Result<(), EffectError> {
    let owner = view.group(group)?;
    let mut wanted = pod::member_pod(owner, index, attempt);
    wanted.metadata.name = Some(name.to_owned());
    create(
        writer,
        &group.namespace,
        &wanted,
        &owner.uid().unwrap_or_default(),
    )
    .await
}

/// Creates the pod that reads a checkpoint's headers.
pub(super) async fn create_inspect(
    writer: &Writer,
    view: &View,
    deployment: &Key,
    name: &str,
    key: &str,
    default_image: &str,
) -> Result<(), EffectError> {
    let owner = view.deployment(deployment)?;
    let mut wanted = inspect::inspect_pod(owner, key, default_image);
    wanted.metadata.name = Some(name.to_owned());
    create(
        writer,
        &deployment.namespace,
        &wanted,
        &owner.uid().unwrap_or_default(),
    )
    .await
}

/// That a pod of this name and owner exists already is success: the answer to an earlier request was lost, or the cache is behind.
async fn create(writer: &Writer, namespace: &str, wanted: &Pod, owner_uid: &str) -> Result<(), EffectError> {
    let api = writer.api::<Pod>(namespace);
    match writer.send(api.create(&post_params(), wanted)).await {
        Ok(created) => {
            writer.note(|written| Written::note(&mut written.pods, &created));
            Ok(())
        }
        Err(error) if already_exists(&error) => {
            let name = wanted.name_any();
            let found = writer.send(api.get(&name)).await?;
            if is_controlled_by(&found, owner_uid) {
                writer.note(|written| Written::note(&mut written.pods, &found));
                Ok(())
            } else {
                Err(EffectError::Foreign { kind: "Pod", name })
            }
        }
        Err(error) => Err(error),
    }
}

/// Pins a gated pod to its node and lets it go. That its gate is gone already is success.
pub(super) async fn ungate(
    writer: &Writer,
    view: &View,
    pod: &PodRef,
    node: &str,
) -> Result<(), EffectError> {
    let patch = match bind::bind_patch(view.pod(&pod.key)?, &pod.uid, node) {
        Ok(patch) => patch,
        Err(bind::BindError::NotGated) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let api = writer.api::<Pod>(&pod.key.namespace);
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match writer.send(api.patch(&pod.key.name, &parameters, &patch)).await {
        Ok(written) => {
            writer.note(|slots| Written::note(&mut slots.pods, &written));
            Ok(())
        }
        // A `test` of the patch failed.
        Err(EffectError::Api(kube::Error::Api(status))) if status.is_invalid() => {
            Err(EffectError::Dropped(status.message))
        }
        Err(error) => Err(error),
    }
}

/// Deletes this very pod.
pub(super) async fn delete(
    writer: &Writer,
    pod: &PodRef,
    grace_seconds: Option<i64>,
) -> Result<(), EffectError> {
    let api = writer.api::<Pod>(&pod.key.namespace);
    let parameters = DeleteParams {
        grace_period_seconds: grace_seconds.and_then(|seconds| u32::try_from(seconds).ok()),
        preconditions: Some(Preconditions {
            uid: Some(pod.uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    gone_is_success(
        writer
            .send(api.delete(&pod.key.name, &parameters))
            .await
            .map(|answer| {
                if let Some(deleted) = answer.left() {
                    writer.note(|written| Written::note(&mut written.pods, &deleted));
                }
            }),
    )
}
