//! Who may call what: the one table, which servers enforce (see [`crate::guard`]), tests walk through and
//! `docs/threat-model.md` shows.

use crate::accept::Who;
use crate::spiffe::{Identity, Role};

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// An operator pod of the installation.
    Operator,
    /// A gateway pod of the installation.
    Gateway,
    /// A worker pod.
    Worker,
    /// A client that a user admits to a deployment's leaders by a certificate of an authority of their own; in plain text whoever reaches them.
    Client,
    /// Such a client whose certificate says nothing but a common name that the user lists for it (`worker.inference.adapterClients`).
    AdapterClient,
    /// Whoever reaches the port: the call itself proves who it is.
    Anybody,
}

/// One gRPC service, or one of its methods that others may call than its service, and its callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Full name of the service, or `SERVICE/Method`.
    pub service: &'static str,
    /// Who serves it, and where.
    pub server: &'static str,
    /// Who may call it.
    pub callers: &'static [Caller],
    /// What it is for.
    pub purpose: &'static str,
}

/// Who loads an adapter has workers read files, and takes room from others.
const ADAPTERS: &[Caller] = &[Caller::Operator, Caller::AdapterClient];

/// Certificates of clients are asked for at the inference port only.
const INFERENCE: &[Caller] = &[Caller::Operator, Caller::Gateway, Caller::Client];

/// The table. What is not in it nobody may call.
pub const TABLE: &[Rule] = &[
    Rule {
        service: "llamero.v1.RankControl",
        server: "worker, 18052",
        callers: &[Caller::Operator],
        purpose: "form, watch and drain a group",
    },
    Rule {
        service: "llamero.v1.Completion",
        server: "leader, 18051",
        callers: INFERENCE,
        purpose: "inference",
    },
    Rule {
        service: "vllm.Inference",
        server: "leader, 18051",
        callers: INFERENCE,
        purpose: "inference",
    },
    Rule {
        service: "vllm.Control",
        server: "leader, 18051",
        callers: INFERENCE,
        purpose: "what is served",
    },
    Rule {
        service: "vllm.Control/LoadLora",
        server: "leader, 18051",
        callers: ADAPTERS,
        purpose: "load an adapter",
    },
    Rule {
        service: "vllm.Control/UnloadLora",
        server: "leader, 18051",
        callers: ADAPTERS,
        purpose: "unload an adapter",
    },
    Rule {
        service: "llamero.v1.Telemetry",
        server: "leader, 18051",
        callers: INFERENCE,
        purpose: "load",
    },
    Rule {
        service: "llamero.v1.Demand",
        server: "gateway, 18053",
        callers: &[Caller::Operator],
        purpose: "requests that are held",
    },
    Rule {
        service: "llamero.v1.Quota",
        server: "gateway, 18053",
        callers: &[Caller::Gateway],
        purpose: "limits of API keys",
    },
    Rule {
        service: "grpc.health.v1.Health",
        server: "worker, gateway",
        callers: INFERENCE,
        purpose: "whether it serves",
    },
    Rule {
        service: "grpc.reflection.v1.ServerReflection",
        server: "worker, gateway",
        callers: INFERENCE,
        purpose: "what is served",
    },
    Rule {
        service: "grpc.reflection.v1alpha.ServerReflection",
        server: "worker",
        callers: INFERENCE,
        purpose: "what is served",
    },
    Rule {
        service: "llamero.v1.Enrolment",
        server: "operator, 18054",
        callers: &[Caller::Anybody],
        purpose: "a certificate for the pod that a token is bound to",
    },
];

/// Whom the table means in this place.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Namespace in which operator and gateways count.
    pub installation: String,
    /// Common names of clients that may load adapters.
    pub adapter_clients: Vec<String>,
}

/// Whether `who` may call `path`, which is `SERVICE/Method`.
#[must_use]
pub fn may_call(who: &Who, known: &Known, path: &str) -> bool {
    let service = path.split('/').next().unwrap_or_default();
    let named = |name: &str| TABLE.iter().find(|rule| rule.service == name);
    let Some(rule) = named(path).or_else(|| named(service)) else {
        return false;
    };
    rule.callers.iter().any(|caller| is(*caller, who, known))
}

fn is(caller: Caller, who: &Who, known: &Known) -> bool {
    match (caller, who) {
        (Caller::Anybody, _) | (Caller::Client, Who::Client(_)) => true,
        (Caller::AdapterClient, Who::Client(subject)) => {
            let mut names = known.adapter_clients.iter();
            names.any(|name| subject.strip_prefix("CN=") == Some(name.as_str()))
        }
        (_, Who::Part(identity)) => part(identity, &known.installation) == Some(caller),
        _ => false,
    }
}

fn part(peer: &Identity, installation: &str) -> Option<Caller> {
    let is_own = peer.namespace == installation;
    match &peer.role {
        Role::Operator => is_own.then_some(Caller::Operator),
        Role::Gateway => is_own.then_some(Caller::Gateway),
        Role::Worker { .. } => Some(Caller::Worker),
    }
}

/// The table for people, in Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut text = "| service | served by | may be called by | for |\n|---|---|---|---|\n".to_owned();
    for rule in TABLE {
        let callers: Vec<&str> = rule.callers.iter().map(|caller| name(*caller)).collect();
        text.push_str(&format!(
            "| `{}` | {} | {} | {} |\n",
            rule.service,
            rule.server,
            callers.join(", "),
            rule.purpose
        ));
    }
    text
}

const fn name(caller: Caller) -> &'static str {
    match caller {
        Caller::Operator => "operator",
        Caller::Gateway => "gateway",
        Caller::Worker => "worker",
        Caller::Client => "client",
        Caller::AdapterClient => "client that `adapterClients` names",
        Caller::Anybody => "whoever has a token",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn peer(namespace: &str, role: Role) -> Who {
        Who::Part(Arc::new(Identity {
            trust_domain: "d".into(),
            namespace: namespace.into(),
            role,
            pod: "p".into(),
        }))
    }

    fn known() -> Known {
        Known {
            installation: "system".into(),
            adapter_clients: vec!["deployer".into()],
        }
    }

    fn client(subject: &str) -> Who {
        Who::Client(subject.into())
    }

    #[test]
    fn everybody_may_call_what_the_table_says_and_nothing_else() {
        let worker = Role::Worker { group: "g".into() };
        let callers: [(Who, &[Caller]); 9] = [
            (peer("system", Role::Operator), &[Caller::Operator]),
            (peer("system", Role::Gateway), &[Caller::Gateway]),
            (peer("team", worker.clone()), &[Caller::Worker]),
            (peer("system", worker), &[Caller::Worker]),
            (client("CN=x"), &[Caller::Client]),
            (client("CN=deployer"), &[Caller::Client, Caller::AdapterClient]),
            // Of another installation, or named so by an authority that signs for several.
            (peer("team", Role::Operator), &[]),
            (peer("team", Role::Gateway), &[]),
            (Who::Unknown, &[]),
        ];
        for rule in TABLE {
            for (who, is) in &callers {
                let expected = rule.callers == [Caller::Anybody]
                    || is.iter().any(|caller| rule.callers.contains(caller));
                for path in [rule.service.to_owned(), format!("{}/Method", rule.service)] {
                    // What is said of a method is said of no other.
                    if path.matches('/').count() < 2 {
                        assert_eq!(may_call(who, &known(), &path), expected, "{who:?} {path}");
                    }
                }
            }
        }
        let operator = peer("system", Role::Operator);
        assert!(!may_call(&operator, &known(), "llamero.v1.Unknown/Method"));
        assert!(may_call(&client("CN=x"), &known(), "vllm.Control/ListLoras"));
    }

    #[test]
    fn adapters_are_loaded_by_whom_the_user_names_and_by_nobody_who_is_called_alike() {
        for subject in [
            "",
            "deployer",
            "CN=deployer2",
            "CN=deployer, O=x",
            "O=x, CN=deployer",
            "CN=deployer + O=x",
            "CN=CN=deployer",
        ] {
            for method in ["LoadLora", "UnloadLora"] {
                let path = format!("vllm.Control/{method}");
                assert!(!may_call(&client(subject), &known(), &path), "{subject}");
                assert!(may_call(&client("CN=deployer"), &known(), &path));
                assert!(!may_call(&peer("system", Role::Gateway), &known(), &path));
                assert!(!may_call(&client("CN=deployer"), &Known::default(), &path));
            }
        }
    }

    #[test]
    fn no_worker_may_control_another() {
        let worker = peer("team", Role::Worker { group: "g".into() });
        assert!(TABLE.iter().all(|rule| {
            rule.callers.contains(&Caller::Anybody) || !may_call(&worker, &known(), rule.service)
        }));
    }

    #[test]
    fn the_page_shows_the_table() {
        let page = include_str!("../../docs/threat-model.md");
        assert!(
            page.contains(&markdown()),
            "docs/threat-model.md must hold this table:\n{}",
            markdown()
        );
    }
}
