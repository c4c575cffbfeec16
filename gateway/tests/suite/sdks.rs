//! Streams with keep-alives, read by the official packages of Python.

use std::path::Path;
use std::time::Duration;

use llamero_gateway::Settings;
use llamero_proto::v1::FinishReason;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{MODEL, with_worker};

const KEEP_ALIVE: Duration = Duration::from_millis(5);
/// Silence before each piece.
const SILENCE: Duration = Duration::from_millis(100);
/// Starting the packages takes most of it.
const LONGEST: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn official_packages_read_streams_with_keep_alives() {
    let settings = Settings {
        first_chunk_wait: KEEP_ALIVE,
        keep_alive: KEEP_ALIVE,
        ..Settings::default()
    };
    let (served, mut worker) = with_worker(settings).await;
    let answering = tokio::spawn(async move {
        // Silent for some keep-alives before each piece: not all packages show them, so nobody can say when they have come.
        while let Some(call) = worker.next_call().await {
            let mut answering = call.accept().await;
            for (text, finish) in [("a", None), ("b", Some(FinishReason::Stop))] {
                tokio::time::sleep(SILENCE).await;
                answering.send(text, &[1], finish).await;
            }
        }
    });
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut reading = Command::new(root.join("../.local/venv-clients-sdk/bin/python"));
    reading
        .arg(root.join("tests/support/sdks.py"))
        .args([format!("http://{}", served.http), MODEL.to_owned()])
        .kill_on_drop(true);
    let output = timeout(LONGEST, reading.output())
        .await
        .expect("it takes too long");
    let output = output.expect("run tests/clients/install.sh sdk");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    let came: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (api, came) in came.as_object().unwrap() {
        assert_eq!(came[0], json!("ab"), "{api}: {came}");
        // Beside what every stream has: an opening, and an end without text.
        let silent = came[1].as_u64().unwrap();
        assert!(api.ends_with("together") || silent > 2, "{api}: {came}");
    }
    assert_eq!(came.as_object().unwrap().len(), 6);
    answering.abort();
}
