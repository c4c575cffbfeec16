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
#[x_kube(validation = Rule::new("[has(self.persistentVolumeClaim), has(self.image), has(self.hostPath), has(self.huggingFace)].filter(present, present).size() == 1")
    .message("give exactly one of model.source.huggingFace, model.source.persistentVolumeClaim, model.source.image and model.source.hostPath"))]
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
    /// A repository of a Hugging Face Hub or of a server that speaks the same: each rank reads its own bytes of the weights over the
    /// network, and nothing is kept on disk but the tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugging_face: Option<HuggingFaceSource>,
}

impl Source {
    /// Whether weights come over the network, not from a volume.
    #[must_use]
    pub const fn is_remote(&self) -> bool {
        self.hugging_face.is_some()
    }
}

/// A repository of a Hugging Face Hub.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.repo.matches('^[A-Za-z0-9_][-A-Za-z0-9._]*/[A-Za-z0-9_][-A-Za-z0-9._]*$')")
        .message("model.source.huggingFace.repo must be a repository as the Hub writes it, for example HuggingFaceTB/SmolLM2-135M-Instruct"),
    validation = Rule::new("!has(self.endpoint) || self.endpoint.matches('^https?://[^?#]+$')")
        .message("model.source.huggingFace.endpoint must be the address of a Hub, for example https://huggingface.co"),
    validation = Rule::new("!has(self.revision) || self.revision.matches('^[^[:space:]]+$')")
        .message("model.source.huggingFace.revision must be a branch, a tag or a commit")
)]
#[serde(rename_all = "camelCase")]
pub struct HuggingFaceSource {
    /// Organisation and name of the repository, which must have safetensors.
    #[schemars(length(min = 3, max = 193))]
    pub repo: String,
    /// Branch, tag or commit. It is resolved to a commit when the model is inspected; a branch that moves later changes nothing until
    /// `rollout.restartedAt` asks for it. Absent: `main`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub revision: Option<String>,
    /// Secret of the same namespace with the access token, for private and gated repositories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<TokenSecretRef>,
    /// Base URL of the Hub. Absent: https://huggingface.co.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 1024))]
    pub endpoint: Option<String>,
    /// Certificates that are trusted beside the usual ones: those of a mirror or of a proxy that opens connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<CaBundle>,
}

/// An access token in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenSecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in the Secret. Absent: `token`.
    #[serde(default = "TokenSecretRef::usual_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

impl TokenSecretRef {
    fn usual_key() -> String {
        "token".to_owned()
    }
}

/// Certificates in a ConfigMap of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaBundle {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub config_map: String,
    /// Key with the certificates in PEM form. Absent: `ca.crt`.
    #[serde(default = "CaBundle::usual_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

impl CaBundle {
    fn usual_key() -> String {
        "ca.crt".to_owned()
    }
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
