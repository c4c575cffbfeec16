//! Tokens of others, and what is no token.

use anyhow::{Context, Result, bail};
use llamero_identity::enrol::client::{Enrolment, Roots};
use serde_json::Value;
use tonic::Code;

use super::Target;
use super::attempts::Section;
use super::methods::judge;
use crate::fixture::{NAMESPACE, name_of};
use crate::parts::{Caller, SYSTEM, TRUST_DOMAIN, port_of_operator};

const ENROL: &str = "/llamero.v1.Enrolment/Enrol";
/// Where the page says that it was tried.
const AT: &str = "operator, enrolment (18054)";

/// Tries them all. There are fewer than an address may send at once.
pub(super) fn all(target: &Target) -> Result<Section> {
    let mut section = Section::new(
        "Enrolment",
        "A certificate is asked for with a token that is not the caller's, not for this, or none.",
    );
    let port = port_of_operator(&target.operator)?;
    let plain = target.parts.call(&port, &Caller::Plain, ENROL)?;
    let empty = target.parts.call(&port, &Caller::Anonymous, ENROL)?;
    for (what, answer) in [("in plain text", plain), ("an empty request", empty)] {
        let (refused, shown) = judge(&answer);
        anyhow::ensure!(refused, "{what}: {answer:?}");
        section.add(what, AT, shown);
    }

    let kubectl = target.group.kubectl();
    let stranger = kubectl.get(&["-n", NAMESPACE, "pod", "stranger"])?;
    let token = |namespace: &str, account: &str, more: &[&str]| {
        let words = [&["-n", namespace, "create", "token", account], more].concat();
        Ok::<_, anyhow::Error>(kubectl.run(&words)?.trim().to_owned())
    };
    let bound = |pod: &Value| {
        [
            "--audience=llamero".to_owned(),
            "--bound-object-kind=Pod".to_owned(),
            format!("--bound-object-name={}", name_of(pod)),
        ]
    };
    let (of_stranger, of_leader) = (bound(&stranger), bound(&target.leader));
    let of_stranger: Vec<&str> = of_stranger.iter().map(String::as_str).collect();
    // For the API server and not for enrolment, although of a member.
    let of_leader: Vec<&str> = of_leader[1..].iter().map(String::as_str).collect();
    for (what, token) in [
        (
            "with the token of a pod that is no member",
            token(NAMESPACE, "default", &of_stranger)?,
        ),
        (
            "with a member's token for the API server",
            token(NAMESPACE, "default", &of_leader)?,
        ),
        (
            "with a token of the gateway's account that is bound to no pod",
            token(SYSTEM, "llamero-gateway", &["--audience=llamero"])?,
        ),
        ("with what is no token", "e30.e30.c2lnbmF0dXJl".to_owned()),
    ] {
        section.add(what, AT, refused(target, &port.address, &token).context(what)?);
    }
    Ok(section)
}

fn refused(target: &Target, address: &str, token: &str) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, token)?;
    let enrolment = Enrolment {
        address: address.to_owned(),
        installation: SYSTEM.to_owned(),
        roots: Roots::Pem(target.parts.authority.roots_pem().to_owned()),
        token_file,
        trust_domain: TRUST_DOMAIN.to_owned(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match runtime.block_on(enrolment.enrol(None)) {
        Ok(_) => bail!("a certificate was given"),
        Err(error) => match error.code() {
            Some(code @ (Code::Unauthenticated | Code::PermissionDenied)) => Ok(format!("`{code:?}`")),
            _ => Err(error.into()),
        },
    }
}
