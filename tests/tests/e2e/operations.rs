//! What a platform team relies on: definitions of this release, roles, and a log that can be turned up.

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::{Cluster, Kubectl};
use llamero_tests::poll;
use serde_json::json;

use crate::fixture::{NAMESPACE, SOON};

const SYSTEM: &str = "llamero-system";
const DEFINITION: &str = "llamadeployments.llamero.dev";
const RELEASE: &str = "llamero.dev/schema-version";

/// Writes that the definition is of this release.
fn annotate(kubectl: &Kubectl, release: &str) -> Result<()> {
    let annotation = format!("{RELEASE}={release}");
    kubectl.run(&[
        "annotate",
        "customresourcedefinition",
        DEFINITION,
        &annotation,
        "--overwrite",
    ])?;
    Ok(())
}

/// Gives the definition its release back when this is dropped.
struct Annotated<'a> {
    kubectl: &'a Kubectl,
    release: String,
}

impl Drop for Annotated<'_> {
    fn drop(&mut self) {
        if let Err(error) = annotate(self.kubectl, &self.release) {
            eprintln!("left behind: {error:#}");
        }
    }
}

#[test]
fn an_operator_that_starts_brings_older_definitions_to_its_release_and_newer_ones_not_back() -> Result<()> {
    let kubectl = Cluster::connect()?.kubectl();
    let release = || -> Result<String> {
        let definition = kubectl.get(&["customresourcedefinition", DEFINITION])?;
        let release = definition["metadata"]["annotations"][RELEASE].as_str();
        release
            .map(str::to_owned)
            .context("the definition names no release")
    };
    let restart = || -> Result<()> {
        kubectl.run(&["-n", SYSTEM, "rollout", "restart", "deployment/llamero-operator"])?;
        let words = [
            "-n",
            SYSTEM,
            "rollout",
            "status",
            "deployment/llamero-operator",
            "--timeout=300s",
        ];
        kubectl.run(&words)?;
        Ok(())
    };
    let ours = release()?;
    let _back = Annotated {
        kubectl: &kubectl,
        release: ours.clone(),
    };
    annotate(&kubectl, "0.0.1")?;
    restart()?;
    poll::until("the definition to be of this release", SOON, || {
        let now = release()?;
        ensure!(now == ours, "it is of {now}");
        Ok(Some(()))
    })?;
    annotate(&kubectl, "99.0.0")?;
    restart()?;
    poll::until("the operator to say that the definition is newer", SOON, || {
        let log = kubectl.run(&["-n", SYSTEM, "logs", "deployment/llamero-operator"])?;
        Ok(log.contains("newer release and is left alone").then_some(()))
    })?;
    let now = release()?;
    ensure!(now == "99.0.0", "it is of {now}");
    Ok(())
}

#[test]
fn who_may_edit_a_namespace_may_edit_its_deployments_and_only_read_groups() -> Result<()> {
    let kubectl = Cluster::connect()?.kubectl();
    for (name, role) in [("llamero-test-viewer", "view"), ("llamero-test-editor", "edit")] {
        kubectl.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name}],
        }))?;
    }
    let may = |who: &str, verb: &str, what: &str| -> bool {
        let words = [
            "-n", NAMESPACE, "auth", "can-i", verb, what, "--as", who, "--quiet",
        ];
        kubectl
            .command(&words)
            .status()
            .is_ok_and(|status| status.success())
    };
    let mut wrong = Vec::new();
    for (who, verb, what, expected) in [
        (
            "llamero-test-viewer",
            "list",
            "llamadeployments.llamero.dev",
            true,
        ),
        (
            "llamero-test-viewer",
            "update",
            "llamadeployments.llamero.dev",
            false,
        ),
        (
            "llamero-test-editor",
            "create",
            "llamadeployments.llamero.dev",
            true,
        ),
        ("llamero-test-editor", "get", "llamagroups.llamero.dev", true),
        ("llamero-test-editor", "delete", "llamagroups.llamero.dev", false),
    ] {
        // Roles are aggregated a moment after they were made.
        let as_expected = poll::until("the role", SOON, || {
            Ok((may(who, verb, what) == expected).then_some(()))
        });
        if as_expected.is_err() {
            wrong.push(format!("{who} {verb} {what} is not {expected}"));
        }
    }
    let names = ["llamero-test-viewer", "llamero-test-editor"];
    kubectl.run(&["-n", NAMESPACE, "delete", "rolebinding", names[0], names[1]])?;
    ensure!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}
