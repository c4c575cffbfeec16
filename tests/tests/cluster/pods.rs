//! Pods that serve their name over HTTP, under the restricted Pod Security Standard.

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::{Cluster, Kubectl};
use llamero_tests::poll;
use serde_json::{Value, json};

use crate::SOON;

pub(crate) const NAMESPACE: &str = "cluster-test";
const IMAGE: &str = "llamero.dev/toolbox:1";
/// Port on which every pod serves.
pub(crate) const PORT: u16 = 8080;

/// The test's namespace and what is in it.
pub(crate) struct Pods {
    kubectl: Kubectl,
}

impl Pods {
    /// Makes the namespace, and the Service `web` over all pods.
    pub(crate) fn create(cluster: &Cluster) -> Result<Self> {
        let kubectl = cluster.kubectl();
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        kubectl.apply(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}),
        )?;
        kubectl.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": NAMESPACE},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": PORT}]},
        }))?;
        let pods = Self { kubectl };
        poll::until("the namespace's service account", SOON, || {
            Ok(Some(pods.run(&["get", "serviceaccount", "default"])?))
        })?;
        Ok(pods)
    }

    /// Starts a pod on the node and waits until it is Ready.
    pub(crate) fn start(&self, name: &str, node: &str) -> Result<()> {
        let script = format!("echo {name} > /tmp/index.html; exec /bin/busybox httpd -f -p {PORT} -h /tmp");
        self.kubectl.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "web"}},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 1,
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "web",
                    "image": IMAGE,
                    "command": ["/bin/sh", "-c", script],
                    "readinessProbe": {"httpGet": {"port": PORT, "path": "/"}, "periodSeconds": 1},
                    "securityContext": {
                        "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": "tmp", "mountPath": "/tmp"},
                        {"name": "image", "mountPath": "/volume"},
                    ],
                }],
                "volumes": [
                    {"name": "tmp", "emptyDir": {}},
                    {"name": "image", "image": {"reference": IMAGE, "pullPolicy": "IfNotPresent"}},
                ],
            },
        }))?;
        self.run(&[
            "wait",
            "--for=condition=Ready",
            "--timeout=180s",
            &format!("pod/{name}"),
        ])?;
        Ok(())
    }

    /// `kubectl` in the test's namespace.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        self.kubectl.run(&[&["--namespace", NAMESPACE], words].concat())
    }

    /// Runs a command of BusyBox in the pod.
    pub(crate) fn exec(&self, pod: &str, words: &[&str]) -> Result<String> {
        self.run(&[&["exec", pod, "--", "/bin/busybox"], words].concat())
    }

    /// What the pod gets from `address`; it gives up after two seconds.
    pub(crate) fn fetch(&self, pod: &str, address: &str) -> Result<String> {
        self.exec(
            pod,
            &["timeout", "2", "/bin/busybox", "wget", "-q", "-O", "-", address],
        )
    }

    /// A value of an object's JSON, for example `("pod/first", "/status/podIP")`.
    pub(crate) fn value(&self, object: &str, pointer: &str) -> Result<Value> {
        let object = self.kubectl.get(&["--namespace", NAMESPACE, object])?;
        object
            .pointer(pointer)
            .cloned()
            .with_context(|| format!("no {pointer}"))
    }

    /// URL of the pod itself.
    pub(crate) fn url(&self, pod: &str) -> Result<String> {
        let address = self.value(&format!("pod/{pod}"), "/status/podIP")?;
        let address = address.as_str().context("the address is a string")?;
        ensure!(!address.is_empty(), "{pod} has an address");
        Ok(format!("http://{address}:{PORT}/"))
    }
}
