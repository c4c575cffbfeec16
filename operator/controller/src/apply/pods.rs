//! Create, bind and delete pods. Never server-side applied: an apply from a stale cache would bring a deleted pod back.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt as _,
    api::{DeleteParams, Preconditions},
};
use llamero_core::{Key, observed::Settings, plan::PodRef};

use super::{
    EffectError, Index, Writer,
    objects::{already_exists, gone_is_success, is_controlled_by, test_failed},
    writer::{patch_params, post_params},
};
use crate::build::{bind, inspect, pod};

/// Creates the gated pod of a member.
pub(super) async fn create_member(
    writer: &Writer,
    objects: &Index,
    group: &Key,
    name: &str,
    index: i32,
    attempt: i32,
) -> Result<(), EffectError> {
    let owner = objects.group(group)?;
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
    index: &Index,
    deployment: &Key,
    name: &str,
    key: &str,
    settings: &Settings,
) -> Result<(), EffectError> {
    let owner = index.deployment(deployment)?;
    let mut wanted = inspect::inspect_pod(owner, key, settings);
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
            writer.caches().pods.wrote(created);
            Ok(())
        }
        Err(error) if already_exists(&error) => {
            let name = wanted.name_any();
            let found = writer.send(api.get(&name)).await?;
            if is_controlled_by(&found, owner_uid) {
                writer.caches().pods.wrote(found);
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
    index: &Index,
    pod: &PodRef,
    node: &str,
) -> Result<(), EffectError> {
    let patch = match bind::bind_patch(index.pod(&pod.key)?, &pod.uid, node) {
        Ok(patch) => patch,
        Err(bind::BindError::NotGated) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let api = writer.api::<Pod>(&pod.key.namespace);
    match writer
        .send(api.patch(&pod.key.name, &patch_params(), &patch))
        .await
    {
        Ok(written) => {
            writer.caches().pods.wrote(written);
            Ok(())
        }
        // A `test` of the patch failed.
        Err(EffectError::Api(kube::Error::Api(status))) if test_failed(&status) => {
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
                    writer.caches().pods.wrote(deleted);
                }
            }),
    )
}
