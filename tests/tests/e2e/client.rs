//! Asking the gateway as an application does, with `curl`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::Cluster;
use llamero_tests::command::output;
use llamero_tests::poll;
use serde_json::{Value, json};

use crate::fixture::SOON;

/// `curl` gives up after so many seconds: a hang is noticed, and a loaded machine may take its time.
const ANSWER_SECONDS: &str = "600";
/// Port of the gateway's metrics.
const METRICS_PORT: u16 = 8081;

/// Address of a ready gateway pod.
pub(crate) fn gateway(cluster: &Cluster) -> Result<String> {
    poll::until("a ready gateway", SOON, || {
        let words = [
            "-n",
            "llamero-system",
            "pods",
            "-l",
            "app.kubernetes.io/name=llamero-gateway",
        ];
        let pods = cluster.kubectl().get(&words)?;
        let ready = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array();
            conditions.is_some_and(|all| {
                all.iter()
                    .any(|one| one["type"] == "Ready" && one["status"] == "True")
            }) && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let found = pods["items"].as_array().and_then(|all| all.iter().find(ready));
        Ok(found
            .and_then(|pod| pod["status"]["podIP"].as_str())
            .map(|ip| format!("{ip}:8000")))
    })
}

/// A chat request with temperature 0.
pub(crate) fn chat(model: &str, prompt: &str, tokens: u32) -> Value {
    json!({
        "model": model, "temperature": 0, "max_tokens": tokens,
        "messages": [{"role": "user", "content": prompt}]
    })
}

/// The same, and the answer has exactly so many tokens: it goes on behind the end of the text.
pub(crate) fn chat_on(model: &str, prompt: &str, tokens: u32) -> Value {
    let mut request = chat(model, prompt, tokens);
    request["ignore_eos"] = json!(true);
    request
}

/// Posts `body` and returns status code and answer.
pub(crate) fn post(cluster: &Cluster, path: &str, body: &[u8]) -> Result<(u16, Value)> {
    let url = format!("http://{}{path}", gateway(cluster)?);
    let mut command = Command::new("curl");
    command.args([
        "-sS",
        "--max-time",
        ANSWER_SECONDS,
        "-w",
        "\n%{http_code}",
        "-H",
        "content-type: application/json",
    ]);
    command.args(["--data-binary", "@-", &url]);
    let output = llamero_tests::command::output_with_input(&mut command, body)?;
    let (answer, code) = output
        .trim_end()
        .rsplit_once('\n')
        .context("curl printed no status code")?;
    let value = serde_json::from_str(answer).with_context(|| format!("the answer is no JSON: {answer}"))?;
    Ok((code.parse()?, value))
}

/// The whole answer's text.
pub(crate) fn ask(cluster: &Cluster, request: &Value) -> Result<String> {
    let (code, answer) = post(cluster, "/v1/chat/completions", request.to_string().as_bytes())?;
    ensure!(code == 200, "HTTP {code}: {answer}");
    let text = answer["choices"][0]["message"]["content"].as_str();
    Ok(text.with_context(|| format!("no text in {answer}"))?.to_owned())
}

/// A running stream of chat chunks.
pub(crate) struct Stream {
    curl: Child,
    /// The gateway's `ip:port`.
    gateway: String,
    model: String,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    pub(crate) text: String,
    pub(crate) finish: Option<String>,
}

impl Stream {
    pub(crate) fn start(cluster: &Cluster, mut request: Value) -> Result<Self> {
        request["stream"] = json!(true);
        let gateway = gateway(cluster)?;
        let url = format!("http://{gateway}/v1/chat/completions");
        let model = request["model"].as_str().context("no model")?.to_owned();
        let mut curl = Command::new("curl")
            .args([
                "-sSN",
                "--max-time",
                ANSWER_SECONDS,
                "-H",
                "content-type: application/json",
            ])
            .args(["--data-binary", &request.to_string(), &url])
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(curl.stdout.take().context("curl has no output")?).lines();
        Ok(Self {
            curl,
            gateway,
            model,
            lines,
            text: String::new(),
            finish: None,
        })
    }

    /// Reads on until the text has `bytes` bytes or the stream ends; true while it goes on.
    pub(crate) fn read_to(&mut self, bytes: usize) -> Result<bool> {
        while self.text.len() < bytes {
            let Some(line) = self.lines.next() else {
                return Ok(false);
            };
            let line = line?;
            let Some(data) = line.strip_prefix("data: ") else {
                continue;
            };
            if data == "[DONE]" {
                return Ok(false);
            }
            let chunk: Value = serde_json::from_str(data).with_context(|| format!("no JSON: {data}"))?;
            ensure!(chunk["error"].is_null(), "the stream ended with {chunk}");
            self.text.push_str(
                chunk["choices"][0]["delta"]["content"]
                    .as_str()
                    .unwrap_or_default(),
            );
            if let Some(reason) = chunk["choices"][0]["finish_reason"].as_str() {
                self.finish = Some(reason.to_owned());
            }
        }
        Ok(true)
    }

    /// That the group has not finished the answer yet, by the gateway's own count. The deployment must have the model's name.
    pub(crate) fn ensure_unfinished(&self) -> Result<()> {
        let (ip, _) = self.gateway.rsplit_once(':').context("an address has a port")?;
        let url = format!("http://{ip}:{METRICS_PORT}/metrics");
        let metrics = output(Command::new("curl").args(["-sSf", "--max-time", "10", &url]))?;
        let label = format!("name=\"{}\"", self.model);
        let count = metrics
            .lines()
            .filter(|line| line.starts_with("llamero_gateway_in_flight_requests{"))
            .find(|line| line.contains(&label));
        ensure!(
            count.is_some_and(|line| !line.ends_with(" 0")),
            "the stream had ended before it could be disturbed: {count:?}"
        );
        Ok(())
    }

    /// Reads the rest and returns the whole text.
    pub(crate) fn finish(mut self) -> Result<String> {
        self.read_to(usize::MAX)?;
        ensure!(
            self.finish.is_some(),
            "the stream ended without a finish reason after {:?}",
            self.text
        );
        Ok(std::mem::take(&mut self.text))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.curl.kill();
        let _ = self.curl.wait();
    }
}
