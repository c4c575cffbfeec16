//! `llamero run` with SmolLM2: one prompt, a conversation, and every kind of source.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use llamero_proto::v1::completion_client::CompletionClient;
use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::{ChatMessage, ChatPrompt, CompletionRequest};
use llamero_worker::config::EngineArgs;
use llamero_worker::rank::alone::Alone;

use crate::program::{Ran, Running, fp8, llamero, model, run};
use llamero_fake_hub::{FakeHub, Faults};

const QUESTION: &str = "What is the capital of France? Answer in one word.";

fn ask(cache: &Path, source: &Path, more: &[&str]) -> Command {
    let source = source.to_str().unwrap();
    let args = [
        "run",
        source,
        "--prompt",
        QUESTION,
        "--temperature",
        "0",
        "--max-tokens",
        "12",
    ];
    llamero(cache, &[&args, more].concat())
}

fn answered(ran: &Ran) -> &str {
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran.out.trim_end_matches('\n')
}

/// What the worker's engine answers over gRPC.
async fn reference(folder: &Path) -> String {
    let alone = Alone::start(EngineArgs::of(folder.to_owned()).unwrap()).unwrap();
    let alone = alone.wait(&mut |_| {}).unwrap();
    let mut client = CompletionClient::connect(format!("http://{}", alone.address()))
        .await
        .unwrap();
    let request = CompletionRequest {
        prompt: Some(Prompt::Chat(ChatPrompt {
            messages: vec![ChatMessage {
                role: "user".to_owned(),
                content: QUESTION.to_owned(),
                ..ChatMessage::default()
            }],
            ..ChatPrompt::default()
        })),
        temperature: Some(0.0),
        max_tokens: Some(12),
        ..CompletionRequest::default()
    };
    let mut chunks = client.complete(request).await.unwrap().into_inner();
    let mut text = String::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        text.push_str(&chunk.text);
    }
    drop((chunks, client));
    tokio::task::spawn_blocking(|| alone.finish())
        .await
        .unwrap()
        .unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_the_engines_and_stands_alone_on_standard_output() {
    let cache = tempfile::tempdir().unwrap();
    let wanted = reference(&fp8()).await;
    assert!(wanted.contains("Paris"), "{wanted}");
    let ran = run(ask(cache.path(), &fp8(), &["--verbose", "--threads", "1"]));
    assert_eq!(answered(&ran), wanted);
    assert!(ran.err.contains("tokens/s"), "{}", ran.err);
    // A folder leaves nothing in the cache.
    assert!(std::fs::read_dir(cache.path()).unwrap().next().is_none());

    // The same from standard input, without a word beside it.
    let piped = llamero(
        cache.path(),
        &[
            "run",
            fp8().to_str().unwrap(),
            "--prompt",
            "-",
            "--temperature",
            "0",
            "--max-tokens",
            "12",
        ],
    );
    let ran = Running::start(piped, QUESTION).finish();
    assert_eq!(answered(&ran), wanted);
    assert!(
        !ran.err.contains("tokens/s") && !ran.err.contains("INFO"),
        "{}",
        ran.err
    );
}

#[test]
fn a_gguf_is_converted_and_quantised_once() {
    let cache = tempfile::tempdir().unwrap();
    let gguf = model("SmolLM2-135M-Instruct.Q4_1.gguf");
    let first = run(ask(cache.path(), &gguf, &["--quantize", "fp8"]));
    assert!(
        first.err.contains("converting") && first.err.contains("quantising"),
        "{first:?}"
    );
    let again = run(ask(cache.path(), &gguf, &["--quantize", "fp8"]));
    assert!(
        !again.err.contains("converting") && !again.err.contains("quantising"),
        "{again:?}"
    );
    assert_eq!(answered(&first), answered(&again));
    let list = run(llamero(cache.path(), &["list"]));
    assert_eq!(answered(&list).lines().count(), 2, "{list:?}");
    assert!(
        list.out.contains("converted from") && list.out.contains("FP8 of"),
        "{list:?}"
    );
    // The folder of `make model` was converted from the same file.
    let folder = run(ask(
        cache.path(),
        &model("SmolLM2-135M-Instruct"),
        &["--quantize", "fp8"],
    ));
    assert_eq!(answered(&first), answered(&folder));
    let removed = run(llamero(cache.path(), &["rm", "SmolLM2-135M-Instruct"]));
    assert_eq!(answered(&removed), "");
    let name = "SmolLM2-135M-Instruct.Q4_1";
    let removed = run(llamero(cache.path(), &["rm", name]));
    assert_eq!(answered(&removed), "");
    let list = run(llamero(cache.path(), &["list"]));
    assert_eq!(answered(&list), "", "{list:?}");
    assert!(list.err.contains("the cache is empty"), "{list:?}");
}

#[test]
fn a_repository_is_fetched_once_and_runs_without_the_hub() {
    let cache = tempfile::tempdir().unwrap();
    let mut files = BTreeMap::new();
    for file in std::fs::read_dir(fp8()).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        files.insert(name, std::fs::read(&path).unwrap());
    }
    let token = "hf_test";
    let server = FakeHub::start(
        files,
        Faults {
            token: Some(token.to_owned()),
            cuts: vec![50_000_000],
            ..Faults::default()
        },
    );
    let repository = Path::new("org/model");
    let with_token = |mut command: Command| {
        command
            .env("HF_ENDPOINT", &server.endpoint)
            .env("HF_TOKEN", token);
        command
    };
    let first = run(with_token(ask(cache.path(), repository, &[])));
    assert!(
        first.err.contains("downloading org/model@0123456789ab"),
        "{first:?}"
    );
    let requests = server.log().len();
    let again = run(with_token(ask(cache.path(), repository, &[])));
    assert_eq!(server.log().len(), requests, "the second run asked the Hub");
    assert_eq!(answered(&first), answered(&again));
    assert_eq!(answered(&first), answered(&run(ask(cache.path(), &fp8(), &[]))));

    // To look for a newer state is one request when there is none.
    let pulled = run(with_token(llamero(cache.path(), &["pull", "org/model"])));
    assert!(
        Path::new(answered(&pulled)).join("config.json").is_file(),
        "{pulled:?}"
    );
    assert_eq!(server.log().len(), requests + 1);
    let list = run(llamero(cache.path(), &["list"]));
    assert!(
        answered(&list).contains("org/model") && list.out.contains("commit 0123456789ab"),
        "{list:?}"
    );
}

#[test]
fn a_piped_conversation_remembers_and_forgets() {
    let cache = tempfile::tempdir().unwrap();
    let folder = fp8();
    let args = [
        "run",
        folder.to_str().unwrap(),
        "--temperature",
        "0",
        "--max-tokens",
        "12",
        "--verbose",
    ];
    let lines = format!(
        "{QUESTION}\n{QUESTION}\n/clear\n/what\n\n{QUESTION}\n/system Answer in German.\n{QUESTION}\n"
    );
    let ran = Running::start(llamero(cache.path(), &args), &lines).finish();
    assert!(answered(&ran).contains("Paris"), "{ran:?}");
    assert!(ran.err.contains("There is no /what"), "{ran:?}");
    // `[41 + 3 tokens, …]`: prompts grow with the conversation, and are as at first after /clear.
    let prompts = ran
        .err
        .lines()
        .filter_map(|line| line.strip_prefix('[')?.split_once(" + "));
    let prompts: Vec<u32> = prompts.filter_map(|(tokens, _)| tokens.parse().ok()).collect();
    let [first, second, cleared, german] = prompts[..] else {
        panic!("{ran:?}")
    };
    assert!(
        second > first && cleared == first && german != first,
        "{prompts:?}"
    );
}

#[test]
fn an_answer_stops_at_ctrl_c() {
    let cache = tempfile::tempdir().unwrap();
    let folder = fp8();
    let args = [
        "run",
        folder.to_str().unwrap(),
        "--temperature",
        "0",
        "--prompt",
        "Count from one to a million.",
    ];
    let mut command = llamero(cache.path(), &args);
    command.env("LLAMERO_LOG", "llamero=debug");
    let mut running = Running::start(command, "");
    running.wait_for("the first token");
    running.signal(rustix::process::Signal::INT);
    let ran = running.finish();
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.err.contains("[stopped]") && ran.err.contains("interrupted"),
        "{ran:?}"
    );
    assert!(!ran.out.trim().is_empty(), "{ran:?}");
}
