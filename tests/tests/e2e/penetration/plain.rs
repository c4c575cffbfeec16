//! Ports of pods, with the policies enforced, and what the plain ones answer.

use std::process::Command;

use anyhow::{Result, ensure};
use llamero_tests::command;

use super::attempts::Section;
use super::{Target, ip};
use crate::stranger::{Enforced, Stranger};

/// Port of probes and metrics of workers and operator; and of gateways.
const PROBES: u16 = 8080;
const GATEWAY_PROBES: u16 = 8081;

/// A pod with no rights connects to every port.
pub(super) fn ports(target: &Target, stranger: &Stranger<'_>) -> Result<Section> {
    let mut section = Section::new(
        "Ports",
        "Connections of a pod with no rights and no labels, while the NetworkPolicies of chart and operator are enforced.",
    );
    let tries = [
        ("leader", &target.leader, &[18051, 18052, 18100][..]),
        ("member", &target.member, &[18051, 18052, 18100]),
        ("gateway", &target.gateway, &[18053]),
        ("operator", &target.operator, &[18054]),
    ];
    let mut named = Vec::new();
    for (name, pod, ports) in tries {
        for port in ports {
            named.push((format!("{name}, {port}"), (ip(pod)?.to_owned(), *port)));
        }
    }
    // The leader's pod answers it as long as nothing is enforced: else all of this would show nothing.
    ensure!(
        stranger.reaches(ip(&target.leader)?, 18052)?,
        "the control port does not answer"
    );
    let enforced = Enforced::now(target.cluster())?;
    let targets: Vec<_> = named.iter().map(|(_, target)| target.clone()).collect();
    let reached = stranger.reached(&targets)?;
    drop(enforced);
    ensure!(reached.is_empty(), "the stranger reaches {reached:?}");
    for (name, _) in named {
        section.add("a connection", name, "none comes about");
    }
    Ok(section)
}

/// Everything but probes and metrics.
pub(super) fn paths(target: &Target) -> Result<Section> {
    let mut section = Section::new(
        "Plain ports",
        "What the ports of probes and metrics answer beside `/livez`, `/readyz` and `/metrics`.",
    );
    for (name, pod, port) in [
        ("leader, 8080", &target.leader, PROBES),
        ("member, 8080", &target.member, PROBES),
        ("operator, 8080", &target.operator, PROBES),
        ("gateway, 8081", &target.gateway, GATEWAY_PROBES),
    ] {
        let ip = ip(pod)?;
        let code = |method: &str, path: &str| {
            let url = format!("http://{ip}:{port}{path}");
            let words = [
                "-sS",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "--path-as-is",
                "--max-time",
                "10",
                "-X",
                method,
                &url,
            ];
            command::output(Command::new("curl").args(words))
        };
        ensure!(code("GET", "/livez")? == "200", "{name} does not answer");
        for (method, path) in [
            ("GET", "/"),
            ("GET", "/debug/pprof/"),
            ("GET", "/metrics/../config"),
            ("GET", "/v1/models"),
            ("POST", "/llamero.v1.RankControl/Form"),
            ("POST", "/llamero.v1.RankControl/Drain"),
            ("POST", "/vllm.Inference/Generate"),
            ("POST", "/metrics"),
            ("DELETE", "/readyz"),
        ] {
            let answer = code(method, path)?;
            ensure!(
                ["404", "405"].contains(&answer.as_str()),
                "{method} {path} at {name}: {answer}"
            );
            section.add(format!("`{method} {path}`"), name, answer);
        }
    }
    Ok(section)
}
