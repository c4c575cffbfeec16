//! `llamero-worker serve` as a process, on the emulated driver or on the CPU.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use llamero_gpu_emulator::layout::lay_out;
use llamero_proto::v1::completion_client::CompletionClient;
use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::rank_control_client::RankControlClient;
use llamero_proto::v1::{CompletionChunk, CompletionRequest, Phase, PodReport, TokenIds, WatchRequest};
use serde::Deserialize;
use tempfile::TempDir;
use tonic::Streaming;

/// Long enough for an interpreted model on two cores that many programs share.
const DEADLINE: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(50);

/// SmolLM2 cut to `layers` layers and its first token ids, which keeps an interpreted step short, with its own tokenizer.
pub(crate) fn smollm2(layers: u32) -> TempDir {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = manifest.join("../../.local/models/SmolLM2-135M-Instruct-FP8");
    assert!(source.join("config.json").exists(), "run `make model` first");
    let folder = TempDir::new().unwrap();
    let cut = Command::new(manifest.join("../../tests/gpu-check/cut.py"))
        .args([&source, folder.path()])
        .args([layers.to_string(), "8192".to_owned()])
        .status()
        .unwrap();
    assert!(cut.success());
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        std::os::unix::fs::symlink(
            source.join(name).canonicalize().unwrap(),
            folder.path().join(name),
        )
        .unwrap();
    }
    folder
}

#[derive(Debug, Clone, Deserialize)]
struct Ports {
    control: u16,
    inference: Option<u16>,
}

/// A worker that stands alone; killed when it is dropped.
pub(crate) struct Worker {
    child: Child,
    folder: TempDir,
    ports: Option<Ports>,
}

/// Ask again and again until there is an answer.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            match ask().await {
                Some(answer) => return answer,
                None => tokio::time::sleep(POLL).await,
            }
        }
    };
    match tokio::time::timeout(DEADLINE, asking).await {
        Ok(answer) => answer,
        Err(_) => panic!("not in time: {what}"),
    }
}

impl Worker {
    /// Start it on a machine such as `memory=1GiB`.
    pub(crate) fn start(model: &Path, machine: &str, arguments: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let libraries = folder.path().join("lib");
        lay_out(&libraries, &[llamero_gpu_emulator::harness::nvrtc()]).unwrap();
        // Steps are interpreted on a machine that many programs share.
        let stall: &[&str] = match arguments.contains(&"--stall-timeout") {
            true => &[],
            false => &["--stall-timeout", "120s"],
        };
        let child = Command::new(env!("CARGO_BIN_EXE_llamero-worker-cuda"))
            .args([
                "serve",
                "--model-name",
                "smol",
                "--max-context-length",
                "256",
                "--max-sequences",
                "2",
            ])
            .args(["--max-batched-tokens", "64", "--threads", "1"])
            .args(stall)
            .args([
                "--inference-port",
                "0",
                "--control-port",
                "0",
                "--http-port",
                "0",
                "--rank-port",
                "0",
            ])
            .arg("--model-dir")
            .arg(model)
            .arg("--ports-file")
            .arg(folder.path().join("ports.json"))
            .arg("--kernels")
            .arg(env!("CARGO_TARGET_TMPDIR"))
            .args(arguments)
            .env("LD_LIBRARY_PATH", libraries)
            .env("LLAMERO_GPU_EMULATOR", machine)
            .stdin(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        Self {
            child,
            folder,
            ports: None,
        }
    }

    /// The same, when it serves.
    pub(crate) async fn serving(model: &Path, machine: &str, arguments: &[&str]) -> Self {
        let mut worker = Self::start(model, machine, arguments);
        let path = worker.folder.path().join("ports.json");
        let child = &mut worker.child;
        let log = worker.folder.path().join("log");
        let ports = until("the ports are open", async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!(
                    "the worker ended: {status}\n{}",
                    fs::read_to_string(&log).unwrap()
                );
            }
            serde_json::from_slice(&fs::read(&path).ok()?).ok()
        })
        .await;
        worker.ports = Some(ports);
        worker.report_when("all ranks serve", serves).await;
        worker
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Wait for its own end.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until("the worker ends", async || child.try_wait().unwrap()).await
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn ports(&self) -> &Ports {
        self.ports.as_ref().unwrap()
    }

    /// The first report in which `what` holds.
    pub(crate) async fn report_when(&self, name: &str, what: impl Fn(&PodReport) -> bool) -> PodReport {
        let address = format!("http://127.0.0.1:{}", self.ports().control);
        let mut control = RankControlClient::connect(address).await.unwrap();
        let mut reports = control.watch(WatchRequest {}).await.unwrap().into_inner();
        let found = async {
            loop {
                let report = reports.message().await.unwrap().unwrap();
                if what(&report) {
                    return report;
                }
            }
        };
        match tokio::time::timeout(DEADLINE, found).await {
            Ok(report) => report,
            Err(_) => panic!("no report in time: {name}\n{}", self.log()),
        }
    }

    /// Begin an answer.
    pub(crate) async fn complete(&self, request: CompletionRequest) -> Streaming<CompletionChunk> {
        let address = format!("http://127.0.0.1:{}", self.ports().inference.unwrap());
        let mut client = CompletionClient::connect(address).await.unwrap();
        client.complete(request).await.unwrap().into_inner()
    }

    /// All tokens of an answer.
    pub(crate) async fn tokens(&self, request: CompletionRequest) -> Vec<u32> {
        let mut stream = self.complete(request).await;
        let mut tokens = Vec::new();
        while let Some(chunk) = stream.message().await.unwrap() {
            tokens.extend(chunk.token_ids);
        }
        tokens
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All ranks of the pod serve.
pub(crate) fn serves(report: &PodReport) -> bool {
    report.group_serving && report.ranks.iter().all(|rank| rank.phase() == Phase::Serving)
}

/// A greedy answer of `tokens` tokens, of which the client has `had`.
pub(crate) fn greedy(tokens: u32, had: &[u32]) -> CompletionRequest {
    CompletionRequest {
        prompt: Some(Prompt::TokenIds(TokenIds {
            ids: vec![1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198],
        })),
        max_tokens: Some(tokens),
        temperature: Some(0.0),
        ignore_eos: true,
        resume_token_ids: had.to_vec(),
        ..CompletionRequest::default()
    }
}
