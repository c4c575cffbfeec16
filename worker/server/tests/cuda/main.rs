//! The worker with `--backend cuda`, as processes on the emulated driver.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod worker;

use std::process::Command;

use llamero_proto::v1::{CompletionRequest, ExitKind, PodReport};
use worker::{Worker, greedy, serves, smollm2};

const CUDA: [&str; 2] = ["--backend", "cuda"];
const TOKENS: u32 = 8;

/// Kill a process as nobody can refuse.
fn kill(pid: u32) {
    let status = Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn greedy_streams_are_those_of_the_cpu_and_go_on_after_a_kill_and_a_fault() {
    let model = smollm2(2);
    let reference = Worker::serving(model.path(), "", &["--backend", "cpu"]).await;
    let wanted = reference.tokens(greedy(TOKENS, &[])).await;
    drop(reference);
    let faults = tempfile::tempdir().unwrap();
    let fault = faults.path().join("illegal");
    let machine = format!("memory=1GiB,fault=illegal@{}", fault.display());
    let mut worker = Worker::serving(model.path(), &machine, &CUDA).await;
    let before = worker.report_when("it serves", serves).await;
    assert!(before.ranks[0].numerics.starts_with("cuda-sm90 "), "{before:?}");
    assert_eq!(worker.tokens(greedy(TOKENS, &[])).await, wanted);

    // Its only rank is killed in the middle of an answer, which goes on behind the tokens that have come.
    let mut stream = worker.complete(greedy(TOKENS, &[])).await;
    let mut had = Vec::new();
    while had.len() < 4 {
        had.extend(stream.message().await.unwrap().unwrap().token_ids);
    }
    kill(before.ranks[0].pid);
    while let Ok(Some(chunk)) = stream.message().await {
        had.extend(chunk.token_ids);
    }
    let after = worker
        .report_when("it serves again", |report| {
            report.ranks[0].restarts == 1 && serves(report)
        })
        .await;
    assert_eq!(after.ranks[0].last_exit.as_ref().unwrap().signal, Some(9));
    had.extend(worker.tokens(greedy(TOKENS, &had)).await);
    assert_eq!(had, wanted);

    // A fault that stays with the context ends the process that has it, and says so; the next one has a context of its own.
    std::fs::write(&fault, "").unwrap();
    let mut stream = worker.complete(greedy(TOKENS, &[])).await;
    while let Ok(Some(_)) = stream.message().await {}
    let failed = worker
        .report_when("the rank has ended", |report| report.ranks[0].restarts >= 2)
        .await;
    let exit = failed.ranks[0].last_exit.as_ref().unwrap();
    assert!(exit.message.contains("illegal memory access"), "{exit:?}");
    assert_ne!(exit.kind(), ExitKind::Unusable, "another start can help");
    assert!(worker.is_running());
    std::fs::remove_file(&fault).unwrap();
    worker.report_when("it serves once more", serves).await;
    assert_eq!(worker.tokens(greedy(TOKENS, &[])).await, wanted);
}

/// Three query heads or more on each rank; with two ranks, a kv head is on both.
#[tokio::test]
async fn ranks_on_several_gpus_have_the_cpus_tokens_and_form_again_after_a_kill() {
    let model = smollm2(2);
    let reference = Worker::serving(model.path(), "", &["--backend", "cpu"]).await;
    let wanted = reference.tokens(greedy(TOKENS, &[])).await;
    drop(reference);
    for tensor in ["3", "2"] {
        let arguments = ["--backend", "cuda", "--tensor", tensor];
        let worker = Worker::serving(model.path(), "devices=3,memory=1GiB", &arguments).await;
        let before = worker.report_when("it serves", serves).await;
        assert!(
            before
                .ranks
                .iter()
                .all(|rank| rank.numerics == before.ranks[0].numerics)
        );
        assert_eq!(worker.tokens(greedy(TOKENS, &[])).await, wanted, "{tensor} ranks");
        if tensor == "3" {
            continue;
        }
        // The last rank is killed in the middle of an answer. The first one keeps its process and weights, and the answer
        // goes on.
        let mut stream = worker.complete(greedy(TOKENS, &[])).await;
        let mut had = Vec::new();
        while had.len() < 3 {
            had.extend(stream.message().await.unwrap().unwrap().token_ids);
        }
        kill(before.ranks[1].pid);
        while let Some(chunk) = stream.message().await.unwrap() {
            had.extend(chunk.token_ids);
        }
        assert_eq!(had, wanted);
        let after = worker.report_when("it serves again", serves).await;
        assert_eq!(
            (after.ranks[0].pid, after.ranks[0].restarts),
            (before.ranks[0].pid, 0)
        );
        assert_eq!(after.ranks[1].restarts, 1);
        assert_eq!(after.ranks[1].last_exit.as_ref().unwrap().signal, Some(9));
    }
}

/// The embedding is the head, too: the first stage has it as the one, the last as the other.
#[tokio::test]
async fn stages_on_several_gpus_have_the_tokens_of_one_and_form_again_after_a_kill() {
    let model = smollm2(2);
    let alone = Worker::serving(model.path(), "memory=1GiB", &CUDA).await;
    let sampled = |seed| CompletionRequest {
        temperature: Some(0.8),
        seed: Some(seed),
        ..greedy(TOKENS, &[])
    };
    let wanted = alone.tokens(greedy(TOKENS, &[])).await;
    let noisy = alone.tokens(sampled(5)).await;
    drop(alone);
    let arguments = ["--backend", "cuda", "--tensor", "2", "--pipeline", "2"];
    let worker = Worker::serving(model.path(), "devices=4,memory=1GiB", &arguments).await;
    let before = worker.report_when("it serves", serves).await;
    // Two at once, one of them with noise.
    let both = tokio::join!(worker.tokens(greedy(TOKENS, &[])), worker.tokens(sampled(5)));
    assert_eq!(both, (wanted.clone(), noisy));
    // A rank of the last stage is killed in the middle of an answer, which goes on; the others keep their processes and weights.
    let mut stream = worker.complete(greedy(TOKENS, &[])).await;
    let mut had = Vec::new();
    while had.len() < 3 {
        had.extend(stream.message().await.unwrap().unwrap().token_ids);
    }
    kill(before.ranks[3].pid);
    while let Some(chunk) = stream.message().await.unwrap() {
        had.extend(chunk.token_ids);
    }
    assert_eq!(had, wanted);
    let after = worker.report_when("it serves again", serves).await;
    for rank in 0..3 {
        assert_eq!(
            (after.ranks[rank].pid, after.ranks[rank].restarts),
            (before.ranks[rank].pid, 0)
        );
    }
    assert_eq!(after.ranks[3].last_exit.as_ref().unwrap().signal, Some(9));
}

#[tokio::test]
#[ignore = "minutes on a small machine"]
async fn a_stage_whose_gpu_hangs_is_named_and_the_group_forms_again() {
    let model = smollm2(2);
    let faults = tempfile::tempdir().unwrap();
    let hang = faults.path().join("hang");
    let machine = format!("devices=2,memory=1GiB,timeout=60,fault=hang:1@{}", hang.display());
    let arguments = ["--backend", "cuda", "--pipeline", "2", "--stall-timeout", "20s"];
    let worker = Worker::serving(model.path(), &machine, &arguments).await;
    let wanted = worker.tokens(greedy(TOKENS, &[])).await;
    std::fs::write(&hang, "").unwrap();
    let mut stream = worker.complete(greedy(TOKENS, &[])).await;
    let blames = |report: &PodReport| report.ranks[0].message.contains("rank 1");
    worker.report_when("rank 0 blames rank 1", blames).await;
    std::fs::remove_file(&hang).unwrap();
    let mut had = Vec::new();
    while let Some(chunk) = stream.message().await.unwrap() {
        had.extend(chunk.token_ids);
    }
    assert_eq!(had, wanted);
}

#[tokio::test]
#[ignore = "minutes on a small machine"]
async fn a_rank_whose_gpu_hangs_is_named_and_the_group_forms_again() {
    let model = smollm2(1);
    let faults = tempfile::tempdir().unwrap();
    let hang = faults.path().join("hang");
    // What hangs does so until the emulated driver gives up, and then its process ends.
    let machine = format!("devices=2,memory=1GiB,timeout=60,fault=hang:1@{}", hang.display());
    let arguments = ["--backend", "cuda", "--tensor", "2", "--stall-timeout", "20s"];
    let worker = Worker::serving(model.path(), &machine, &arguments).await;
    let before = worker.report_when("it serves", serves).await;
    let wanted = worker.tokens(greedy(TOKENS, &[])).await;
    std::fs::write(&hang, "").unwrap();
    let mut stream = worker.complete(greedy(TOKENS, &[])).await;
    let failed = worker
        .report_when("rank 0 blames rank 1", |report| {
            report.ranks[0].message.contains("rank 1")
        })
        .await;
    assert_eq!(failed.ranks[0].pid, before.ranks[0].pid, "{failed:?}");
    std::fs::remove_file(&hang).unwrap();
    let mut had = Vec::new();
    while let Some(chunk) = stream.message().await.unwrap() {
        had.extend(chunk.token_ids);
    }
    assert_eq!(had, wanted);
    let after = worker.report_when("it serves again", serves).await;
    assert_eq!(
        (after.ranks[0].pid, after.ranks[0].restarts),
        (before.ranks[0].pid, 0)
    );
}

#[tokio::test]
async fn what_does_not_fit_or_is_not_there_ends_with_a_sentence_and_never_with_the_cpu() {
    let model = smollm2(1);
    for (machine, arguments, sentence) in [
        ("memory=8MiB", &CUDA[..], "the weights do not fit"),
        ("cc=7.5", &CUDA, "8.0 (Ampere) or later is needed"),
        ("fault=oom@3", &CUDA, "the GPU's memory is full"),
        (
            "devices=2,peers=no",
            &["--backend", "cuda", "--tensor", "2"],
            "do not reach each other's memory",
        ),
        (
            "devices=1",
            &["--backend", "cuda", "--tensor", "3"],
            "was asked for, and this process sees 1",
        ),
    ] {
        let mut worker = Worker::start(model.path(), machine, arguments);
        let status = worker.exit().await;
        let log = worker.log();
        assert_eq!(status.code(), Some(2), "{machine}: {log}");
        assert!(log.contains(sentence), "{machine}: {log}");
    }
}
