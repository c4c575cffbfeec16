//! etcd, API server, controller manager and scheduler, in the machine's own namespaces.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::addresses::{API_PORT, DOMAIN, ETCD_PORT, HOST, POD_NETWORK, SERVICE_NETWORK};
use super::kubectl::Kubectl;
use super::{Layout, process};
use crate::{paths, poll};

pub(super) const ETCD: &str = "etcd";
pub(super) const API_SERVER: &str = "kube-apiserver";
pub(super) const SCHEDULER: &str = "kube-scheduler";

pub(super) fn start_etcd(state: &Path) -> Result<()> {
    let client = format!("http://127.0.0.1:{ETCD_PORT}");
    let peer = format!("http://127.0.0.1:{}", ETCD_PORT + 1);
    let mut command = Command::new(paths::program(ETCD));
    command.args([
        "--name=llamero".to_owned(),
        format!("--data-dir={}", state.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=llamero={peer}"),
        // The data need not outlive the machine.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ]);
    process::start(ETCD, &mut command)
}

/// Who asks for what is written down of the chart's parts, and of nobody else: that is what `llamero_tests::audit` reads.
const AUDIT_POLICY: &str = r#"{
  "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
  "rules": [
    {"level": "Metadata", "users": ["system:serviceaccount:llamero-system:llamero-operator", "system:serviceaccount:llamero-system:llamero-gateway"]},
    {"level": "None"}
  ]
}"#;

pub(super) fn start_api_server(layout: &Layout) -> Result<()> {
    let certificates = layout.certificates();
    let file = |name: &str| certificates.join(name).display().to_string();
    let audit_policy = layout.state().join("audit-policy.json");
    std::fs::write(&audit_policy, AUDIT_POLICY)
        .with_context(|| format!("cannot write {}", audit_policy.display()))?;
    let mut command = Command::new(paths::program(API_SERVER));
    command.args([
        format!("--etcd-servers=http://127.0.0.1:{ETCD_PORT}"),
        format!("--bind-address={HOST}"),
        format!("--advertise-address={HOST}"),
        format!("--secure-port={API_PORT}"),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
        format!("--kubelet-client-key={}", file("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--service-account-key-file={}", file("service-accounts.pub")),
        format!(
            "--service-account-signing-key-file={}",
            file("service-accounts.key")
        ),
        format!("--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}"),
        format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--allow-privileged=true".to_owned(),
        format!("--audit-policy-file={}", audit_policy.display()),
        format!("--audit-log-path={}", layout.audit_log().display()),
        // Mebibytes; one file before it is kept.
        "--audit-log-maxsize=256".to_owned(),
        "--audit-log-maxbackup=1".to_owned(),
        "--max-requests-inflight=1000".to_owned(),
        "--max-mutating-requests-inflight=1000".to_owned(),
        "--profiling=false".to_owned(),
    ]);
    process::start(API_SERVER, &mut command)
}

/// Ends the API server. It waits for its watches, which never end: after some seconds it is killed.
pub(super) fn stop_api_server() -> Result<()> {
    let daemons: Vec<_> = process::find(API_SERVER, API_SERVER)?.into_iter().collect();
    process::end(&daemons, Signal::TERM, Duration::from_secs(2))
}

pub(super) fn wait_for_api_server(kubectl: &Kubectl) -> Result<()> {
    let ready = || {
        process::find(API_SERVER, API_SERVER)?.context("the API server has ended")?;
        Ok(Some(kubectl.run(&[
            "get",
            "--raw=/readyz",
            "--request-timeout=2s",
        ])?))
    };
    poll::until("API server ready", Duration::from_secs(180), ready)
        .with_context(|| format!("its log is {}", process::log_file(API_SERVER).display()))?;
    Ok(())
}

pub(super) fn start_controller_manager(state: &Path, certificates: &Path, kubeconfig: &Path) -> Result<()> {
    let mut command = Command::new(paths::program("kube-controller-manager"));
    command.args([
        format!("--kubeconfig={}", kubeconfig.display()),
        format!(
            "--service-account-private-key-file={}",
            certificates.join("service-accounts.key").display()
        ),
        format!("--root-ca-file={}", certificates.join("ca.crt").display()),
        "--use-service-account-credentials=true".to_owned(),
        // Every node's network is in the address plan.
        "--allocate-node-cidrs=false".to_owned(),
        format!("--cluster-cidr={POD_NETWORK}"),
        // A node whose cable is cut is NotReady within half a minute, not one.
        "--node-monitor-period=2s".to_owned(),
        format!("--node-monitor-grace-period={}", node_grace()),
        // It makes this folder, by default on the machine.
        format!(
            "--flex-volume-plugin-dir={}",
            state.join("flex-volumes").display()
        ),
        "--leader-elect=false".to_owned(),
        "--kube-api-qps=1000".to_owned(),
        "--kube-api-burst=2000".to_owned(),
        "--secure-port=0".to_owned(),
        "--profiling=false".to_owned(),
    ]);
    process::start("kube-controller-manager", &mut command)
}

/// After how long without a lease a node is NotReady; benchmarks with thousands of fake nodes say more by `LLAMERO_NODE_GRACE`.
fn node_grace() -> String {
    std::env::var("LLAMERO_NODE_GRACE").unwrap_or_else(|_| "25s".to_owned())
}

pub(super) fn start_scheduler(kubeconfig: &Path) -> Result<()> {
    let mut command = Command::new(paths::program(SCHEDULER));
    command.args([
        format!("--kubeconfig={}", kubeconfig.display()),
        "--leader-elect=false".to_owned(),
        "--kube-api-qps=1000".to_owned(),
        "--kube-api-burst=2000".to_owned(),
        "--secure-port=0".to_owned(),
        "--profiling=false".to_owned(),
    ]);
    process::start(SCHEDULER, &mut command)
}
