//! What the parts of Llamero ask of the API server, held against what their roles allow: nothing is asked that is not granted, and nothing is granted that
//! nobody asks for.
//!
//! Lines are events of the API server's audit log: <https://kubernetes.io/docs/reference/config-api/apiserver-audit.v1/>.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// A request, as the audit log tells it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    verb: String,
    user: User,
    object_ref: Option<ObjectRef>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct User {
    username: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
    api_group: String,
}

impl ObjectRef {
    /// As a role writes it: `pods`, `pods/status`.
    fn resource(&self) -> String {
        match self.subresource.as_str() {
            "" => self.resource.clone(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }
}

/// A Role or ClusterRole, as far as it matters.
#[derive(Clone, Debug, Deserialize)]
pub struct Role {
    metadata: Metadata,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, Deserialize)]
struct Metadata {
    name: String,
    /// Absent in ClusterRoles, which are bound in the whole cluster here.
    namespace: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    resource_names: Vec<String>,
    verbs: Vec<String>,
}

impl Rule {
    fn allows(&self, verb: &str, object: &ObjectRef) -> bool {
        let named = self.resource_names.is_empty() || self.resource_names.contains(&object.name);
        let (resource, verb) = (object.resource(), verb.to_owned());
        self.api_groups.contains(&object.api_group)
            && self.resources.contains(&resource)
            && self.verbs.contains(&verb)
            && named
    }
}

impl Role {
    fn allows(&self, verb: &str, object: &ObjectRef) -> bool {
        let there = self.metadata.namespace.as_ref();
        there.is_none_or(|namespace| *namespace == object.namespace)
            && self.rules.iter().any(|rule| rule.allows(verb, object))
    }
}

/// Something that may never be asked for in a run of the tests and is granted all the same.
#[derive(Clone, Copy, Debug)]
pub struct Excuse {
    /// The verb.
    pub verb: &'static str,
    /// The resource; `*`: any.
    pub resource: &'static str,
    /// Why it is granted.
    pub why: &'static str,
}

impl Excuse {
    fn covers(&self, verb: &str, resource: &str) -> bool {
        self.verb == verb && (self.resource == "*" || self.resource == resource)
    }
}

/// What is wrong with the roles of a user, in sentences; empty when nothing is. Requests that are about no object count for nothing.
///
/// # Errors
/// When a line is no event.
pub fn differences<'l>(
    lines: impl IntoIterator<Item = &'l str>,
    user: &str,
    roles: &[Role],
    excuses: &[Excuse],
) -> Result<BTreeSet<String>> {
    let mut told = BTreeSet::new();
    let mut used: BTreeSet<(String, String)> = BTreeSet::new();
    for line in lines.into_iter().filter(|line| !line.is_empty()) {
        let event: Event = serde_json::from_str(line).with_context(|| format!("no audit event: {line}"))?;
        let Some(object) = event.object_ref.as_ref().filter(|_| event.user.username == user) else {
            continue;
        };
        let (verb, resource) = (event.verb.as_str(), object.resource());
        let decision = event.annotations.get("authorization.k8s.io/decision");
        let is_refused = decision.is_some_and(|decision| decision == "forbid");
        // An API server that has just started refuses what roles grant until it has read them.
        if !roles.iter().any(|role| role.allows(verb, object)) {
            told.insert(if is_refused {
                format!("{user} was refused to {verb} {resource}: grant it, or do not ask")
            } else {
                format!("{user} may {verb} {resource}, and none of its roles in the chart says so")
            });
        }
        used.insert((verb.to_owned(), resource));
    }
    for role in roles {
        for (verb, resource) in granted(role) {
            let excused = excuses.iter().any(|excuse| excuse.covers(verb, resource));
            if !used.contains(&(verb.to_owned(), resource.to_owned())) && !excused {
                let name = &role.metadata.name;
                told.insert(format!(
                    "{name} lets {user} {verb} {resource}, which it never did: take it out, or say why it stays"
                ));
            }
        }
    }
    Ok(told)
}

fn granted(role: &Role) -> impl Iterator<Item = (&str, &str)> {
    role.rules.iter().flat_map(|rule| {
        let verbs = move |resource| rule.verbs.iter().map(move |verb| (verb.as_str(), resource));
        rule.resources.iter().map(String::as_str).flat_map(verbs)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const OPERATOR: &str = "system:serviceaccount:llamero-system:llamero-operator";

    fn line(verb: &str, object: Value) -> String {
        event(OPERATOR, verb, object, "allow")
    }

    fn event(user: &str, verb: &str, object: Value, decision: &str) -> String {
        json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "stage": "ResponseComplete",
            "requestURI": "/api", "verb": verb, "user": {"username": user, "groups": ["system:authenticated"]},
            "objectRef": object, "responseStatus": {"metadata": {}, "code": 200},
            "annotations": {"authorization.k8s.io/decision": decision},
        })
        .to_string()
    }

    fn roles() -> Vec<Role> {
        let cluster = json!({"kind": "ClusterRole", "metadata": {"name": "llamero-operator"}, "rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch", "create"]},
            {"apiGroups": ["llamero.dev"], "resources": ["llamagroups/status"], "verbs": ["patch"]},
        ]});
        let lease = json!({"kind": "Role", "metadata": {"name": "llamero-operator-lease", "namespace": "llamero-system"}, "rules": [
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["llamero-ca"], "verbs": ["get"]},
        ]});
        [cluster, lease]
            .map(|role| serde_json::from_value(role).unwrap())
            .into()
    }

    fn all() -> Vec<String> {
        let pods = || json!({"resource": "pods", "namespace": "n", "apiVersion": "v1"});
        let status = json!({"resource": "llamagroups", "subresource": "status", "namespace": "n", "name": "g", "apiGroup": "llamero.dev"});
        let secret = json!({"resource": "secrets", "namespace": "llamero-system", "name": "llamero-ca"});
        vec![
            line("list", pods()),
            line("watch", pods()),
            line("create", pods()),
            line("patch", status),
            line("get", secret),
        ]
    }

    fn told(lines: &[String], excuses: &[Excuse]) -> Vec<String> {
        let lines = lines.iter().map(String::as_str);
        let told = differences(lines, OPERATOR, &roles(), excuses).unwrap();
        told.into_iter().collect()
    }

    #[test]
    fn what_is_granted_and_used_is_well() {
        assert_eq!(told(&all(), &[]), [""; 0]);
    }

    #[test]
    fn what_nobody_uses_is_told_unless_there_is_a_reason() {
        let lines = all()[1..].to_vec();
        let unused = told(&lines, &[]);
        assert_eq!(unused.len(), 1, "{unused:?}");
        assert!(
            unused[0].contains("lets") && unused[0].contains("list pods, which it never did"),
            "{unused:?}"
        );
        let why = "lists are streamed";
        for resource in ["pods", "*"] {
            let excuse = Excuse {
                verb: "list",
                resource,
                why,
            };
            assert_eq!(told(&lines, &[excuse]), [""; 0]);
        }
        let other = Excuse {
            verb: "get",
            resource: "*",
            why,
        };
        assert_eq!(told(&lines, &[other]), unused);
    }

    #[test]
    fn what_no_role_grants_is_told_whether_it_was_let_through_or_not() {
        let elsewhere = json!({"resource": "secrets", "namespace": "tenant", "name": "llamero-ca"});
        let another = json!({"resource": "secrets", "namespace": "llamero-system", "name": "of-a-tenant"});
        let whole =
            json!({"resource": "llamagroups", "namespace": "n", "name": "g", "apiGroup": "llamero.dev"});
        for (verb, object) in [("get", elsewhere), ("get", another), ("patch", whole)] {
            let mut lines = all();
            lines.push(line(verb, object.clone()));
            let told = told(&lines, &[]);
            assert_eq!(told.len(), 1, "{object}: {told:?}");
            assert!(
                told[0].contains("none of its roles in the chart says so"),
                "{told:?}"
            );
        }
        let mut lines = all();
        let nodes = json!({"resource": "nodes"});
        lines.push(event(OPERATOR, "list", nodes.clone(), "forbid"));
        assert!(told(&lines, &[])[0].contains("was refused to list nodes"));
        // What others do is their own affair, and so is what is about no object.
        let mut lines = all();
        lines.push(event("system:admin", "delete", nodes, "allow"));
        lines.push(line("get", Value::Null));
        assert_eq!(told(&lines, &[]), [""; 0]);
    }

    #[test]
    fn a_line_that_is_no_event_is_told() {
        let error = differences(["{"], OPERATOR, &roles(), &[]).unwrap_err();
        assert!(error.to_string().contains("no audit event"), "{error}");
    }
}
