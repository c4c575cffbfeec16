//! What worker and inspect pods share.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, HostPathVolumeSource, ImageVolumeSource, PersistentVolumeClaimVolumeSource,
        PodSecurityContext, PodSpec, SeccompProfile, SecurityContext, Volume, VolumeMount,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Resource, ResourceExt as _};
use llamero_api::deployment::{ExtraMount, ExtraVolume, Source, Worker};

use super::remote;

/// Name of a worker's container.
pub const WORKER: &str = "worker";
/// Name of the container that reads a checkpoint's headers.
pub const INSPECT: &str = "inspect";
/// Name of the container that holds room.
pub const PLACEHOLDER: &str = "placeholder";
/// Our own containers, whatever others are injected beside them.
pub const CONTAINERS: [&str; 3] = [WORKER, INSPECT, PLACEHOLDER];
/// Where the source is mounted.
const MODEL_MOUNT: &str = "/model";
/// User and group of every container; the images have no other.
const USER: i64 = 65532;

/// Owner reference that makes `owner` the controller. Objects without a name or uid have none: they do not exist yet.
pub fn owner_reference<K: Resource<DynamicType = ()>>(owner: &K) -> Option<OwnerReference> {
    owner.controller_owner_ref(&()).map(|reference| OwnerReference {
        block_owner_deletion: Some(true),
        ..reference
    })
}

/// Pod-level security that the *restricted* Pod Security Standard asks for.
pub fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        }),
        ..PodSecurityContext::default()
    }
}

/// Container-level security that the *restricted* Pod Security Standard asks for, and a read-only root.
pub fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: None,
        }),
        ..SecurityContext::default()
    }
}

/// Where the checkpoint lies in the container. Not a `subPath`: the kubelet makes a missing one as an empty directory
/// inside the user's volume, and image volumes know it only in newer versions of Kubernetes.
pub fn model_dir(source: &Source) -> String {
    if source.is_remote() {
        return remote::MODEL_DIR.to_owned();
    }
    let claim = source.persistent_volume_claim.as_ref();
    let image = source.image.as_ref();
    let path = claim
        .and_then(|claim| claim.path.as_deref())
        .or_else(|| image.and_then(|image| image.path.as_deref()));
    match path {
        None | Some("" | ".") => MODEL_MOUNT.to_owned(),
        Some(path) => format!("{MODEL_MOUNT}/{path}"),
    }
}

/// The volume `model` and its mount at [`MODEL_MOUNT`], where the weights lie in one. Read-only at both ends, so that a ReadOnlyMany claim can
/// be attached to many nodes.
fn model_volume(source: &Source) -> Option<(Volume, VolumeMount)> {
    if source.is_remote() {
        return None;
    }
    let mut volume = Volume {
        name: "model".to_owned(),
        ..Volume::default()
    };
    if let Some(claim) = &source.persistent_volume_claim {
        volume.persistent_volume_claim = Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim.claim_name.clone(),
            read_only: Some(true),
        });
    } else if let Some(image) = &source.image {
        volume.image = Some(ImageVolumeSource {
            reference: Some(image.reference.clone()),
            pull_policy: image.pull_policy.map(|policy| policy.as_str().to_owned()),
        });
    } else if let Some(host) = &source.host_path {
        volume.host_path = Some(HostPathVolumeSource {
            path: host.path.clone(),
            type_: Some("Directory".to_owned()),
        });
    }
    let mount = VolumeMount {
        name: "model".to_owned(),
        mount_path: MODEL_MOUNT.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    Some((volume, mount))
}

/// A pod of one container with the user's settings for worker pods. `/tmp` is the only place that can be written.
pub fn pod_spec(worker: &Worker, source: &Source, mut container: Container) -> PodSpec {
    let (volumes, mounts): (Vec<_>, Vec<_>) = model_volume(source)
        .into_iter()
        .chain(remote::certificates(source))
        .unzip();
    let tmp = VolumeMount {
        name: "tmp".to_owned(),
        mount_path: "/tmp".to_owned(),
        ..VolumeMount::default()
    };
    let extra_mounts = worker.volume_mounts.iter().map(ExtraMount::to_mount);
    container.volume_mounts = Some(mounts.into_iter().chain([tmp]).chain(extra_mounts).collect());
    container.security_context = Some(container_security());
    container.image = worker.image.clone();
    container.image_pull_policy = worker.image_pull_policy.map(|policy| policy.as_str().to_owned());
    PodSpec {
        containers: vec![container],
        volumes: Some(
            volumes
                .into_iter()
                .chain([tmp_volume()])
                .chain(worker.volumes.iter().map(ExtraVolume::to_volume))
                .collect(),
        ),
        security_context: Some(pod_security()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        service_account_name: worker.service_account_name.clone(),
        image_pull_secrets: some_list(&worker.image_pull_secrets),
        node_selector: Some(worker.node_selector.clone()).filter(|map| !map.is_empty()),
        tolerations: some_list(&worker.tolerations),
        affinity: worker.affinity.clone(),
        priority_class_name: worker.priority_class_name.clone(),
        ..PodSpec::default()
    }
}

fn tmp_volume() -> Volume {
    Volume {
        name: "tmp".to_owned(),
        empty_dir: Some(Default::default()),
        ..Volume::default()
    }
}

/// Labels of a pod: the user's, and ours over them.
pub fn pod_labels(worker: &Worker, ours: BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    let mut all = worker.labels.clone();
    all.extend(ours);
    Some(all)
}

/// Annotations of a pod: the user's, over our hints for tools; not over what is ours alone.
pub fn pod_annotations(worker: &Worker, ours: BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    let mut all = ours;
    let theirs = worker
        .annotations
        .iter()
        .filter(|(key, _)| !key.starts_with("llamero.dev/"));
    all.extend(theirs.map(|(key, value)| (key.clone(), value.clone())));
    Some(all).filter(|all| !all.is_empty())
}

/// The list, or nothing when it is empty.
pub fn some_list<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    if list.is_empty() {
        None
    } else {
        Some(list.to_vec())
    }
}

/// Namespace of an object of a namespaced kind.
pub fn namespace_of(object: &impl Resource) -> String {
    object.namespace().unwrap_or_else(|| "default".to_owned())
}
