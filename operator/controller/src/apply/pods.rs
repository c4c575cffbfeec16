//! Create, bind and delete pods. Never server-side applied: an apply from a stale cache would bring a deleted pod back.

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt as _, api::DeleteParams};
use llamero_api::{LlamaDeployment, group::Transport};
use llamero_core::{Key, observed::Settings, plan::PodRef};

use super::{EffectError, Index, Writer, owned};
use crate::build::{bind, enrol, parts, placeholder, pod};

/// Creates the gated pod of a member; the answer proves that it exists.
pub(super) async fn create_member(
    (writer, settings): (&Writer, &Settings),
    objects: &Index,
    group: &Key,
    name: &str,
    index: i32,
    attempt: i32,
) -> Result<(), EffectError> {
    let owner = objects.group(group)?;
    let mut wanted = pod::member_pod(owner, index, attempt);
    if owner.spec.template.transport == Transport::Mutual {
        let enrolment = settings.enrolment.as_ref();
        let enrolment = enrolment.ok_or_else(|| no_certificate(name, settings))?;
        enrol::let_enrol(&mut wanted, enrolment, &owner.spec.template.worker);
    }
    wanted.metadata.name = Some(name.to_owned());
    let there = create(writer, wanted, &group.namespace, &owner.uid().unwrap_or_default()).await?;
    if let Some(uid) = there
        .metadata
        .uid
        .filter(|_| there.metadata.deletion_timestamp.is_none())
    {
        writer.proofs().exists(uid);
    }
    Ok(())
}

/// Creates the pod that holds the room of a member: its name, the member, and its longest life in seconds.
pub(super) async fn create_placeholder(
    (writer, settings): (&Writer, &Settings),
    objects: &Index,
    group: &Key,
    (name, index, most_seconds): (&str, i32, i64),
) -> Result<(), EffectError> {
    let owner = objects.group(group)?;
    let mut wanted = placeholder::placeholder_pod(owner, index, &settings.placeholder_image, most_seconds);
    wanted.metadata.name = Some(name.to_owned());
    let uid = owner.uid().unwrap_or_default();
    create(writer, wanted, &group.namespace, &uid).await.map(drop)
}

/// Why the pod would get no certificate.
fn no_certificate(pod: &str, settings: &Settings) -> EffectError {
    match &settings.unenrollable {
        Some(why) => {
            let why = format!("no certificate can be given out: {why}");
            EffectError::NoAuthority(pod.to_owned(), why)
        }
        None => EffectError::Dropped(format!("the authority for the pod {pod} is not read yet")),
    }
}

/// Creates a pod that reads a checkpoint's headers.
pub(super) async fn create_inspect(
    writer: &Writer,
    owner: &LlamaDeployment,
    name: &str,
    mut wanted: Pod,
) -> Result<(), EffectError> {
    wanted.metadata.name = Some(name.to_owned());
    let (namespace, uid) = (parts::namespace_of(owner), owner.uid().unwrap_or_default());
    create(writer, wanted, &namespace, &uid).await.map(drop)
}

async fn create(writer: &Writer, mut wanted: Pod, namespace: &str, owner: &str) -> Result<Pod, EffectError> {
    wanted.metadata.namespace = Some(namespace.to_owned());
    owned::create(writer, &writer.caches().pods, &wanted, owner).await
}

/// Pins a gated pod to its node and lets it go. That its gate is gone already is success.
pub(super) async fn ungate(
    writer: &Writer,
    index: &Index,
    pod: &PodRef,
    node: &str,
) -> Result<(), EffectError> {
    let Some(gated) = index.gated(&pod.key) else {
        return Ok(());
    };
    match bind::bind_patch(gated, &pod.uid, node) {
        Ok(patch) => owned::patch_json(writer, &writer.caches().pods, &pod.key, patch).await,
        Err(bind::BindError::NotGated) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Deletes this very pod.
pub(super) async fn delete(
    writer: &Writer,
    pod: &PodRef,
    grace_seconds: Option<i64>,
) -> Result<(), EffectError> {
    let how = DeleteParams {
        grace_period_seconds: grace_seconds.and_then(|seconds| u32::try_from(seconds).ok()),
        ..DeleteParams::default()
    };
    writer.proofs().forget([&pod.uid]);
    owned::delete(writer, &writer.caches().pods, &pod.key, &pod.uid, how).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::error::Remedy;

    #[test]
    fn a_pod_without_a_certificate_is_refused_with_a_sentence() {
        let mut settings = Settings::default();
        let refused = |settings: &Settings| no_certificate("d-0-0-0", settings);
        assert_eq!(refused(&settings).remedy(), Remedy::Decide, "it only began");
        settings.unenrollable = Some("tls.crt is not valid any more".to_owned());
        let error = refused(&settings);
        assert_eq!(error.remedy(), Remedy::User);
        assert_eq!(
            error.to_string(),
            "links of the pod d-0-0-0 are to be authenticated, and no certificate can be given out: tls.crt is not valid any more"
        );
    }
}
