//! Deployments that tests make, and how they wait for them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::{Cluster, Kubectl};
use llamero_tests::poll;
use serde_json::{Value, json};

/// Namespace that enforces the restricted Pod Security Standard and has the claim `weights`.
pub(crate) const NAMESPACE: &str = "demo";
/// Long enough for a loaded machine, short enough to notice a hang. A test that is well never waits so long.
pub(crate) const SOON: Duration = Duration::from_secs(300);

/// A `LlamaDeployment` of SmolLM2 that goes when the test ends.
pub(crate) struct Deployment {
    pub(crate) cluster: Cluster,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Deployment {
    /// Applies the sample with `change` merged over its `spec`, in [`NAMESPACE`].
    pub(crate) fn create(name: &str, change: Value) -> Result<Self> {
        Self::create_in(NAMESPACE, name, change)
    }

    /// The same in another namespace.
    pub(crate) fn create_in(namespace: &str, name: &str, change: Value) -> Result<Self> {
        let cluster = Cluster::connect()?;
        let mut spec = json!({
            "model": {
                "source": {"persistentVolumeClaim": {"claimName": "weights", "path": "SmolLM2-135M-Instruct-FP8"}},
                "maxContextLength": 2048
            },
            "parallelism": {"tensor": 2},
            "placement": {"deadline": "20s"},
            "recovery": {"stallTimeout": "10s"},
            "worker": {"resources": {"requests": {"cpu": "50m", "memory": "640Mi"}}}
        });
        merge(&mut spec, change);
        let this = Self {
            cluster,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        this.remove()?;
        this.kubectl().apply(&json!({
            "apiVersion": "llamero.dev/v1alpha1",
            "kind": "LlamaDeployment",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec
        }))?;
        Ok(this)
    }

    pub(crate) fn kubectl(&self) -> Kubectl {
        self.cluster.kubectl()
    }

    pub(crate) fn get(&self) -> Result<Value> {
        self.kubectl()
            .get(&["-n", &self.namespace, "llamadeployment", &self.name])
    }

    /// The deployment's pods, in the order of their names.
    pub(crate) fn pods(&self) -> Result<Vec<Value>> {
        let selector = format!("llamero.dev/deployment={},llamero.dev/group", self.name);
        let list = self
            .kubectl()
            .get(&["-n", &self.namespace, "pods", "-l", &selector])?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    pub(crate) fn groups(&self) -> Result<Vec<Value>> {
        let list = self.kubectl().get(&["-n", &self.namespace, "llamagroups"])?;
        let mine = |group: &Value| group["spec"]["deployment"] == self.name.as_str();
        Ok(list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|group| mine(group))
            .cloned()
            .collect())
    }

    /// Waits until exactly `count` groups are wanted and ready, no other is there, and the status speaks of the present specification.
    pub(crate) fn wait_ready(&self, count: i64) -> Result<()> {
        poll::until(&format!("{count} ready groups of {}", self.name), SOON, || {
            let object = self.get()?;
            let status = &object["status"];
            let counts = ["desiredReplicas", "replicas", "readyReplicas"];
            let at_rest = status["observedGeneration"] == object["metadata"]["generation"]
                && counts.iter().all(|field| status[*field] == count);
            ensure!(
                at_rest,
                "generation is {}, status is {status}",
                object["metadata"]["generation"]
            );
            Ok(Some(()))
        })
    }

    /// Waits for a condition of that type with that status and returns its message.
    pub(crate) fn wait_condition(&self, kind: &str, status: &str) -> Result<String> {
        poll::until(&format!("{kind}={status} on {}", self.name), SOON, || {
            let object = self.get()?;
            let conditions = object["status"]["conditions"]
                .as_array()
                .context("no conditions yet")?;
            let found = conditions
                .iter()
                .find(|one| one["type"] == kind && one["status"] == status);
            let found = found.with_context(|| format!("conditions are {conditions:?}"))?;
            Ok(found["message"].as_str().map(str::to_owned))
        })
    }

    fn remove(&self) -> Result<()> {
        let words = [
            "-n",
            &self.namespace,
            "delete",
            "llamadeployment",
            &self.name,
            "--ignore-not-found",
            "--timeout=180s",
        ];
        self.kubectl().run(&words)?;
        self.wait_no_pods()
    }

    /// Waits until the last pod of its groups has ended.
    pub(crate) fn wait_no_pods(&self) -> Result<()> {
        poll::until("pods to go", SOON, || {
            let pods = self.pods()?;
            Ok(pods.is_empty().then_some(()))
        })
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// JSON merge patch (RFC 7396).
fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                if value.is_null() {
                    into.remove(&key);
                } else {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (into, change) => *into = change,
    }
}

pub(crate) fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

pub(crate) fn node_of(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}
