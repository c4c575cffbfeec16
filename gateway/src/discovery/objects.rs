//! `LlamaDeployments` and `LlamaGroups` as far as the gateway needs them. What else is in the objects, such as the environment of workers, is
//! skipped while they are read, so that it is never kept here.

use kube::Resource;
use kube::api::ObjectMeta;
use llamero_api::deployment::{Inference, InferenceAuth};
use llamero_api::group::{GroupPhase, Intent, Transport};
use llamero_api::{LlamaDeployment, LlamaGroup};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};

/// A deployment.
#[derive(Resource, Clone, Debug, Deserialize)]
#[resource(inherit = LlamaDeployment)]
pub(super) struct Deployment {
    #[serde(deserialize_with = "bare")]
    pub(super) metadata: ObjectMeta,
    pub(super) spec: DeploymentSpec,
    pub(super) status: Option<DeploymentStatus>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeploymentSpec {
    #[serde(default)]
    pub(super) model: Model,
    #[serde(default)]
    pub(super) adapters: Vec<Adapter>,
    #[serde(default = "one")]
    pub(super) replicas: i32,
    #[serde(default)]
    pub(super) hold_at_zero: bool,
    pub(super) autoscaling: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) rollout: Rollout,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Model {
    pub(super) name: Option<String>,
    pub(super) max_context_length: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Adapter {
    pub(super) name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rollout {
    pub(super) canary_percent: Option<i32>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct DeploymentStatus {
    #[serde(default)]
    pub(super) revision: String,
    #[serde(default)]
    pub(super) conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) type_: String,
    pub(super) status: String,
    #[serde(default)]
    pub(super) message: String,
}

impl Deployment {
    /// The name that clients ask for: `spec.model.name`, else the object's name.
    pub(super) fn model_name(&self) -> &str {
        let names = [&self.spec.model.name, &self.metadata.name];
        names.into_iter().find_map(Option::as_deref).unwrap_or_default()
    }
}

/// A group.
#[derive(Resource, Clone, Debug, Deserialize)]
#[resource(inherit = LlamaGroup)]
pub(super) struct Group {
    #[serde(deserialize_with = "bare")]
    pub(super) metadata: ObjectMeta,
    pub(super) spec: GroupSpec,
    pub(super) status: Option<GroupStatus>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct GroupSpec {
    pub(super) deployment: String,
    pub(super) revision: String,
    #[serde(default)]
    pub(super) intent: Intent,
    pub(super) template: Template,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Template {
    pub(super) model_name: String,
    pub(super) max_context_length: i64,
    #[serde(default)]
    pub(super) transport: Transport,
    #[serde(default)]
    pub(super) worker: Worker,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Worker {
    pub(super) inference: Option<Inference>,
}

impl Template {
    /// How the inference port of the leader is reached.
    pub(super) fn inference_transport(&self) -> Transport {
        match self
            .worker
            .inference
            .as_ref()
            .and_then(|inference| inference.auth)
        {
            Some(InferenceAuth::None) => Transport::Plain,
            Some(InferenceAuth::Mutual) | None => self.transport,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GroupStatus {
    #[serde(default, deserialize_with = "known")]
    pub(super) phase: GroupPhase,
    #[serde(default)]
    pub(super) ready: bool,
    pub(super) leader_address: Option<String>,
    #[serde(default)]
    pub(super) ranks: Vec<Rank>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Rank {
    pub(super) rank: i32,
    #[serde(default)]
    pub(super) pod: String,
}

/// The default for what only a newer operator knows: one group must not make the whole list unreadable.
fn known<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(deserializer: D) -> Result<T, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

const fn one() -> i32 {
    1
}

/// Who and which version, and nothing else: `kubectl apply` keeps the whole object in an annotation.
fn bare<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let all = ObjectMeta::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: all.name,
        namespace: all.namespace,
        uid: all.uid,
        resource_version: all.resource_version,
        creation_timestamp: all.creation_timestamp,
        ..ObjectMeta::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_environment_of_workers_is_not_kept() {
        let worker = json!({
            "env": [{"name": "API_TOKEN", "value": "hunter2"}],
            "annotations": {"a": "hunter2"}, "inference": {"auth": "None"},
        });
        let applied = json!({"spec": {"worker": worker}}).to_string();
        let source = json!({"huggingFace": {"repo": "org/smol", "tokenSecretRef": {"name": "hunter2"}}});
        let metadata = json!({
            "name": "smol", "namespace": "ns", "uid": "u", "resourceVersion": "7", "labels": {"a": "hunter2"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": applied},
        });
        let deployment = json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment", "metadata": metadata,
            "spec": {"model": {"source": source}, "parallelism": {"tensor": 1}, "worker": worker},
        });
        let group = json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaGroup", "metadata": metadata,
            "spec": {
                "deployment": "smol", "revision": "r", "generation": 1, "members": [],
                "template": {"modelName": "m", "source": source, "maxContextLength": 128, "worker": worker},
            },
            "status": {"phase": "Serving", "message": "hunter2", "ranks": [{"rank": 0, "pod": "p", "message": "hunter2"}]},
        });
        for object in [&deployment, &group] {
            assert!(object.to_string().contains("hunter2"));
        }
        let deployment: Deployment = serde_json::from_value(deployment).unwrap();
        let group: Group = serde_json::from_value(group).unwrap();
        let kept = format!("{deployment:?} {group:?}");
        assert!(!kept.contains("hunter2") && !kept.contains("API_TOKEN"), "{kept}");
        assert_eq!((deployment.model_name(), deployment.spec.replicas), ("smol", 1));
        assert_eq!(group.spec.template.inference_transport(), Transport::Plain);
    }
}
