//! What a pod needs whose weights come over the network: the place on its command line, keys in its environment, certificates.
//!
//! The operator reads no Secret: the kubelet gives the keys to the pod, and says so in the pod's status when there are none.

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, EnvVar, EnvVarSource, KeyToPath, SecretKeySelector, Volume, VolumeMount,
};
use llamero_api::deployment::{HttpsSource, HuggingFaceSource, S3Source, Source};

/// Where the small files of the checkpoint are put: the only place that can be written.
pub const MODEL_DIR: &str = "/tmp/model";
/// Where certificates are mounted.
const CA_MOUNT: &str = "/etc/llamero/ca";
/// Name of their volume.
const CA_VOLUME: &str = "model-ca";
/// Name of their file.
const CA_FILE: &str = "bundle.pem";

/// A variable with keys, and whether a Secret may do without it.
type Key = (&'static str, bool);
/// Of Amazon's S3 and what speaks the same.
const AMAZON: &[Key] = &[
    ("AWS_ACCESS_KEY_ID", false),
    ("AWS_SECRET_ACCESS_KEY", false),
    ("AWS_SESSION_TOKEN", true),
];
/// Of Google Cloud Storage.
const GOOGLE: &[Key] = &[("GOOGLE_SERVICE_ACCOUNT_KEY", false)];
/// Of Azure Blob Storage, where the worker checks that there is one of key and token.
const AZURE: &[Key] = &[
    ("AZURE_STORAGE_ACCOUNT_NAME", true),
    ("AZURE_STORAGE_ACCOUNT_KEY", true),
    ("AZURE_STORAGE_SAS_TOKEN", true),
];

/// Flags of the worker's command line; none for other sources.
#[must_use]
pub fn arguments(source: &Source) -> Vec<String> {
    let mut arguments = Vec::new();
    if let Some(hub) = &source.hugging_face {
        of_hub(hub, &mut arguments);
    } else if let Some(bucket) = &source.s3 {
        of_bucket(bucket, &mut arguments);
    } else if let Some(HttpsSource { url, .. }) = &source.https {
        flag("--web-url", url, &mut arguments);
    }
    if source.ca_bundle().is_some() {
        // The earlier name is known to the images of earlier groups too, which had no other source.
        let name = match source.hugging_face {
            Some(_) => "--hub-ca-file",
            None => "--source-ca-file",
        };
        flag(name, &format!("{CA_MOUNT}/{CA_FILE}"), &mut arguments);
    }
    arguments
}

fn flag(name: &str, value: &str, arguments: &mut Vec<String>) {
    arguments.extend([name.to_owned(), value.to_owned()]);
}

fn of_hub(hub: &HuggingFaceSource, arguments: &mut Vec<String>) {
    flag("--hub-repository", &hub.repo, arguments);
    flag(
        "--hub-revision",
        hub.revision.as_deref().unwrap_or("main"),
        arguments,
    );
    if let Some(endpoint) = &hub.endpoint {
        flag("--hub-endpoint", endpoint, arguments);
    }
}

fn of_bucket(bucket: &S3Source, arguments: &mut Vec<String>) {
    flag("--bucket-uri", &bucket.uri, arguments);
    if let Some(endpoint) = &bucket.endpoint {
        flag("--bucket-endpoint", endpoint, arguments);
    }
    if let Some(region) = &bucket.region {
        flag("--bucket-region", region, arguments);
    }
    if bucket.credentials_secret_ref.is_some() {
        arguments.push("--bucket-keys".to_owned());
    }
}

/// The variables with keys and tokens, which win over the user's.
#[must_use]
pub fn environment(source: &Source) -> Vec<EnvVar> {
    if let Some(bucket) = &source.s3 {
        let Some(secret) = &bucket.credentials_secret_ref else {
            return Vec::new();
        };
        let keys = match bucket.uri.split("://").next() {
            Some("gs") => GOOGLE,
            Some("az") => AZURE,
            _ => AMAZON,
        };
        let keys = keys.iter();
        return keys
            .map(|(name, is_optional)| variable(name, &secret.name, name, *is_optional))
            .collect();
    }
    let hub = source.hugging_face.as_ref();
    let (name, token) = match hub {
        Some(hub) => ("HF_TOKEN", hub.token_secret_ref.as_ref()),
        None => {
            let web = source.https.as_ref();
            (
                "LLAMERO_SOURCE_TOKEN",
                web.and_then(|web| web.token_secret_ref.as_ref()),
            )
        }
    };
    let token = token.map(|secret| variable(name, &secret.name, &secret.key, false));
    token.into_iter().collect()
}

fn variable(name: &str, secret: &str, key: &str, is_optional: bool) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: secret.to_owned(),
                key: key.to_owned(),
                optional: is_optional.then_some(true),
            }),
            ..EnvVarSource::default()
        }),
    }
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
    let bundle = source.ca_bundle()?;
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(source: Value) -> (String, Value) {
        let source: Source = serde_json::from_value(source).unwrap();
        let environment = serde_json::to_value(environment(&source)).unwrap();
        (arguments(&source).join(" "), environment)
    }

    fn secret(name: &str, optional: bool) -> Value {
        let mut reference = json!({"name": "keys", "key": name});
        if optional {
            reference["optional"] = json!(true);
        }
        json!({"name": name, "valueFrom": {"secretKeyRef": reference}})
    }

    #[test]
    fn a_bucket_s_keys_come_from_the_secret_or_the_pod_s_identity() {
        let (arguments, environment) = of(json!({"s3": {"uri": "s3://b/m", "endpoint": "https://minio",
            "region": "eu-1", "credentialsSecretRef": {"name": "keys"}, "caBundle": {"configMap": "roots"}}}));
        assert_eq!(
            arguments,
            "--bucket-uri s3://b/m --bucket-endpoint https://minio --bucket-region eu-1 --bucket-keys --source-ca-file \
             /etc/llamero/ca/bundle.pem"
        );
        assert_eq!(
            environment,
            json!([
                secret("AWS_ACCESS_KEY_ID", false),
                secret("AWS_SECRET_ACCESS_KEY", false),
                secret("AWS_SESSION_TOKEN", true)
            ])
        );
        let (arguments, environment) = of(json!({"s3": {"uri": "gs://b/m"}}));
        assert_eq!(
            (arguments.as_str(), environment),
            ("--bucket-uri gs://b/m", json!([]))
        );
        let with_keys =
            |uri: &str| of(json!({"s3": {"uri": uri, "credentialsSecretRef": {"name": "keys"}}})).1;
        assert_eq!(
            with_keys("gs://b/m"),
            json!([secret("GOOGLE_SERVICE_ACCOUNT_KEY", false)])
        );
        assert_eq!(
            with_keys("az://b/m")[1],
            secret("AZURE_STORAGE_ACCOUNT_KEY", true)
        );
    }

    #[test]
    fn a_web_server_s_token_comes_from_the_secret() {
        let (arguments, environment) =
            of(json!({"https": {"url": "https://h/m", "tokenSecretRef": {"name": "keys", "key": "t"}}}));
        assert_eq!(arguments, "--web-url https://h/m");
        assert_eq!(
            environment,
            json!([{"name": "LLAMERO_SOURCE_TOKEN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "t"}}}])
        );
    }
}
