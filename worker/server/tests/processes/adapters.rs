//! LoRA adapters of real processes: by gRPC, beside none, over a killed rank.

use llamero_proto::v1::CompletionRequest;
use rustix::process::Signal;
use tonic::Code;
use tonic::transport::Channel;
use vllm_proto::control_client::ControlClient;
use vllm_proto::inference_client::InferenceClient;
use vllm_proto::{
    GenerateRequest, GetServerInfoRequest, ListLorasRequest, LoadLoraRequest, StoppingCriteria,
    UnloadLoraRequest, generate_request::Prompt,
};

use crate::harness::{Whole, Worker, all_serve, begin, complete, finish, refused, send, story, turn};

/// Room for two adapters of the rank that the one among the fixtures has.
fn arguments() -> [String; 6] {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
    [
        "--adapter-dir",
        fixtures,
        "--max-adapters",
        "2",
        "--max-adapter-rank",
        "8",
    ]
    .map(str::to_owned)
}

async fn worker(tensor: u32, more: &[&str]) -> Worker {
    let arguments = arguments();
    let arguments = arguments.iter().map(String::as_str).chain(more.iter().copied());
    Worker::alone(tensor, &arguments.collect::<Vec<_>>()).await
}

fn with(adapter: &str, max_tokens: u32) -> CompletionRequest {
    CompletionRequest {
        adapter: adapter.to_owned(),
        ..story(max_tokens)
    }
}

async fn load(control: &mut ControlClient<Channel>, name: &str, path: &str) -> Result<(), tonic::Status> {
    let request = LoadLoraRequest {
        lora_name: name.to_owned(),
        source_path: path.to_owned(),
    };
    control.load_lora(request).await.map(|loaded| {
        let adapter = loaded.into_inner().adapter.unwrap();
        assert_eq!(
            (adapter.lora_name.as_str(), adapter.source_path.as_str()),
            (name, path)
        );
    })
}

/// Loaded, asked for beside none, by both contracts, unloaded; what cannot be is named.
#[tokio::test]
async fn an_adapter_comes_answers_and_goes_while_the_group_serves() {
    let _turn = turn().await;
    let worker = worker(2, &[]).await;
    let usual = complete(&worker, story(24)).await.unwrap();
    let mut control = ControlClient::new(worker.channel());
    refused(&worker, with("poet", 8), Code::NotFound, "no adapter \"poet\"").await;
    for (name, path, code, part) in [
        ("poet", "../lora", Code::InvalidArgument, "without .."),
        ("po et", "lora", Code::InvalidArgument, "letters"),
        ("poet", "nowhere", Code::FailedPrecondition, "cannot open"),
        ("poet", ".", Code::InvalidArgument, "relative"),
    ] {
        let status = load(&mut control, name, path).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(part), "{status}");
    }
    load(&mut control, "poet", "lora").await.unwrap();
    let status = load(&mut control, "poet", "lora").await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    let listed = control
        .list_loras(ListLorasRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.adapters.len(), 1);
    let info = control.get_server_info(GetServerInfoRequest {}).await.unwrap();
    assert_eq!(info.into_inner().max_loras, 2);

    // Twice: alone, and in one batch with what the cache holds of both.
    let adapted = complete(&worker, with("poet", 24)).await.unwrap();
    assert_ne!(adapted.token_ids, usual.token_ids);
    let (again, beside) = tokio::join!(complete(&worker, with("poet", 24)), complete(&worker, story(24)));
    assert_eq!(
        (again.unwrap(), beside.unwrap()),
        (adapted.clone(), usual.clone())
    );
    assert_eq!(generate(&worker, "poet").await, adapted.text);

    // An answer that was begun without it does not go on with it.
    let (_, mut stream) = begin(&worker, story(4), 1).await;
    let whole = finish(Whole::default(), &mut stream).await.unwrap();
    let identity = identity(&worker, "").await;
    let crossed = CompletionRequest {
        resume_token_ids: whole.token_ids,
        content_identity: identity,
        ..with("poet", 24)
    };
    refused(
        &worker,
        crossed,
        Code::FailedPrecondition,
        "would not go on as it began",
    )
    .await;

    let unload = UnloadLoraRequest {
        lora_name: "poet".to_owned(),
    };
    control.unload_lora(unload.clone()).await.unwrap();
    assert_eq!(
        control.unload_lora(unload).await.unwrap_err().code(),
        Code::NotFound
    );
    refused(&worker, with("poet", 8), Code::NotFound, "no adapter \"poet\"").await;
    assert_eq!(complete(&worker, story(24)).await.unwrap(), usual);
}

/// What an answer says that it was begun on.
async fn identity(worker: &Worker, adapter: &str) -> String {
    let mut stream = worker
        .completion()
        .complete(with(adapter, 1))
        .await
        .unwrap()
        .into_inner();
    stream.message().await.unwrap().unwrap().content_identity
}

/// The text of the story by the other contract.
async fn generate(worker: &Worker, adapter: &str) -> String {
    let text = match story(1).prompt {
        Some(llamero_proto::v1::completion_request::Prompt::Text(text)) => text,
        other => panic!("{other:?}"),
    };
    let request = GenerateRequest {
        request_id: "generate".to_owned(),
        prompt: Some(Prompt::Text(text)),
        temperature: Some(0.0),
        lora_name: adapter.to_owned(),
        stopping: Some(StoppingCriteria {
            max_new_tokens: 24,
            ignore_eos: true,
            ..StoppingCriteria::default()
        }),
        ..GenerateRequest::default()
    };
    let answer = InferenceClient::new(worker.channel())
        .generate(request)
        .await
        .unwrap();
    answer.into_inner().outputs.unwrap().text
}

/// An adapter of the command line is there from the start; a rank that was killed reads it again before it goes on.
#[tokio::test]
async fn a_killed_rank_has_the_adapter_again_before_it_goes_on() {
    let _turn = turn().await;
    let worker = worker(3, &["--adapter", "poet=lora"]).await;
    let reference = complete(&worker, with("poet", 160)).await.unwrap();
    let plain = complete(&worker, story(160)).await.unwrap();
    assert_ne!(reference.token_ids, plain.token_ids);
    assert!(
        identity(&worker, "poet")
            .await
            .starts_with(&format!("{} lora-", identity(&worker, "").await))
    );
    let before = worker.report_when("all serve", all_serve).await;
    let (whole, mut stream) = begin(&worker, with("poet", 160), 10).await;
    send(before.ranks[1].pid, Signal::KILL);
    assert_eq!(finish(whole, &mut stream).await.unwrap(), reference);
    let after = worker.report().await;
    assert_eq!(after.ranks[1].restarts, 1, "{after:?}");
    assert_eq!(complete(&worker, story(160)).await.unwrap(), plain);
}
