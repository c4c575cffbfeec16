//! Starting workers, talking to them, and waiting with a deadline.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use llamero_proto::v1::completion_client::CompletionClient;
use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::rank_control_client::RankControlClient;
use llamero_proto::v1::{
    CompletionChunk, CompletionRequest, FinishReason, Phase, PodReport, TokenLogprob, WatchRequest,
};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::sync::{Mutex, MutexGuard};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Long enough for two cores that many programs share; nothing waits this long when all is well.
pub(crate) const DEADLINE: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(20);

/// One test at a time starts workers: they use all cores, and some watch time-outs.
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// The FP8 model.
pub(crate) fn model_dir() -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.local/models/SmolLM2-135M-Instruct-FP8");
    assert!(
        dir.join("config.json").exists(),
        "{} is missing: run `make model` first",
        dir.display()
    );
    dir
}

/// The FP8 model in a folder of its own, whose files are links that a test may replace.
pub(crate) fn linked_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(model_dir()).unwrap() {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// Ask again and again until there is an answer.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(DEADLINE, asking)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"))
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Ports {
    pub(crate) control: u16,
    pub(crate) http: u16,
    pub(crate) inference: Option<u16>,
    pub(crate) ranks: Vec<u16>,
}

/// Every port of a worker, chosen by the kernel.
pub(crate) const ANY_PORTS: [&str; 8] = [
    "--inference-port",
    "0",
    "--control-port",
    "0",
    "--http-port",
    "0",
    "--rank-port",
    "0",
];

/// A worker's supervisor; its ranks end with it.
pub(crate) struct Worker {
    child: Child,
    dir: tempfile::TempDir,
    pub(crate) ports: Ports,
}

impl Worker {
    /// A worker that stands alone, ready to serve.
    pub(crate) async fn alone(tensor: u32, more: &[&str]) -> Self {
        let tensor = tensor.to_string();
        let worker = Self::start(&[&["--tensor", &tensor], more].concat()).await;
        worker.wait_for_health(true).await;
        worker
    }

    /// A worker whose ranks listen.
    pub(crate) async fn start(args: &[&str]) -> Self {
        Self::start_with(&model_dir(), args, &[]).await
    }

    /// The same for another folder, with variables of the environment.
    pub(crate) async fn start_with(model: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ports_file = dir.path().join("ports.json");
        let mut child = Command::new(env!("CARGO_BIN_EXE_llamero-worker"))
            .args([
                "serve",
                "--listen",
                "127.0.0.1",
                "--model-name",
                "smol",
                "--max-context-length",
                "1024",
            ])
            .args(ANY_PORTS)
            .arg("--model-dir")
            .arg(model)
            .arg("--ports-file")
            .arg(&ports_file)
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let ports = until("the ports are open", async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the worker ended: {status}");
            }
            serde_json::from_slice(&std::fs::read(&ports_file).ok()?).ok()
        })
        .await;
        Self { child, dir, ports }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Wait for the end of the supervisor.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until("the worker ends", async || child.try_wait().unwrap()).await
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn channel(&self) -> Channel {
        channel(self.ports.inference.expect("this pod does not lead"))
    }

    pub(crate) fn completion(&self) -> CompletionClient<Channel> {
        CompletionClient::new(self.channel())
    }

    pub(crate) fn control(&self) -> RankControlClient<Channel> {
        RankControlClient::new(channel(self.ports.control))
    }

    /// The pod's report now.
    pub(crate) async fn report(&self) -> PodReport {
        let mut reports = self.control().watch(WatchRequest {}).await.unwrap().into_inner();
        reports.message().await.unwrap().unwrap()
    }

    /// The first report in which `what` holds, as the stream of reports brings it.
    pub(crate) async fn report_when(&self, name: &str, what: impl Fn(&PodReport) -> bool) -> PodReport {
        let mut reports = self.control().watch(WatchRequest {}).await.unwrap().into_inner();
        let found = async {
            loop {
                let report = reports.message().await.unwrap().unwrap();
                if what(&report) {
                    return report;
                }
            }
        };
        tokio::time::timeout(DEADLINE, found)
            .await
            .unwrap_or_else(|_| panic!("no report in time: {name}"))
    }

    /// Wait until `grpc.health.v1` says that the group serves, or does not.
    pub(crate) async fn wait_for_health(&self, serving: bool) {
        let client = HealthClient::new(self.channel());
        until("health changes", async || {
            let request = HealthCheckRequest {
                service: "llamero.v1.Completion".into(),
            };
            let status = client.clone().check(request).await.ok()?.into_inner().status();
            let is_serving = status == tonic_health::pb::health_check_response::ServingStatus::Serving;
            (is_serving == serving).then_some(())
        })
        .await;
    }

    /// Wait until the pod counts as ready; its supervisor hears of the group a moment after clients may.
    pub(crate) async fn wait_for_ready(&self) {
        until("the pod is ready", async || {
            (self.get("/readyz").await.0 == 200).then_some(())
        })
        .await;
    }

    /// Status code and body of an HTTP GET.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.ports.http))
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (code, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Ranks that a test has stopped must wake to notice the end of their supervisor.
        for child in children(self.pid()) {
            send(child, Signal::CONT);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = &self.dir;
    }
}

fn channel(port: u16) -> Channel {
    Channel::from_shared(format!("http://127.0.0.1:{port}"))
        .unwrap()
        .connect_lazy()
}

/// Send a signal to a process.
pub(crate) fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // That it has ended is no fault of the test.
    let _ = kill_process(pid, signal);
}

/// Whether a process exists and has not ended. One that nobody has waited for stays listed.
pub(crate) fn exists(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    // The state follows the name, which may hold anything.
    stat.is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    })
}

/// Children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let of_task = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).ok();
    tasks.filter_map(of_task).flat_map(|list| pids(&list)).collect()
}

fn pids(list: &str) -> Vec<u32> {
    list.split_ascii_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// A request for a text whose answer does not end by itself within `max_tokens`.
pub(crate) fn story(max_tokens: u32) -> CompletionRequest {
    CompletionRequest {
        prompt: Some(Prompt::Text(
            "Once upon a time, in a small village by the sea,".into(),
        )),
        max_tokens: Some(max_tokens),
        temperature: Some(0.0),
        ignore_eos: true,
        ..CompletionRequest::default()
    }
}

/// The same, sampled: every rule of sampling takes part.
pub(crate) fn sampled_story(max_tokens: u32) -> CompletionRequest {
    CompletionRequest {
        temperature: Some(0.9),
        top_p: Some(0.95),
        top_k: Some(50),
        seed: Some(7),
        frequency_penalty: Some(0.3),
        ..story(max_tokens)
    }
}

/// A finished answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Whole {
    pub(crate) text: String,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) output_tokens: u32,
    pub(crate) reason: Option<FinishReason>,
    pub(crate) stop_string: String,
    /// Of each token, if they were asked for.
    pub(crate) logprobs: Vec<TokenLogprob>,
}

impl Whole {
    pub(crate) fn add(&mut self, chunk: CompletionChunk) {
        self.text.push_str(&chunk.text);
        self.token_ids.extend(chunk.token_ids);
        self.logprobs.extend(chunk.logprobs);
        assert!(chunk.output_tokens >= self.output_tokens, "the count went back");
        self.output_tokens = chunk.output_tokens;
        if let Some(finish) = chunk.finish {
            assert_eq!(self.reason, None, "finished twice");
            self.reason = Some(finish.reason());
            self.stop_string = finish.stop_string;
        }
    }
}

/// Read a stream to its end.
pub(crate) async fn finish(
    mut whole: Whole,
    stream: &mut Streaming<CompletionChunk>,
) -> Result<Whole, Status> {
    let reading = async {
        while let Some(chunk) = stream.message().await? {
            whole.add(chunk);
        }
        Ok(whole)
    };
    tokio::time::timeout(DEADLINE, reading)
        .await
        .expect("the stream does not end")
}

/// Send a request and read the whole answer.
pub(crate) async fn complete(worker: &Worker, request: CompletionRequest) -> Result<Whole, Status> {
    let mut stream = worker.completion().complete(request).await?.into_inner();
    finish(Whole::default(), &mut stream).await
}

/// Send a request and read until `tokens` have come.
pub(crate) async fn begin(
    worker: &Worker,
    request: CompletionRequest,
    tokens: usize,
) -> (Whole, Streaming<CompletionChunk>) {
    let mut stream = worker.completion().complete(request).await.unwrap().into_inner();
    let mut whole = Whole::default();
    while whole.token_ids.len() < tokens {
        whole.add(stream.message().await.unwrap().expect("the stream ended early"));
    }
    assert_eq!(whole.reason, None, "the answer is too short to disturb it");
    (whole, stream)
}

/// The request is refused with this code and a sentence that holds `part`.
pub(crate) async fn refused(worker: &Worker, request: CompletionRequest, code: Code, part: &str) {
    let status = complete(worker, request).await.expect_err(part);
    assert_eq!(status.code(), code, "{status}");
    assert!(
        status.message().contains(part),
        "{:?} does not say {part:?}",
        status.message()
    );
}

/// All ranks of the pod serve.
pub(crate) fn all_serve(report: &PodReport) -> bool {
    report.ranks.iter().all(|rank| rank.phase() == Phase::Serving)
}
