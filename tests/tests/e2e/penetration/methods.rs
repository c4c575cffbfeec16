//! All methods of all services at all ports.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use llamero_identity::{Identity, Role};
use llamero_proto::{LLAMERO_DESCRIPTORS, VLLM_DESCRIPTORS};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::Code;

use super::Target;
use super::attempts::Section;
use crate::parts::{
    Answer, Caller, Parts, Port, SYSTEM, gateway, identity, identity_of, operator, port_of_gateway, worker,
};

/// Services that are not in our own definitions.
const OTHERS: [&str; 4] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// Tried with tokens: see [`super::enrolment`].
const ENROL: &str = "/llamero.v1.Enrolment/Enrol";
const DAY: Duration = Duration::from_secs(86_400);

/// Paths of all methods but enrolment.
fn paths() -> Result<Vec<String>> {
    let mut paths: Vec<String> = OTHERS.map(str::to_owned).into();
    for descriptors in [LLAMERO_DESCRIPTORS, VLLM_DESCRIPTORS] {
        for file in FileDescriptorSet::decode(descriptors)?.file {
            for service in &file.service {
                let methods = service.method.iter();
                paths.extend(
                    methods.map(|method| format!("/{}.{}/{}", file.package(), service.name(), method.name())),
                );
            }
        }
    }
    paths.retain(|path| path != ENROL);
    paths.sort();
    paths.dedup();
    Ok(paths)
}

fn callers(parts: &Parts, target: &Target) -> Result<Vec<(&'static str, Caller)>> {
    let (now, elsewhere) = (SystemTime::now(), "elsewhere");
    let of = |identity: &Identity| parts.as_who(identity);
    Ok(vec![
        ("in plain text", Caller::Plain),
        ("over TLS without a certificate", Caller::Anonymous),
        (
            "as the operator, by a foreign authority",
            parts.by_a_foreigner(&operator())?,
        ),
        (
            "as a gateway, by a foreign authority",
            parts.by_a_foreigner(&gateway())?,
        ),
        (
            "as the operator, with a certificate that has ended",
            parts.made_at(&operator(), now - 2 * DAY)?,
        ),
        (
            "as the operator of another trust domain",
            of(&Identity {
                trust_domain: elsewhere.to_owned(),
                ..operator()
            })?,
        ),
        (
            "as an operator in another namespace",
            of(&identity("demo", Role::Operator, "operator"))?,
        ),
        (
            "as a gateway in another namespace",
            of(&identity("demo", Role::Gateway, "gateway"))?,
        ),
        (
            "as a worker of another tenant",
            of(&worker("team", "other-0", "other-0-0-0"))?,
        ),
        (
            "as a worker in the namespace of the installation",
            of(&worker(SYSTEM, "target-0", "target-0-0-0"))?,
        ),
        (
            "as a member of the same group",
            of(&identity_of(&target.member)?)?,
        ),
    ])
}

/// Who should get in at each port does: else refusals would show nothing. The operator's answers whoever comes, and asks for a token.
fn let_in(target: &Target) -> Result<()> {
    let (parts, ports) = (&target.parts, target.ports()?);
    for (index, who, path) in [
        (0, gateway(), "/vllm.Control/GetServerInfo"),
        (1, operator(), "/llamero.v1.RankControl/Watch"),
        (2, operator(), "/llamero.v1.RankControl/Watch"),
        (3, operator(), "/llamero.v1.Demand/Watch"),
    ] {
        let (name, port) = &ports[index];
        let answer = parts.call(port, &parts.as_who(&who)?, path)?;
        ensure!(
            answer == Answer::Done,
            "{who} is not let in to {path} at {name}: {answer:?}"
        );
    }
    Ok(())
}

/// Tries them all.
pub(super) fn all(target: &Target) -> Result<Section> {
    let_in(target)?;
    let mut section = Section::new(
        "Calls",
        "Every method of every gRPC service, whether it is served there or not, as if no NetworkPolicy were enforced. `TLS` means that the connection did not \
         come about; else the status of the answers.",
    );
    let (parts, paths, ports) = (&target.parts, paths()?, target.ports()?);
    for (who, caller) in callers(parts, target)? {
        for (name, port) in &ports {
            let mut answers = BTreeSet::new();
            for path in &paths {
                let answer = parts.call(port, &caller, path)?;
                let (refused, shown) = judge(&answer);
                ensure!(refused, "{who}: {path} at {name} is answered with {answer:?}");
                answers.insert(shown);
            }
            let answers: Vec<String> = answers.into_iter().collect();
            section.add(
                format!("{who}: all {} methods", paths.len()),
                *name,
                answers.join(", "),
            );
        }
    }
    public(target, &paths, &mut section)?;
    let_in(target)?;
    Ok(section)
}

/// Clients' port of the gateway, which is open to who has a key: what the parts ask each other is not served there.
fn public(target: &Target, paths: &[String], section: &mut Section) -> Result<()> {
    let port = Port {
        address: format!("{}:8000", super::ip(&target.gateway)?),
        ..port_of_gateway(&target.gateway)?
    };
    let own: Vec<&String> = paths
        .iter()
        .filter(|path| path.starts_with("/llamero."))
        .collect();
    ensure!(!own.is_empty(), "there are no methods of Llamero's own");
    for path in &own {
        let answer = target.parts.call(&port, &Caller::Plain, path)?;
        let unknown = matches!(&answer, Answer::Status(Code::Unimplemented, _));
        ensure!(
            unknown,
            "{path} at the gateway's port is answered with {answer:?}"
        );
    }
    section.add(
        format!("in plain text: the {} methods of Llamero's own parts", own.len()),
        "gateway, 8000, gRPC",
        "`Unimplemented`".to_owned(),
    );
    Ok(())
}

/// Whether it is a refusal, and how the page calls it.
pub(super) fn judge(answer: &Answer) -> (bool, String) {
    match answer {
        Answer::NoConnection(why) => (is_of_tls(why), "TLS".to_owned()),
        Answer::Status(code @ (Code::PermissionDenied | Code::Unauthenticated), _) => {
            (true, format!("`{code:?}`"))
        }
        Answer::Status(code, _) => (false, format!("`{code:?}`")),
        Answer::Done => (false, "done".to_owned()),
    }
}

/// Whether somebody was there, took the connection and ended it: whether the alert of TLS comes before the end is a race.
fn is_of_tls(why: &str) -> bool {
    let elsewhere = [
        "Connection refused",
        "timed out",
        "deadline",
        "unreachable",
        "No route",
        "no certificate yet",
    ];
    elsewhere.iter().all(|part| !why.contains(part))
}
