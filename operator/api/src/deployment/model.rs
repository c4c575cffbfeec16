//! What is served and where its weights lie.

use kube::KubeSchema;
use llamero_settings::limits;
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
    #[schemars(range(min = *limits::MAX_CONTEXT_LENGTH.start(), max = *limits::MAX_CONTEXT_LENGTH.end()))]
    pub max_context_length: Option<i64>,
}

/// Where the weights lie; exactly one of the fields.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.persistentVolumeClaim), has(self.image), has(self.hostPath), has(self.huggingFace), has(self.s3), has(self.https)].filter(present, present).size() == 1")
    .message("give exactly one of model.source.huggingFace, model.source.s3, model.source.https, model.source.persistentVolumeClaim, model.source.image and model.source.hostPath"))]
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
    /// A folder of a bucket, read like a repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Source>,
    /// A folder of a web server, read like a repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https: Option<HttpsSource>,
}

impl Source {
    /// Whether weights come over the network, not from a volume.
    #[must_use]
    pub const fn is_remote(&self) -> bool {
        self.hugging_face.is_some() || self.s3.is_some() || self.https.is_some()
    }

    /// Certificates that are trusted beside the usual ones.
    #[must_use]
    pub fn ca_bundle(&self) -> Option<&CaBundle> {
        let hub = self.hugging_face.as_ref().map(|hub| &hub.ca_bundle);
        let bucket = || self.s3.as_ref().map(|bucket| &bucket.ca_bundle);
        let web = || self.https.as_ref().map(|web| &web.ca_bundle);
        hub.or_else(bucket).or_else(web)?.as_ref()
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

/// A folder of a bucket: of Amazon's S3 and what speaks the same, of Google Cloud Storage, or of Azure Blob Storage.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.uri.matches('^(s3|gs|az)://[A-Za-z0-9][-A-Za-z0-9._]*(/[^?#[:space:]]*)?$')")
        .message("model.source.s3.uri must be a folder of a bucket, for example s3://weights/llama-3.1-8b, gs://… or az://…"),
    validation = Rule::new("!has(self.endpoint) || self.endpoint.matches('^https?://[^?#]+$')")
        .message("model.source.s3.endpoint must be the address of the service, for example https://minio.example.com:9000"),
    validation = Rule::new("!has(self.region) || self.uri.startsWith('s3://')")
        .message("model.source.s3.region is for s3:// only")
)]
#[serde(rename_all = "camelCase")]
pub struct S3Source {
    /// Bucket and folder of config.json, safetensors and tokenizer.json: `s3://BUCKET/FOLDER`, also `gs://` and `az://`. A file
    /// `SHA256SUMS` in it is checked against. What is in it when the model is inspected is pinned by its ETags; objects that are
    /// replaced later are refused until `rollout.restartedAt` asks for them.
    #[schemars(length(min = 6, max = 1024))]
    pub uri: String,
    /// Base URL of the service. Absent: the cloud's own; for `az://` then the variable AZURE_STORAGE_ACCOUNT_NAME must be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 1024))]
    pub endpoint: Option<String>,
    /// Region of the bucket. Absent: the variable AWS_REGION, else us-east-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub region: Option<String>,
    /// Secret of the same namespace with the keys. Absent: the cloud identity of `worker.serviceAccountName`, or of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<CredentialsSecretRef>,
    /// Certificates that are trusted beside the usual ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<CaBundle>,
}

/// Keys of a bucket in a Secret, under the names that the cloud's own tools know: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and perhaps
/// AWS_SESSION_TOKEN; GOOGLE_SERVICE_ACCOUNT_KEY; AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, and perhaps
/// AZURE_STORAGE_ACCOUNT_NAME.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsSecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A folder of a web server that answers with ranges and ETags.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.url.matches('^https?://[^?#[:space:]]+$')")
    .message("model.source.https.url must be the address of a folder, for example https://example.com/models/llama-3.1-8b"))]
#[serde(rename_all = "camelCase")]
pub struct HttpsSource {
    /// Address of the folder of config.json, model.safetensors.index.json or model.safetensors, and tokenizer.json. A file `SHA256SUMS`
    /// in it is checked against. What is in it when the model is inspected is pinned by its ETags; files that are replaced later are
    /// refused until `rollout.restartedAt` asks for them.
    #[schemars(length(min = 8, max = 1024))]
    pub url: String,
    /// Secret of the same namespace with an access token, which is sent as `Authorization: Bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<TokenSecretRef>,
    /// Certificates that are trusted beside the usual ones.
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
