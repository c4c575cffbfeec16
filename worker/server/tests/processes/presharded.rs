//! Folders with one file a rank: made by a program that is killed, read by one that serves.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use llamero_fake_hub::{FakeHub, Faults, REPOSITORY};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Worker, complete, model_dir, send, story, turn, until};

fn worker() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llamero-worker"));
    command.stdin(Stdio::null());
    command
}

fn shard(topology: [&str; 2], out: &Path) -> Command {
    let mut command = worker();
    command
        .args(["shard", "--tensor", topology[0], "--pipeline", topology[1]])
        .args([&model_dir(), out]);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn succeed(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[tokio::test]
async fn ranks_answer_as_from_the_whole_checkpoint_from_a_folder_and_from_a_hub() {
    let _turn = turn().await;
    let expected = {
        let whole = Worker::alone(2, &[]).await;
        let content = whole.report().await.ranks[0].content_identity.clone();
        (complete(&whole, story(24)).await.unwrap(), content)
    };
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    succeed(shard(["2", "1"], &made));
    {
        let parts = Worker::start_with(&made, &["--tensor", "2"], &[]).await;
        parts.wait_for_health(true).await;
        assert_eq!(complete(&parts, story(24)).await.unwrap(), expected.0);
        assert_eq!(parts.report().await.ranks[0].content_identity, expected.1);
    }
    let server = FakeHub::of_folder(&made, "localhost", Faults::default());
    let args = [
        "--tensor",
        "2",
        "--hub-repository",
        REPOSITORY,
        "--hub-endpoint",
        &server.endpoint,
    ];
    let parts = Worker::start_with(&dir.path().join("small"), &args, &[]).await;
    parts.wait_for_health(true).await;
    assert_eq!(complete(&parts, story(24)).await.unwrap(), expected.0);
    let files = std::fs::read_dir(&made).unwrap().map(|entry| entry.unwrap());
    let bytes: u64 = files.map(|entry| entry.metadata().unwrap().len()).sum();
    let sent = server.sent();
    assert!(sent as f64 <= 1.02 * bytes as f64, "{sent} of {bytes}");
}

/// Before anything is read: by `inspect`, and by a rank.
#[tokio::test]
async fn another_group_is_refused_in_words() {
    let _turn = turn().await;
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    succeed(shard(["2", "1"], &made));
    let inspect = |tensor: &str| {
        let mut command = worker();
        command.args(["inspect", "--json", "--tensor", tensor]).arg(&made);
        let output = command.output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    assert_eq!(inspect("2")["problem"], Value::Null);
    let problem = inspect("3")["problem"].as_str().unwrap().to_owned();
    assert!(
        problem.contains("made for tensor 2, not for tensor 3") && problem.contains("llamero-worker shard"),
        "{problem}"
    );
    let mut serve = worker();
    serve
        .args(["serve", "--listen", "127.0.0.1", "--tensor", "3", "--model-dir"])
        .arg(&made)
        .args(crate::harness::ANY_PORTS);
    let output = serve.output().unwrap();
    assert!(!output.status.success());
    assert!(
        said(&output).contains("made for tensor 2, not for tensor 3"),
        "{}",
        said(&output)
    );
}

/// Start, and kill as soon as `exists` does.
async fn kill_when(exists: &Path, mut command: Command) {
    let mut child: Child = command
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the program has come so far", async || {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it was killed"
        );
        exists.exists().then_some(())
    })
    .await;
    send(child.id(), Signal::KILL);
    child.wait().unwrap();
}

#[tokio::test]
async fn killed_while_sharding_it_goes_on_and_keeps_what_is_finished() {
    let _turn = turn().await;
    let dir = tempfile::tempdir().unwrap();
    let (straight, killed) = (dir.path().join("straight"), dir.path().join("killed"));
    succeed(shard(["1", "6"], &straight));
    let partial = dir.path().join(".killed.partial");
    let of = |rank: u32| partial.join(format!("rank-{rank:05}-of-00006.safetensors"));
    let mut kept = None;
    for stage in [0, 2] {
        kill_when(&of(stage), shard(["1", "6"], &killed)).await;
        assert!(!killed.exists() && of(stage).exists() && !of(5).exists());
        // A finished file is never written again.
        let modified = of(0).metadata().unwrap().modified().unwrap();
        assert_eq!(*kept.get_or_insert(modified), modified);
    }
    succeed(shard(["1", "6"], &killed));
    assert!(!partial.exists());
    let first = killed.join("rank-00000-of-00006.safetensors");
    assert_eq!(first.metadata().unwrap().modified().unwrap(), kept.unwrap());
    for entry in std::fs::read_dir(&straight).unwrap() {
        let name = entry.unwrap().file_name();
        let [a, b] = [&straight, &killed].map(|folder| std::fs::read(folder.join(&name)).unwrap());
        assert!(a == b, "{name:?}");
    }
}

/// A small file system of its own, which nobody else sees.
fn on_a_full_disk(command: &str) -> Output {
    let script = format!("mount -t tmpfs -o size=24m tmpfs /mnt && {command}");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .arg(env!("CARGO_BIN_EXE_llamero-worker"))
        .arg(model_dir())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!said(&output).contains("mount"), "{}", said(&output));
    output
}

#[test]
fn a_full_disk_ends_in_a_sentence() {
    let output = on_a_full_disk("exec \"$0\" shard --tensor 2 \"$1\" /mnt/out");
    let said = said(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("cannot write /mnt/.out.partial/rank-0000") && said.contains("No space left on device"),
        "{said}"
    );
}
