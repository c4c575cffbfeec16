//! A pod that is nobody's, and the policies that stand before it.

use std::ops::Deref;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use llamero_tests::{cluster::Cluster, paths, poll};
use serde_json::{Value, json};

use crate::fixture::{NAMESPACE, SOON};

/// Policies are enforced while this lives.
pub(crate) struct Enforced<'a>(&'a Cluster);

impl<'a> Enforced<'a> {
    pub(crate) fn now(cluster: &'a Cluster) -> Result<Self> {
        cluster.enforce_policies()?;
        Ok(Self(cluster))
    }
}

impl Drop for Enforced<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.lift_policies() {
            eprintln!("policies are still enforced: {error:#}");
        }
    }
}

/// What a pod's network reaches.
pub(crate) struct PodNetwork {
    pid: i32,
}

/// A pod with no rights and no labels, which only exists.
pub(crate) struct Stranger<'a> {
    cluster: &'a Cluster,
    namespace: &'static str,
    network: PodNetwork,
}

impl<'a> Stranger<'a> {
    pub(crate) fn create(cluster: &'a Cluster) -> Result<Self> {
        Self::wearing(cluster, NAMESPACE, json!({}))
    }

    /// In this namespace, with the labels of somebody else.
    pub(crate) fn wearing(cluster: &'a Cluster, namespace: &'static str, labels: Value) -> Result<Self> {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "stranger", "namespace": namespace, "labels": labels},
            "spec": {
                "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{"name": "sit", "image": "llamero.dev/toolbox:1", "imagePullPolicy": "Never",
                    "command": ["/bin/busybox", "sleep", "3600"],
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}});
        cluster.import_image(&paths::images().join("toolbox.tar"))?;
        cluster.kubectl().apply(&pod)?;
        // Policies that are enforced before the API server knows its address know nothing of it; and a container that is being made has processes that
        // are gone in a moment.
        poll::until("the stranger to run", SOON, || {
            let pod = cluster.kubectl().get(&["-n", namespace, "pod", "stranger"])?;
            let runs = pod["status"]["phase"] == "Running" && pod["status"]["podIP"].is_string();
            Ok(runs.then_some(()))
        })?;
        let network = PodNetwork::of(cluster, namespace, "stranger")?;
        Ok(Self {
            cluster,
            namespace,
            network,
        })
    }
}

impl Deref for Stranger<'_> {
    type Target = PodNetwork;

    fn deref(&self) -> &PodNetwork {
        &self.network
    }
}

impl PodNetwork {
    /// Of any pod, once it runs.
    pub(crate) fn of(cluster: &Cluster, namespace: &str, pod: &str) -> Result<Self> {
        let pid = poll::until("the pod's process", SOON, || {
            let processes = cluster.pod_processes(namespace, pod)?;
            Ok(processes.first().map(|process| process.pid))
        })?;
        Ok(Self { pid })
    }

    /// To which of the ports connections come about. All are tried at once: what is dropped shows only by waiting.
    pub(crate) fn reached(&self, targets: &[(String, u16)]) -> Result<Vec<(String, u16)>> {
        let tries = targets.iter().map(|target| Ok((target, self.connect(target)?)));
        let mut tries = tries.collect::<Result<Vec<_>>>()?;
        let mut reached = Vec::new();
        for (target, child) in &mut tries {
            if child.wait()?.success() {
                reached.push((*target).clone());
            }
        }
        Ok(reached)
    }

    fn connect(&self, (address, port): &(String, u16)) -> Result<Child> {
        let pid = self.pid.to_string();
        let connect = format!("exec 3<>/dev/tcp/{address}/{port}");
        Command::new("nsenter")
            .args(["--target", &pid, "--net", "timeout", "5", "bash", "-c", &connect])
            .stderr(Stdio::null())
            .spawn()
            .context("cannot enter the stranger's network")
    }

    pub(crate) fn reaches(&self, address: &str, port: u16) -> Result<bool> {
        Ok(!self.reached(&[(address.to_owned(), port)])?.is_empty())
    }
}

impl Drop for Stranger<'_> {
    fn drop(&mut self) {
        let words = [
            "-n",
            self.namespace,
            "delete",
            "pod",
            "stranger",
            "--ignore-not-found",
            "--wait=true",
        ];
        if let Err(error) = self.cluster.kubectl().run(&words) {
            eprintln!("the stranger is still there: {error:#}");
        }
    }
}
