//! The roles of the chart against what was asked of the API server while all end-to-end tests ran: needs the cluster that they ran on.

use anyhow::{Context as _, Result, ensure};
use llamero_tests::{
    audit::{self, Excuse, Role},
    cluster::{Cluster, Layout},
};

const NAMESPACE: &str = "llamero-system";

const fn excuse(verb: &'static str, resource: &'static str, why: &'static str) -> Excuse {
    Excuse { verb, resource, why }
}

const STREAMED: &str = "lists are streamed by watches, but where the API server streams none and after a watch that broke they are read in pages";
const APPLIED: &str =
    "a server-side apply that makes an object must be allowed to create it, and is logged as a patch";
const BLOCKING: &str = "owner references that block deletion need it where the admission plugin OwnerReferencesPermissionEnforcement is on";

/// What is granted and may be used by no test.
const EXCUSES: &[Excuse] = &[
    excuse("list", "*", STREAMED),
    excuse("patch", "events", "the same is said again only after a minute"),
    excuse("create", "services", APPLIED),
    excuse("create", "networkpolicies", APPLIED),
    excuse("create", "poddisruptionbudgets", APPLIED),
    excuse("update", "llamadeployments/finalizers", BLOCKING),
    excuse("update", "llamagroups/finalizers", BLOCKING),
    excuse(
        "get",
        "controllerrevisions",
        "read where a name is taken already, after an answer that was lost",
    ),
    excuse(
        "delete",
        "controllerrevisions",
        "those beyond rollout.revisionHistoryLimit, which is 10",
    ),
    excuse(
        "update",
        "secrets",
        "the record of the authority changes when the authority is replaced",
    ),
    excuse(
        "watch",
        "endpointslices",
        "gateways look for each other only with API keys",
    ),
];

/// Every event of the run, those of a log that was full too.
fn log() -> Result<String> {
    let mut text = String::new();
    for entry in std::fs::read_dir(Layout::default().state())? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if name.starts_with("audit") && name.ends_with(".log") {
            let events = std::fs::read_to_string(&path);
            let events = events.with_context(|| format!("cannot read {}", path.display()))?;
            // The last line may still be written.
            let whole = events
                .rfind('\n')
                .map_or("", |end| events.get(..=end).unwrap_or_default());
            text.push_str(whole);
        }
    }
    ensure!(!text.is_empty(), "the API server has kept no audit log");
    Ok(text)
}

#[test]
fn every_permission_was_used_and_nothing_was_asked_for_without_one() -> Result<()> {
    let kubectl = Cluster::connect()?.kubectl();
    let log = log()?;
    let mut told = Vec::new();
    for (part, role) in [
        ("operator", "llamero-operator-lease"),
        ("gateway", "llamero-gateway-peers"),
    ] {
        let cluster = format!("llamero-{part}");
        let roles = [
            kubectl.get(&["clusterrole", &cluster])?,
            kubectl.get(&["-n", NAMESPACE, "role", role])?,
        ];
        let roles: Vec<Role> = roles
            .into_iter()
            .map(serde_json::from_value)
            .collect::<Result<_, _>>()?;
        let user = format!("system:serviceaccount:{NAMESPACE}:llamero-{part}");
        told.extend(audit::differences(log.lines(), &user, &roles, EXCUSES)?);
    }
    ensure!(told.is_empty(), "{}", told.join("\n"));
    Ok(())
}
