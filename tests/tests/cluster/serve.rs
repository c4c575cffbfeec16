//! What works on an undisturbed cluster.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::Cluster;
use llamero_tests::{command, poll};

use crate::SOON;
use crate::pods::{NAMESPACE, PORT, Pods};

pub(crate) fn traffic_crosses_the_cable(cluster: &Cluster, pods: &Pods, node: &str) -> Result<()> {
    pods.exec(
        "second",
        &["dd", "if=/dev/zero", "of=/tmp/large", "bs=1M", "count=8"],
    )?;
    let before = cluster.link_bytes(node)?;
    let url = format!("{}large", pods.url("second")?);
    let count = pods.exec(
        "first",
        &[
            "sh",
            "-c",
            &format!("/bin/busybox wget -q -O - {url} | /bin/busybox wc -c"),
        ],
    )?;
    ensure!(count.trim() == (8 << 20).to_string(), "got {count} bytes");
    let after = cluster.link_bytes(node)?;
    ensure!(
        after.sent - before.sent > 8 << 20,
        "8 MiB have left the node: {before:?} {after:?}"
    );
    Ok(())
}

pub(crate) fn names_and_service_addresses_work(pods: &Pods) -> Result<()> {
    for name in ["web", "web.cluster-test", "web.cluster-test.svc.cluster.local"] {
        let fetch = || Ok(Some(pods.fetch("first", &format!("http://{name}/"))?));
        let text = poll::until(&format!("an answer from {name}"), SOON, fetch)?;
        ensure!(
            ["first", "second"].contains(&text.trim()),
            "{name} answers {text}"
        );
    }
    Ok(())
}

pub(crate) fn pods_reach_the_api_server(pods: &Pods) -> Result<()> {
    // It speaks TLS; a plain request is enough to see that it is there.
    let ask = r#"printf "GET / HTTP/1.0\r\n\r\n" | /bin/busybox nc -w 2 kubernetes.default 443"#;
    let answer = pods.exec("first", &["sh", "-c", ask])?;
    ensure!(
        answer.contains("HTTP request to an HTTPS server"),
        "the API server answers {answer:?}"
    );
    Ok(())
}

pub(crate) fn the_machine_reaches_pods_and_services(pods: &Pods) -> Result<()> {
    ensure!(
        fetch(&pods.url("second")?)?.trim() == "second",
        "a pod's address reaches that pod"
    );
    let service = pods.value("service/web", "/spec/clusterIP")?;
    let url = format!(
        "http://{}/",
        service.as_str().context("a Service has an address")?
    );
    // Several, so that pods on both nodes are asked.
    for _ in 0..8 {
        ensure!(
            ["first", "second"].contains(&fetch(&url)?.trim()),
            "a Service's address reaches one of its pods"
        );
    }
    Ok(())
}

pub(crate) fn an_image_is_a_volume(pods: &Pods) -> Result<()> {
    let listing = pods.exec("first", &["ls", "/volume/bin"])?;
    ensure!(
        listing.contains("busybox"),
        "the image's files are in the volume: {listing}"
    );
    Ok(())
}

pub(crate) fn ports_are_forwarded(cluster: &Cluster, pods: &Pods) -> Result<()> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let words = [
        "--namespace",
        NAMESPACE,
        "port-forward",
        "pod/first",
        &format!("{port}:{PORT}"),
    ];
    let mut forward = cluster
        .kubectl()
        .command(&words)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let answer = poll::until("an answer through the forwarded port", SOON, || {
        Ok(Some(fetch(&format!("http://127.0.0.1:{port}/"))?))
    });
    forward.kill()?;
    forward.wait()?;
    ensure!(answer?.trim() == "first", "the pod answers");
    ensure!(pods.run(&["logs", "first"]).is_ok(), "logs can be read");
    Ok(())
}

/// What the machine gets from `url`.
pub(crate) fn fetch(url: &str) -> Result<String> {
    command::output(Command::new("curl").args(["--silent", "--fail", "--max-time", "3", url]))
}
