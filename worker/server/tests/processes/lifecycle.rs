//! Starting with bad input, and ending well.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use llamero_proto::v1::rank_control_client::RankControlClient;
use llamero_proto::v1::{ExitKind, Phase, PodReport, WatchRequest};
use rustix::process::Signal;
use tonic::Code;

use crate::harness::{
    ANY_PORTS, Worker, begin, complete, exists, finish, linked_model, model_dir, refused, send, story, turn,
    until,
};

#[tokio::test]
async fn a_drain_finishes_what_runs_and_refuses_the_rest() {
    let _turn = turn().await;
    let mut worker = Worker::alone(2, &["--drain-grace", "0s", "--stall-timeout", "3m"]).await;
    let reference = complete(&worker, story(250)).await.unwrap();
    let pids: Vec<u32> = worker.report().await.ranks.iter().map(|rank| rank.pid).collect();
    let (whole, mut stream) = begin(&worker, story(250), 3).await;
    // Without this member the answer does not go on, so that the pod drains until all this is seen.
    send(pids[1], Signal::STOP);
    worker.signal(Signal::TERM);
    worker
        .report_when("it drains", |report| {
            report.ranks[0].phase() == Phase::Draining && !report.group_serving
        })
        .await;
    assert_eq!(worker.get("/readyz").await.0, 503);
    refused(&worker, story(1), Code::Unavailable, "draining").await;
    send(pids[1], Signal::CONT);
    assert_eq!(finish(whole, &mut stream).await.unwrap(), reference);
    assert_eq!(worker.exit().await.code(), Some(0));
    assert!(pids.iter().all(|pid| !exists(*pid)));
}

fn serve_fails(args: &[&str]) -> (Option<i32>, String) {
    let ports = ANY_PORTS.chunks(2).filter(|port| !args.contains(&port[0]));
    let output = Command::new(env!("CARGO_BIN_EXE_llamero-worker"))
        .arg("serve")
        .args(ports.flatten())
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn what_cannot_be_served_is_said_at_once() {
    let _turn = turn().await;
    let model = model_dir();
    let model = model.to_str().unwrap();
    let (code, said) = serve_fails(&["--model-dir", "/does/not/exist"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("/does/not/exist/config.json"), "{said}");
    let (code, said) = serve_fails(&["--model-dir", model, "--tensor", "10"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("9 q heads"), "{said}");
    let (code, said) = serve_fails(&["--model-dir", model, "--max-context-length", "9000"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("8192"), "{said}");
    let (code, said) = serve_fails(&["--model-dir", model, "--stall-timeout", "soon"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("30s or 1m30s"), "{said}");
    let (code, said) = serve_fails(&[
        "--model-dir",
        model,
        "--group-uid",
        "g",
        "--ranks-per-pod",
        "2",
        "--tensor",
        "3",
    ]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("must divide"), "{said}");
    let (code, said) = serve_fails(&["--model-dir", model, "--tensor", "3", "--rank-port", "65534"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("at most 65533"), "{said}");
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    socket.local_addr().unwrap().port()
}

/// The pod stays, says what to change, and does not start the rank again and again.
#[tokio::test]
async fn a_pod_whose_rank_cannot_work_says_what_to_change() {
    let _turn = turn().await;
    let port = free_port();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_llamero-worker"))
        .arg("serve")
        .args(["--inference-port", "0", "--http-port", "0", "--rank-port", "0"])
        .args([
            "--listen",
            "127.0.0.1",
            "--control-port",
            &port.to_string(),
            "--model-dir",
        ])
        .arg(model_dir())
        .args([
            "--group-uid",
            "g",
            "--tensor",
            "2",
            "--ranks-per-pod",
            "1",
            "--kv-memory",
            "1000",
        ])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let report = until("the rank has ended", async || {
        let report = control_report(port).await?;
        report.ranks[0].last_exit.is_some().then_some(report)
    })
    .await;
    let rank = &report.ranks[0];
    let exit = rank.last_exit.as_ref().unwrap();
    assert_eq!(
        (exit.kind(), exit.code),
        (ExitKind::Unusable, Some(2)),
        "{exit:?}"
    );
    assert!(rank.message.contains("may use 1000"), "{}", rank.message);
    assert_eq!((rank.phase(), rank.restarts), (Phase::Failed, 0));
    serve.kill().unwrap();
    serve.wait().unwrap();
}

/// A disk that fails once costs a restart, not the minutes that a wrong configuration is paused for.
#[tokio::test]
async fn a_read_that_fails_once_is_tried_again_at_once() {
    let _turn = turn().await;
    let port = free_port();
    let model = linked_model();
    // Reading the start of a process's own memory fails with EIO.
    let config = model.path().join("config.json");
    std::fs::remove_file(&config).unwrap();
    symlink("/proc/self/mem", &config).unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_llamero-worker"))
        .arg("serve")
        .args(["--inference-port", "0", "--http-port", "0", "--rank-port", "0"])
        .args(["--listen", "127.0.0.1", "--max-context-length", "1024"])
        .args(["--control-port", &port.to_string(), "--model-dir"])
        .arg(model.path())
        .args(["--group-uid", "g", "--tensor", "2", "--ranks-per-pod", "1"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let report = until("the rank has ended", async || {
        let report = control_report(port).await?;
        report.ranks[0].last_exit.is_some().then_some(report)
    })
    .await;
    let exit = report.ranks[0].last_exit.as_ref().unwrap();
    assert_eq!((exit.kind(), exit.code), (ExitKind::Crashed, Some(1)), "{exit:?}");
    assert!(exit.message.contains("config.json"), "{exit:?}");
    let healed = model.path().join("healed");
    symlink(model_dir().join("config.json"), &healed).unwrap();
    std::fs::rename(&healed, &config).unwrap();
    until("the rank has loaded", async || {
        let report = control_report(port).await?;
        (report.ranks[0].phase() == Phase::Connecting).then_some(())
    })
    .await;
    serve.kill().unwrap();
    serve.wait().unwrap();
}

async fn control_report(port: u16) -> Option<PodReport> {
    let mut client = RankControlClient::connect(format!("http://127.0.0.1:{port}"))
        .await
        .ok()?;
    let mut reports = client.watch(WatchRequest {}).await.ok()?.into_inner();
    reports.message().await.ok()?
}

#[test]
fn a_rank_needs_a_supervisor() {
    let output = Command::new(env!("CARGO_BIN_EXE_llamero-worker"))
        .args(["rank", "--rank", "0"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("standard input"), "{said}");
}

#[test]
fn a_wrong_log_filter_is_told() {
    let output = Command::new(env!("CARGO_BIN_EXE_llamero-worker"))
        .args(["inspect", "/does/not/exist"])
        .env("LLAMERO_LOG", "loud=er=est")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("LLAMERO_LOG is \"loud=er=est\""), "{said}");
}

#[test]
fn inspect_says_what_a_checkpoint_is() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("termination-log");
    let output = Command::new(env!("CARGO_BIN_EXE_llamero-worker"))
        .args(["inspect", "--json", "--tensor", "7", "--model-dir"])
        .arg(model_dir())
        .arg("--termination-log")
        .arg(&log)
        .output()
        .unwrap();
    assert!(output.status.success());
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let written = std::fs::read(&log).unwrap();
    assert!(written.len() <= 4096);
    assert_eq!(
        summary,
        serde_json::from_slice::<serde_json::Value>(&written).unwrap()
    );
    assert_eq!(
        (&summary["weights"], &summary["qHeads"]),
        (&"fp8".into(), &9.into())
    );
    assert_eq!(summary["fp8KvBackends"], serde_json::json!(["cpu"]));
    let tokenizer = std::fs::metadata(model_dir().join("tokenizer.json")).unwrap();
    assert_eq!(summary["tokenizerBytes"], tokenizer.len());
    assert!(
        summary["plans"]
            .as_array()
            .unwrap()
            .iter()
            .any(|plan| plan["tensor"] == 7)
    );

    let output = Command::new(env!("CARGO_BIN_EXE_llamero-worker"))
        .args(["inspect", "/does/not/exist", "--termination-log"])
        .arg(&log)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let refusal: serde_json::Value = serde_json::from_slice(&std::fs::read(&log).unwrap()).unwrap();
    assert!(
        refusal["error"].as_str().unwrap().contains("config.json"),
        "{refusal}"
    );
}
