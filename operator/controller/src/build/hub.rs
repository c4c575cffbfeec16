//! What a pod needs whose weights come from a Hub: the repository on its command line, the token in its environment, certificates.
//!
//! The operator reads no Secret: the kubelet gives the token to the pod, and says so in the pod's status when there is none.

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, EnvVar, EnvVarSource, KeyToPath, SecretKeySelector, Volume, VolumeMount,
};
use llamero_api::deployment::{HuggingFaceSource, Source};

/// Where the small files of the repository are put: the only place that can be written.
pub const MODEL_DIR: &str = "/tmp/model";
/// Where certificates are mounted.
const CA_MOUNT: &str = "/etc/llamero/ca";
/// Name of their volume.
const CA_VOLUME: &str = "model-ca";
/// Name of their file.
const CA_FILE: &str = "bundle.pem";

/// Flags of the worker's command line; none for other sources.
#[must_use]
pub fn arguments(source: &Source) -> Vec<String> {
    let Some(hub) = &source.hugging_face else {
        return Vec::new();
    };
    let mut arguments = Vec::new();
    let mut flag = |name: &str, value: &str| arguments.extend([name.to_owned(), value.to_owned()]);
    flag("--hub-repository", &hub.repo);
    flag("--hub-revision", hub.revision.as_deref().unwrap_or("main"));
    if let Some(endpoint) = &hub.endpoint {
        flag("--hub-endpoint", endpoint);
    }
    if hub.ca_bundle.is_some() {
        flag("--hub-ca-file", &format!("{CA_MOUNT}/{CA_FILE}"));
    }
    arguments
}

/// The variable with the access token, which wins over one of the user's.
#[must_use]
pub fn environment(source: &Source) -> Option<EnvVar> {
    let secret = source.hugging_face.as_ref()?.token_secret_ref.as_ref()?;
    Some(EnvVar {
        name: "HF_TOKEN".to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: secret.name.clone(),
                key: secret.key.clone(),
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
    })
}

/// The user's variables with ours over those of the same name.
#[must_use]
pub fn merged(theirs: &[EnvVar], ours: Vec<EnvVar>) -> Vec<EnvVar> {
    let kept = theirs
        .iter()
        .filter(|env| ours.iter().all(|our| our.name != env.name))
        .cloned();
    kept.chain(ours.iter().cloned()).collect()
}

/// The volume with certificates and its mount.
#[must_use]
pub fn certificates(source: &Source) -> Option<(Volume, VolumeMount)> {
    let HuggingFaceSource { ca_bundle, .. } = source.hugging_face.as_ref()?;
    let bundle = ca_bundle.as_ref()?;
    let volume = Volume {
        name: CA_VOLUME.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: bundle.config_map.clone(),
            items: Some(vec![KeyToPath {
                key: bundle.key.clone(),
                path: CA_FILE.to_owned(),
                mode: None,
            }]),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    let mount = VolumeMount {
        name: CA_VOLUME.to_owned(),
        mount_path: CA_MOUNT.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    Some((volume, mount))
}
