//! Two gateways in front of two groups: TLS and keys from Secrets that change, limits over both, and conversations that find their caches.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::Kubectl;
use llamero_tests::command::{output, output_with_input};
use llamero_tests::poll;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::chat_on;
use crate::fixture::{Deployment, SOON};
use crate::installation::{Installed, pods_of};
use crate::parts::SYSTEM;
use crate::routing;

const HOST: &str = "gateway.test";
pub(crate) const MODEL: &str = "edge";
pub(crate) const FREE: &str = "sk-free-0123456789abcdef";
const LIMITED: &str = "sk-limited-0123456789abcdef";
const LATER: &str = "sk-later-0123456789abcdef";
/// Requests a minute of the limited key: many beside the two gateways, few beside what they answer in a minute.
const LIMIT: usize = 30;

/// Secrets of the gateways, and the certificate that clients trust.
pub(crate) struct Secrets {
    kubectl: Kubectl,
    folder: TempDir,
}

impl Secrets {
    /// Another certificate and these keys.
    fn write(&self, keys: &str) -> Result<()> {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([HOST.to_owned()])?;
        std::fs::write(self.folder.path().join("ca.crt"), cert.pem())?;
        let secret = |name: &str, kind: &str, data: Value| {
            let metadata = json!({"name": name, "namespace": SYSTEM});
            self.kubectl.apply(&json!({"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": metadata, "stringData": data}))
        };
        let pair = json!({"tls.crt": cert.pem(), "tls.key": signing_key.serialize_pem()});
        secret("edge-tls", "kubernetes.io/tls", pair)?;
        secret("edge-keys", "Opaque", json!({"keys.yaml": keys}))
    }

    /// `curl` that trusts the certificate and shows a key; ends with a route of one gateway.
    fn curl(&self, ip: &str, key: &str, words: &[&str], route: &str) -> Command {
        let mut curl = Command::new("curl");
        curl.args([
            "-sS",
            "--max-time",
            "60",
            "--resolve",
            &format!("{HOST}:8000:{ip}"),
        ]);
        curl.arg("--cacert").arg(self.folder.path().join("ca.crt"));
        curl.args(["-H", &format!("authorization: Bearer {key}")]);
        curl.args(words).arg(format!("https://{HOST}:8000{route}"));
        curl
    }

    /// Whether a gateway knows a key. An error where TLS fails.
    fn knows(&self, ip: &str, key: &str) -> Result<bool> {
        let code = output(&mut self.curl(ip, key, &["-o", "/dev/null", "-w", "%{http_code}"], "/v1/models"))?;
        ensure!(["200", "401"].contains(&code.as_str()), "HTTP {code}");
        Ok(code == "200")
    }

    /// Status code and answer of one gateway, and the seconds that it took.
    pub(crate) fn ask(&self, ip: &str, key: &str, session: &str, body: &Value) -> Result<(u16, Value, f64)> {
        let session = format!("x-session-id: {session}");
        let mut words = vec![
            "-w",
            "\n%{http_code} %{time_total}",
            "-H",
            "content-type: application/json",
        ];
        // A header without a value is not sent.
        words.extend(["-H", &session, "--data-binary", "@-"]);
        let mut curl = self.curl(ip, key, &words, "/v1/chat/completions");
        let output = output_with_input(&mut curl, body.to_string().as_bytes())?;
        let (answer, figures) = output
            .trim_end()
            .rsplit_once('\n')
            .context("curl printed no status code")?;
        let (code, seconds) = figures.split_once(' ').context("curl printed no time")?;
        Ok((code.parse()?, serde_json::from_str(answer)?, seconds.parse()?))
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        let _ = self.kubectl.run(&[
            "-n",
            SYSTEM,
            "delete",
            "secret",
            "edge-tls",
            "edge-keys",
            "--ignore-not-found",
        ]);
    }
}

/// Addresses of both gateways, and how often their containers were started again.
fn gateways(kubectl: &Kubectl) -> Result<(Vec<String>, u64)> {
    let pods = pods_of(kubectl, "llamero-gateway")?;
    let restarts = pods
        .iter()
        .filter_map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_u64());
    let staying = pods
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let ips: Vec<String> = staying
        .filter_map(|pod| pod["status"]["podIP"].as_str().map(str::to_owned))
        .collect();
    ensure!(ips.len() == 2, "there are {} gateways", ips.len());
    Ok((ips, restarts.sum()))
}

#[test]
#[ignore = "takes minutes: changes of Secrets reach pods within a minute, limits are those of a minute"]
fn two_gateways_keep_limits_and_take_up_secrets() -> Result<()> {
    let deployment = Deployment::create(MODEL, json!({"parallelism": {"tensor": 1}, "replicas": 2}))?;
    let secrets = Secrets {
        kubectl: deployment.kubectl(),
        folder: TempDir::new()?,
    };
    let keys = format!(
        "keys: [{{name: free, key: {FREE}}}, {{name: limited, key: {LIMITED}, limits: {{requestsPerMinute: {LIMIT}}}}}"
    );
    secrets.write(&format!("{keys}]"))?;
    let installed = Installed::with(&[
        "gateway.replicas=2",
        "gateway.tls.secretName=edge-tls",
        "gateway.apiKeys.secretName=edge-keys",
    ])?;
    deployment.wait_ready(2)?;
    let (ips, restarts) = poll::until("two gateways", SOON, || Ok(Some(gateways(&secrets.kubectl)?)))?;
    for ip in &ips {
        poll::until("an answer over TLS", SOON, || {
            let (code, answer, _) = secrets.ask(ip, FREE, "", &chat_on(MODEL, "Hello", 1))?;
            ensure!(code == 200, "HTTP {code}: {answer}");
            Ok(Some(()))
        })?;
        ensure!(!secrets.knows(ip, LATER)?, "an unknown key gets in");
    }
    limits(&secrets, &ips)?;
    routing::compare(&secrets, &ips)?;
    // Both Secrets change: other clients trust another certificate, and one more key is known.
    secrets.write(&format!("{keys}, {{name: later, key: {LATER}}}]"))?;
    for ip in &ips {
        poll::until("the new certificate and key", SOON, || {
            ensure!(secrets.knows(ip, LATER)?, "the key is not known");
            Ok(Some(()))
        })?;
    }
    let (now, again) = gateways(&secrets.kubectl)?;
    ensure!(
        again == restarts && now.iter().all(|ip| ips.contains(ip)),
        "gateways were started again"
    );
    drop(installed);
    Ok(())
}

/// What the limited key may ask in a minute, over both gateways in turn.
fn limits(secrets: &Secrets, ips: &[String]) -> Result<()> {
    // What other gateways did before these two knew each other counts as spent for a minute.
    let known = Instant::now();
    poll::until("a minute to pass", SOON, || {
        Ok((known.elapsed() > Duration::from_secs(65)).then_some(()))
    })?;
    let begun = Instant::now();
    let mut served = 0;
    for turn in 0..LIMIT * 2 {
        let (code, answer, _) =
            secrets.ask(&ips[turn % ips.len()], LIMITED, "", &chat_on(MODEL, "Hello", 1))?;
        ensure!(code == 200 || code == 429, "HTTP {code}: {answer}");
        served += usize::from(code == 200);
    }
    let seconds = begun.elapsed().as_secs();
    println!(
        "{served} of {} requests were served in {seconds} s; {LIMIT} a minute are allowed",
        LIMIT * 2
    );
    // Whoever takes longer may ask more, by the part of the minute that has passed.
    let most = LIMIT * 11 / 10 + LIMIT * usize::try_from(seconds)? / 60;
    ensure!(
        (LIMIT * 9 / 10..=most).contains(&served),
        "{served} requests were served in {seconds} s"
    );
    Ok(())
}
