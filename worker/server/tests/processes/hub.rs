//! Weights from a repository of a Hub.

use std::path::Path;
use std::process::{Command, Stdio};

use llamero_fake_hub::{COMMIT, FakeHub, Faults, REPOSITORY};
use llamero_proto::v1::Phase;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Worker, complete, model_dir, send, story, turn, until};

fn hub(faults: Faults) -> FakeHub {
    FakeHub::of_folder(&model_dir(), "localhost", faults)
}

fn args(server: &FakeHub) -> [&str; 6] {
    let revision = ["--hub-revision", "main"];
    [
        "--hub-repository",
        REPOSITORY,
        "--hub-endpoint",
        &server.endpoint,
        revision[0],
        revision[1],
    ]
}

fn needing_a_token() -> Faults {
    Faults {
        token: Some("hf_right".to_owned()),
        ..Faults::default()
    }
}

/// No port is known beforehand.
const ANY_PORTS: [&str; 8] = [
    "--control-port",
    "0",
    "--inference-port",
    "0",
    "--http-port",
    "0",
    "--rank-port",
    "0",
];

#[tokio::test]
async fn two_ranks_answer_as_from_a_folder_and_a_dead_one_reads_nothing_again() {
    let _turn = turn().await;
    let expected = {
        let local = Worker::alone(2, &[]).await;
        complete(&local, story(24)).await.unwrap()
    };
    let server = hub(needing_a_token());
    let dir = tempfile::tempdir().unwrap();
    let more = [&args(&server)[..], &["--tensor", "2"]].concat();
    let worker = Worker::start_with(dir.path(), &more, &[("HF_TOKEN", "hf_right")]).await;
    worker.wait_for_health(true).await;
    assert_eq!(complete(&worker, story(24)).await.unwrap(), expected);

    let before = server.sent();
    let report = worker.report().await;
    assert_eq!(report.ranks[0].content_identity, report.ranks[1].content_identity);
    // The Hub is away, and the weights are still in memory.
    server.faults().token = Some("hf_other".to_owned());
    send(report.ranks[1].pid, Signal::KILL);
    worker
        .report_when("the rank is back", |report| {
            report.ranks[1].restarts == 1 && report.ranks[1].phase() == Phase::Serving
        })
        .await;
    assert_eq!(complete(&worker, story(24)).await.unwrap(), expected);
    assert_eq!(server.sent(), before, "something was read again");
}

#[tokio::test]
async fn a_refusal_is_a_sentence_of_the_pod_s_report() {
    let _turn = turn().await;
    let server = hub(needing_a_token());
    let dir = tempfile::tempdir().unwrap();
    let more = [
        &args(&server)[..],
        &["--tensor", "2", "--ranks-per-pod", "1", "--group-uid", "g"],
    ]
    .concat();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_llamero-worker"))
        .args(["serve", "--model-dir"])
        .arg(dir.path())
        .args(more)
        .args(ANY_PORTS)
        .args(["--listen", "127.0.0.1"])
        .env_remove("HF_TOKEN")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first attempt is told in the log; the pod stays, and its supervisor tries again in some minutes.
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(serve.stderr.take().unwrap()));
    let said = lines.find(|line| line.as_ref().unwrap().contains("tokenSecretRef"));
    serve.kill().unwrap();
    serve.wait().unwrap();
    let said = said.expect("it ended without a word").unwrap();
    assert!(
        said.contains("(401)") && said.contains("accept the licence"),
        "{said}"
    );
}

/// A source that never answers does not keep a pod from ending at once.
#[tokio::test]
async fn a_pod_that_waits_for_its_source_ends_when_it_is_told() {
    let _turn = turn().await;
    let server = hub(Faults {
        silent: usize::MAX,
        ..Faults::default()
    });
    let of_store = || server.log().iter().filter(|asked| !asked.at_hub).count();
    let dir = tempfile::tempdir().unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_llamero-worker"))
        .args(["serve", "--listen", "127.0.0.1", "--model-dir"])
        .arg(dir.path())
        .args(args(&server))
        .args(["--group-uid", "g", "--ranks-per-pod", "1"])
        .args(ANY_PORTS)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    until("the store is asked for the weights", async || {
        (of_store() > 0).then_some(())
    })
    .await;
    send(serve.id(), Signal::TERM);
    let status = until("the pod ends", async || serve.try_wait().unwrap()).await;
    assert_eq!(
        (status.code(), of_store()),
        (Some(1), 1),
        "it asked again before it ended"
    );
}

fn inspect(server: &FakeHub, folder: &Path, token: &str) -> (Option<i32>, Value) {
    let log = folder.with_extension("log");
    let status = Command::new(env!("CARGO_BIN_EXE_llamero-worker"))
        .args(["inspect", "--tensor", "2", "--json", "--model-dir"])
        .arg(folder)
        .args(args(server))
        .arg("--termination-log")
        .arg(&log)
        .env("HF_TOKEN", token)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    let written = std::fs::read(log).unwrap();
    (status.code(), serde_json::from_slice(&written).unwrap())
}

#[tokio::test]
async fn inspect_reads_headers_only_and_names_the_commit() {
    let _turn = turn().await;
    let server = hub(needing_a_token());
    let dir = tempfile::tempdir().unwrap();
    let (code, summary) = inspect(&server, &dir.path().join("m"), "hf_right");
    assert_eq!(
        (code, &summary["commit"]),
        (Some(0), &Value::from(COMMIT)),
        "{summary}"
    );
    assert_eq!(summary["layers"], 30);
    let weights: u64 = summary["checkpointBytes"].as_u64().unwrap();
    assert!(
        server.sent() < 3_000_000 && server.sent() < weights / 50,
        "{}",
        server.sent()
    );

    let (code, refused) = inspect(&server, &dir.path().join("n"), "");
    let said = refused["error"].as_str().unwrap();
    assert_eq!(code, Some(2));
    assert!(said.contains("tokenSecretRef"), "{said}");
    server.faults().token = None;
    server.faults().gated = true;
    let (code, refused) = inspect(&server, &dir.path().join("n"), "hf_right");
    let said = refused["error"].as_str().unwrap();
    assert_eq!(code, Some(2));
    assert!(said.contains("accept its terms at"), "{said}");
}
