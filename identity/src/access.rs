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
    /// A client that a user admits to a deployment's leaders by a certificate of an authority of their own.
    Client,
    /// Whoever reaches the port: the call itself proves who it is.
    Anybody,
}

/// One gRPC service and its callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Full name of the service.
    pub service: &'static str,
    /// Who serves it, and where.
    pub server: &'static str,
    /// Who may call it.
    pub callers: &'static [Caller],
    /// What it is for.
    pub purpose: &'static str,
}

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

/// Whether `who` may call methods of `service`; operator and gateways count only in the namespace `installation`.
#[must_use]
pub fn may_call(who: &Who, installation: &str, service: &str) -> bool {
    let Some(rule) = TABLE.iter().find(|rule| rule.service == service) else {
        return false;
    };
    let caller = match who {
        Who::Unknown => None,
        Who::Part(identity) => caller(identity, installation),
        Who::Client(_) => Some(Caller::Client),
    };
    rule.callers
        .iter()
        .any(|allowed| *allowed == Caller::Anybody || Some(*allowed) == caller)
}

fn caller(peer: &Identity, installation: &str) -> Option<Caller> {
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

    #[test]
    fn everybody_may_call_what_the_table_says_and_nothing_else() {
        let worker = Role::Worker { group: "g".into() };
        let callers = [
            (peer("system", Role::Operator), Some(Caller::Operator)),
            (peer("system", Role::Gateway), Some(Caller::Gateway)),
            (peer("team", worker.clone()), Some(Caller::Worker)),
            (peer("system", worker), Some(Caller::Worker)),
            (Who::Client("CN=x".into()), Some(Caller::Client)),
            // Of another installation, or named so by an authority that signs for several.
            (peer("team", Role::Operator), None),
            (peer("team", Role::Gateway), None),
            (Who::Unknown, None),
        ];
        for rule in TABLE {
            for (who, caller) in &callers {
                let expected =
                    rule.callers == [Caller::Anybody] || caller.is_some_and(|c| rule.callers.contains(&c));
                assert_eq!(
                    may_call(who, "system", rule.service),
                    expected,
                    "{who:?} {}",
                    rule.service
                );
            }
        }
        let operator = peer("system", Role::Operator);
        assert!(!may_call(&operator, "system", "llamero.v1.Unknown"));
    }

    #[test]
    fn no_worker_may_control_another() {
        let worker = peer("team", Role::Worker { group: "g".into() });
        assert!(TABLE.iter().all(|rule| {
            rule.callers.contains(&Caller::Anybody) || !may_call(&worker, "system", rule.service)
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
