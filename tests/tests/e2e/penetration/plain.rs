//! Ports of pods, with the policies enforced, and what the plain ones answer.

use std::process::Command;

use anyhow::{Result, ensure};
use llamero_tests::command;
use serde_json::json;

use super::attempts::Section;
use super::{OTHERS, Target, ip};
use crate::stranger::{Enforced, Stranger};

/// Port of probes and metrics of workers and operator; and of gateways.
const PROBES: u16 = 8080;
const GATEWAY_PROBES: u16 = 8081;

/// Pods with no rights connect to every port. One of them wears a worker's label, with which it may ask for a certificate.
pub(super) fn ports(target: &Target, stranger: &Stranger<'_>) -> Result<Section> {
    let mut section = Section::new(
        "Ports",
        "Connections of two pods with no rights, while the NetworkPolicies of chart and operator are enforced: one has no labels, the other lies in another namespace and has the labels of \
         the group's own pods, with which it reaches nothing but enrolment.",
    );
    let labels = json!({"app.kubernetes.io/name": "llamero-worker", "llamero.dev/deployment": "target"});
    let poser = Stranger::wearing(target.cluster(), OTHERS, labels)?;
    let tries = [
        ("leader", &target.leader, &[18051, 18052, 18100][..]),
        // A member serves nobody at 18051.
        ("member", &target.member, &[18052, 18100]),
        ("gateway", &target.gateway, &[18053]),
        ("operator", &target.operator, &[18054]),
    ];
    let mut named = Vec::new();
    for (name, pod, ports) in tries {
        for port in ports {
            named.push((format!("{name}, {port}"), (ip(pod)?.to_owned(), *port)));
        }
    }
    let targets: Vec<_> = named.iter().map(|(_, target)| target.clone()).collect();
    // All of these answer as long as nothing is enforced: else this would show nothing.
    let open = stranger.reached(&targets)?;
    ensure!(
        open == targets,
        "with nothing enforced the stranger reaches {open:?} only"
    );
    let enforced = Enforced::now(target.cluster())?;
    let (reached, by_poser) = (stranger.reached(&targets)?, poser.reached(&targets)?);
    drop(enforced);
    ensure!(reached.is_empty(), "the stranger reaches {reached:?}");
    ensure!(
        by_poser == [(ip(&target.operator)?.to_owned(), 18054)],
        "a pod with a worker's labels reaches {by_poser:?}"
    );
    for (name, (_, port)) in named {
        section.add("without labels", &name, "no connection");
        if port != 18054 {
            section.add(
                "with a worker's labels, from another namespace",
                name,
                "no connection",
            );
        }
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
