//! What works on an undisturbed cluster.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;

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
    poll::until("the API server's answer to a pod", SOON, || {
        let answer = pods.exec("first", &["sh", "-c", ask])?;
        ensure!(
            answer.contains("HTTP request to an HTTPS server"),
            "the API server answers {answer:?}"
        );
        Ok(Some(()))
    })
}

pub(crate) fn the_machine_reaches_pods_and_services(pods: &Pods) -> Result<()> {
    answers(&pods.url("second")?, &["second"]).context("a pod's address reaches that pod")?;
    let service = pods.value("service/web", "/spec/clusterIP")?;
    let url = format!(
        "http://{}/",
        service.as_str().context("a Service has an address")?
    );
    // Several, so that pods on both nodes are asked.
    for _ in 0..8 {
        answers(&url, &["first", "second"]).context("a Service's address reaches one of its pods")?;
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
    let forward = Forward::start(cluster)?;
    answers(&format!("http://127.0.0.1:{}/", forward.port), &["first"])?;
    ensure!(pods.run(&["logs", "first"]).is_ok(), "logs can be read");
    Ok(())
}

/// `kubectl port-forward` to the first pod. Killed when dropped.
struct Forward {
    kubectl: Child,
    /// Of this machine, chosen by `kubectl`.
    port: u16,
}

impl Forward {
    fn start(cluster: &Cluster) -> Result<Self> {
        let port = format!(":{PORT}");
        let words = ["--namespace", NAMESPACE, "port-forward", "pod/first", &port];
        let kubectl = cluster.kubectl().command(&words).stdout(Stdio::piped()).spawn()?;
        let mut this = Self { kubectl, port: 0 };
        let output = this.kubectl.stdout.take().context("kubectl has no output")?;
        let (ports, chosen) = channel();
        // It reads to the end: kubectl would be ended by a pipe that nobody reads.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let port = line
                    .strip_prefix("Forwarding from 127.0.0.1:")
                    .and_then(|rest| rest.split(' ').next()?.parse::<u16>().ok());
                if let Some(port) = port {
                    // Nobody waits any more after a failure.
                    let _ = ports.send(port);
                }
            }
        });
        this.port = chosen
            .recv_timeout(SOON)
            .context("kubectl has not said which port it forwards")?;
        Ok(this)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

/// Waits until the machine gets an answer from `url`, which must be one of these words from the first one on.
pub(crate) fn answers(url: &str, words: &[&str]) -> Result<()> {
    let answer = poll::until(&format!("an answer from {url}"), SOON, || fetch(url).map(Some))?;
    ensure!(words.contains(&answer.trim()), "{url} answers {answer}");
    Ok(())
}

/// What the machine gets from `url`.
pub(crate) fn fetch(url: &str) -> Result<String> {
    command::output(Command::new("curl").args(["--silent", "--fail", "--max-time", "3", url]))
}
