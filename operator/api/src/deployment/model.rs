//! What is served and where its weights lie.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PullPolicy;

/// The model.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// The name that clients ask for. Absent: the name of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    /// Where the Hugging Face directory (config.json, safetensors, tokenizer.json) lies.
    pub source: Source,
    /// Longest context, prompt and answer together, in tokens. Absent: what the checkpoint was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 1_048_576))]
    pub max_context_length: Option<i64>,
}

/// Where the weights lie; exactly one of the fields.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.persistentVolumeClaim), has(self.image), has(self.hostPath)].filter(present, present).size() == 1")
    .message("give exactly one of model.source.persistentVolumeClaim, model.source.image and model.source.hostPath"))]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// A volume; for groups over several nodes its access mode must be ReadOnlyMany or ReadWriteMany.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimSource>,
    /// An OCI image that holds the directory, mounted as an image volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,
    /// A directory on the nodes. The restricted Pod Security Standard forbids this source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathSource>,
}

/// A directory in a PersistentVolumeClaim of the same namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.path) || !(self.path.startsWith('/') || self.path.split('/').exists(part, part == '..'))")
    .message("model.source.persistentVolumeClaim.path must be relative to the volume and may not contain .."))]
#[serde(rename_all = "camelCase")]
pub struct PersistentVolumeClaimSource {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
    /// Directory inside the volume. Absent: its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub path: Option<String>,
}

/// An OCI image used as a volume.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.path) || !(self.path.startsWith('/') || self.path.split('/').exists(part, part == '..'))")
    .message("model.source.image.path must be relative to the image's root and may not contain .."))]
#[serde(rename_all = "camelCase")]
pub struct ImageSource {
    /// Reference of the image, with registry and tag or digest.
    #[schemars(length(min = 1, max = 1024))]
    pub reference: String,
    /// When the image is pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
    /// Directory inside the image. Absent: its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub path: Option<String>,
}

/// A directory on every node that may run the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostPathSource {
    /// Absolute path on the node.
    #[schemars(length(min = 2, max = 1024), regex(pattern = "^/"))]
    pub path: String,
}
