//! Volumes that a user adds to the pods: certificates, credentials, drivers, scratch space.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        CSIVolumeSource, ConfigMapVolumeSource, EmptyDirVolumeSource, PersistentVolumeClaimVolumeSource,
        SecretVolumeSource, Volume, VolumeMount,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A volume; exactly one of the sources.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("[has(self.configMap), has(self.secret), has(self.emptyDir), has(self.persistentVolumeClaim), has(self.csi)].filter(present, present).size() == 1")
        .message("give exactly one of configMap, secret, emptyDir, persistentVolumeClaim and csi for each of worker.volumes"),
    validation = Rule::new("self.name != 'model' && self.name != 'tmp' && self.name != 'model-ca' && self.name != 'llamero-clients' && self.name != 'llamero-shm' && self.name != 'llamero-token'")
        .message("worker.volumes may not be called llamero-clients, llamero-shm, llamero-token, model, model-ca or tmp: the operator uses these names")
)]
#[serde(rename_all = "camelCase")]
pub struct ExtraVolume {
    /// Name, for the mount.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Files of a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapVolume>,
    /// Files of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretVolume>,
    /// Scratch space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDirVolume>,
    /// Another claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimVolume>,
    /// A volume that a CSI driver makes for the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csi: Option<CsiVolume>,
}

/// Files of a ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapVolume {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Files of a Secret.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretVolume {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// Scratch space.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDirVolume {
    /// `Memory`, or empty for the node's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub medium: Option<String>,
    /// Most bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::quantity")]
    pub size_limit: Option<Quantity>,
}

/// Another claim of the namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PersistentVolumeClaimVolume {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
}

/// A volume that a CSI driver makes for the pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CsiVolume {
    /// Name of the driver.
    #[schemars(length(min = 1, max = 253))]
    pub driver: String,
    /// Settings of the driver.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volume_attributes: BTreeMap<String, String>,
}

/// Where a volume is mounted.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.mountPath != '/model' && !self.mountPath.startsWith('/model/') && self.mountPath != '/tmp' && self.mountPath != '/'")
    .message("worker.volumeMounts may not cover /, /model or /tmp"))]
#[serde(rename_all = "camelCase")]
pub struct ExtraMount {
    /// Name of the volume.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Absolute path in the container.
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^/"))]
    pub mount_path: String,
    /// Whether the worker may not write there.
    #[serde(default = "yes")]
    pub read_only: bool,
}

const fn yes() -> bool {
    true
}

impl ExtraVolume {
    /// As a pod has it.
    #[must_use]
    pub fn to_volume(&self) -> Volume {
        Volume {
            name: self.name.clone(),
            config_map: self.config_map.as_ref().map(|source| ConfigMapVolumeSource {
                name: source.name.clone(),
                ..ConfigMapVolumeSource::default()
            }),
            secret: self.secret.as_ref().map(|source| SecretVolumeSource {
                secret_name: Some(source.secret_name.clone()),
                ..SecretVolumeSource::default()
            }),
            empty_dir: self.empty_dir.as_ref().map(|source| EmptyDirVolumeSource {
                medium: source.medium.clone(),
                size_limit: source.size_limit.clone(),
            }),
            persistent_volume_claim: self.persistent_volume_claim.as_ref().map(|source| {
                PersistentVolumeClaimVolumeSource {
                    claim_name: source.claim_name.clone(),
                    read_only: None,
                }
            }),
            csi: self.csi.as_ref().map(|source| CSIVolumeSource {
                driver: source.driver.clone(),
                volume_attributes: Some(source.volume_attributes.clone()).filter(|map| !map.is_empty()),
                ..CSIVolumeSource::default()
            }),
            ..Volume::default()
        }
    }
}

impl ExtraMount {
    /// As a container has it.
    #[must_use]
    pub fn to_mount(&self) -> VolumeMount {
        VolumeMount {
            name: self.name.clone(),
            mount_path: self.mount_path.clone(),
            read_only: Some(self.read_only),
            ..VolumeMount::default()
        }
    }
}
