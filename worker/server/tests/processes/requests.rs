//! What is answered, what is refused, and in which words.

use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::telemetry_client::TelemetryClient;
use llamero_proto::v1::{
    ChatMessage, ChatPrompt, CompletionRequest, FinishReason, LoadRequest, LoadSample, TokenIds,
};
use tonic::{Code, Request};
use tonic_reflection::pb::{v1, v1alpha};
use vllm_proto::control_client::ControlClient;
use vllm_proto::decoding_parameters::StructuredOutput;
use vllm_proto::finish_info::FinishReason as VllmReason;
use vllm_proto::inference_client::InferenceClient;
use vllm_proto::{
    AbortRequest, DecodingParameters, GenerateRequest, IsPausedRequest, StoppingCriteria, generate_request,
};

use crate::harness::{Whole, Worker, begin, complete, finish, linked_model, refused, story, turn, until};
use crate::vllm::generate;

#[tokio::test]
async fn requests_are_answered_or_refused_with_a_sentence() {
    let _turn = turn().await;
    let worker = Worker::alone(1, &[]).await;
    chat_and_stops(&worker).await;
    bad_input(&worker).await;
    cancelling(&worker).await;
    common_beginnings(&worker).await;
    allowed_tokens(&worker).await;
    unknown_methods(&worker).await;
    reflection(&worker).await;
}

async fn chat_and_stops(worker: &Worker) {
    let chat = |content: &str| CompletionRequest {
        prompt: Some(Prompt::Chat(ChatPrompt {
            messages: vec![ChatMessage {
                role: "user".into(),
                content: content.into(),
                ..ChatMessage::default()
            }],
            ..ChatPrompt::default()
        })),
        model: "smol".into(),
        temperature: Some(0.0),
        ..CompletionRequest::default()
    };
    let answer = complete(worker, chat("What is the capital of France? Answer in one word."))
        .await
        .unwrap();
    assert!(answer.text.contains("Paris"), "{answer:?}");
    assert_eq!(answer.reason, Some(FinishReason::Stop));

    let whole = complete(worker, story(32)).await.unwrap();
    let middle = whole
        .text
        .char_indices()
        .nth(whole.text.chars().count() / 2)
        .unwrap()
        .0;
    let stop: String = whole.text[middle..].chars().take(6).collect();
    let stopped = complete(
        worker,
        CompletionRequest {
            stop: vec![stop.clone()],
            ..story(32)
        },
    )
    .await
    .unwrap();
    assert_eq!(stopped.text, whole.text[..whole.text.find(&stop).unwrap()]);
    assert_eq!(
        (stopped.reason, stopped.stop_string),
        (Some(FinishReason::Stop), stop)
    );

    let token = whole.token_ids[9];
    let first = whole.token_ids.iter().position(|id| *id == token).unwrap();
    let stopped = complete(
        worker,
        CompletionRequest {
            stop_token_ids: vec![token],
            ..story(32)
        },
    )
    .await
    .unwrap();
    assert_eq!(stopped.token_ids, whole.token_ids[..first]);
    assert_eq!(stopped.reason, Some(FinishReason::Stop));
}

/// One request runs, one waits: the third is told when to come again, and is taken when there is room.
#[tokio::test]
async fn a_full_queue_says_when_to_come_again() {
    let _turn = turn().await;
    let worker = Worker::alone(1, &["--max-sequences", "1", "--max-queued-requests", "1"]).await;
    let (_, running) = begin(&worker, story(900), 3).await;
    // Its first chunk says that it is in the queue.
    let mut waiting = worker.completion().complete(story(2)).await.unwrap().into_inner();
    let first = waiting.message().await.unwrap().unwrap();
    assert_eq!(first.output_tokens, 0);
    until("it is counted as waiting", async || {
        (load(&worker).await.waiting == 1).then_some(())
    })
    .await;

    let status = complete(&worker, story(1)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("1 requests wait already"), "{status}");
    let pause = status
        .metadata()
        .get("retry-after-ms")
        .expect("no pause is advised");
    let pause: u64 = pause.to_str().unwrap().parse().unwrap();
    assert!((1_000..=60_000).contains(&pause), "{pause}");

    drop(running);
    let whole = finish(Whole::default(), &mut waiting).await.unwrap();
    assert_eq!(whole.token_ids.len(), 2);
    assert_eq!(complete(&worker, story(1)).await.unwrap().token_ids.len(), 1);
}

/// What is changed in a good request, and the words of its refusal.
type Bad = (fn(&mut CompletionRequest), &'static str);

const INVALID: [Bad; 12] = [
    (|r| r.prompt = None, "there is no prompt"),
    (|r| r.prompt = Some(ids(Vec::new())), "empty"),
    (|r| r.prompt = Some(ids(vec![70_000])), "tokens 0 to 49151"),
    (|r| r.temperature = Some(-1.0), "temperature is -1"),
    (|r| r.temperature = Some(f32::NAN), "temperature is NaN"),
    (|r| r.temperature = Some(1e9), "from 0 to 2"),
    (|r| r.top_p = Some(0.0), "top_p"),
    (|r| r.presence_penalty = Some(9.0), "presence_penalty"),
    (|r| r.stop = vec![String::new()], "stop string is empty"),
    (|r| r.max_tokens = Some(0), "ask for at least 1"),
    (|r| r.resume_token_ids = vec![1; 9], "resumed"),
    (
        |r| r.prompt = Some(Prompt::Chat(ChatPrompt::default())),
        "no messages",
    ),
];

const TOO_LONG: [Bad; 2] = [
    (|r| r.prompt = Some(ids(vec![1; 2_000])), "shorten the prompt"),
    (
        |r| {
            r.prompt = Some(ids(vec![1; 1_000]));
            r.max_tokens = Some(500);
        },
        "lower max_tokens",
    ),
];

async fn bad_input(worker: &Worker) {
    let cases = [
        (&INVALID[..], Code::InvalidArgument),
        (&TOO_LONG[..], Code::OutOfRange),
    ];
    for (bad, code) in cases {
        for (change, words) in bad {
            let mut request = story(8);
            change(&mut request);
            refused(worker, request, code, words).await;
        }
    }
    let other = CompletionRequest {
        model: "other".into(),
        ..story(8)
    };
    refused(worker, other, Code::NotFound, "\"smol\"").await;
}

fn ids(ids: Vec<u32>) -> Prompt {
    Prompt::TokenIds(TokenIds { ids })
}

async fn load(worker: &Worker) -> LoadSample {
    let mut client = TelemetryClient::new(worker.channel());
    let mut samples = client
        .watch(LoadRequest { interval_millis: 100 })
        .await
        .unwrap()
        .into_inner();
    samples.message().await.unwrap().unwrap()
}

/// Cached tokens of a prompt's answer, which are on every chunk from the first token on, and its token ids.
async fn cached(worker: &Worker, request: CompletionRequest) -> (u32, Vec<u32>) {
    let mut stream = worker.completion().complete(request).await.unwrap().into_inner();
    let (mut cached, mut tokens) = (Vec::new(), Vec::new());
    while let Some(chunk) = stream.message().await.unwrap() {
        if !chunk.token_ids.is_empty() {
            cached.push(chunk.cached_tokens);
        }
        tokens.extend(chunk.token_ids);
    }
    cached.dedup();
    assert_eq!(cached.len(), 1);
    (cached[0], tokens)
}

async fn common_beginnings(worker: &Worker) {
    let prompt = |last: u32, salt: &str| CompletionRequest {
        prompt: Some(ids((300..340).chain([last]).collect())),
        cache_salt: salt.into(),
        ..story(4)
    };
    let before = load(worker).await;
    let (found, tokens) = cached(worker, prompt(9, "")).await;
    assert_eq!(found, 0);
    assert_eq!(cached(worker, prompt(9, "")).await, (32, tokens.clone()));
    assert_eq!(
        cached(worker, prompt(8, "")).await.0,
        32,
        "41 tokens begin alike by 40"
    );
    assert_eq!(cached(worker, prompt(9, "mine")).await, (0, tokens));
    let after = load(worker).await;
    assert_eq!(after.prefix_lookup_tokens - before.prefix_lookup_tokens, 4 * 41);
    assert_eq!(after.prefix_hit_tokens - before.prefix_hit_tokens, 2 * 32);
    until("the pod's metrics tell the hit rate", async || {
        let (_, text) = worker.get("/metrics").await;
        let line = format!("llamero_prefix_hit_tokens_total {}", after.prefix_hit_tokens);
        text.contains(&line).then_some(())
    })
    .await;
    let generate = |bypass_prefix_cache| GenerateRequest {
        prompt: Some(generate_request::Prompt::TokenIds(vllm_proto::TokenIds {
            ids: (300..340).collect(),
        })),
        kv: Some(vllm_proto::KvCacheParameters {
            bypass_prefix_cache,
            ..Default::default()
        }),
        ..GenerateRequest::default()
    };
    for (bypass, found) in [(false, 32), (true, 0)] {
        let answer = InferenceClient::new(worker.channel())
            .generate(generate(bypass))
            .await
            .unwrap()
            .into_inner();
        let finish = answer.outputs.unwrap().finish_info.unwrap();
        assert_eq!(finish.num_cached_tokens, Some(found));
    }
}

async fn cancelling(worker: &Worker) {
    // Blocks of a request that ended come back when no step that writes them is under way.
    let idle = async || {
        let now = load(worker).await;
        (now.running == 0 && now.kv_blocks_used == 0).then_some(())
    };
    until("nothing runs", idle).await;
    let before = load(worker).await;
    let (_, stream) = begin(worker, story(900), 3).await;
    assert_eq!(load(worker).await.running, 1);
    drop(stream);
    until("a client that goes away ends its request", idle).await;
    let after = load(worker).await;
    assert!(
        after.output_tokens - before.output_tokens < 900,
        "it ran to its end"
    );
    assert!(after.steps > before.steps && after.time_to_first_token.unwrap().count > 0);

    let request = CompletionRequest {
        request_id: "mine".into(),
        ..story(900)
    };
    let (whole, mut stream) = begin(worker, request.clone(), 3).await;
    refused(worker, request, Code::AlreadyExists, "its own id").await;
    let mut control = ControlClient::new(worker.channel());
    control
        .abort(AbortRequest {
            request_ids: vec!["mine".into(), "unknown".into()],
        })
        .await
        .unwrap();
    let whole = finish(whole, &mut stream).await.unwrap();
    assert_eq!(whole.reason, Some(FinishReason::Abort));
    until("an aborted request ends", idle).await;

    let status = TelemetryClient::new(worker.channel())
        .watch(LoadRequest { interval_millis: 5 })
        .await
        .unwrap_err();
    assert!(status.message().contains("at least 100"), "{status}");
}

/// An answer has no other tokens than those that are allowed, alone and within a form.
async fn allowed_tokens(worker: &Worker) {
    let tokens = |text: &str| {
        let request = CompletionRequest {
            prompt: Some(Prompt::Text(text.to_owned())),
            no_special_tokens: true,
            ..CompletionRequest::default()
        };
        let mut client = worker.completion();
        async move { client.tokenize(request).await.unwrap().into_inner().ids }
    };
    let allowed = [tokens("yes").await, tokens("no").await].concat();
    let request = CompletionRequest {
        temperature: Some(1.0),
        seed: Some(1),
        allowed_token_ids: allowed.clone(),
        ..story(12)
    };
    let answer = complete(worker, request.clone()).await.unwrap();
    assert_eq!(answer.token_ids.len(), 12);
    assert!(
        answer.token_ids.iter().all(|token| allowed.contains(token)),
        "{answer:?}"
    );
    let whole = answer.token_ids;
    let resumed = CompletionRequest {
        resume_token_ids: whole[..5].to_vec(),
        ..request.clone()
    };
    assert_eq!(complete(worker, resumed).await.unwrap().token_ids, whole[5..]);

    let formed = |regex: &str, longest: u32| GenerateRequest {
        decoding: Some(DecodingParameters {
            allowed_token_ids: allowed.clone(),
            structured_output: Some(StructuredOutput::Regex(regex.to_owned())),
            ..DecodingParameters::default()
        }),
        stopping: Some(StoppingCriteria {
            max_new_tokens: longest,
            ..StoppingCriteria::default()
        }),
        ..generate("Once upon a time")
    };
    let mut client = InferenceClient::new(worker.channel());
    // It ends when its form is complete, though the list has no end.
    let answer = client.generate(formed("no(yes|no){3}", 20)).await.unwrap();
    let outputs = answer.into_inner().outputs.unwrap();
    assert!(outputs.text.starts_with("no"), "{outputs:?}");
    assert_eq!(outputs.finish_info.unwrap().finish_reason(), VllmReason::Stop);
    // Where no token is left before that, with an error that says so.
    let status = client.generate(formed("no maybe", 20)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert_eq!(status.metadata().get("parameter").unwrap(), "allowed_token_ids");
    assert!(status.message().contains("allowed_token_ids"), "{status}");
    // Where none may come first, before anything is computed.
    let status = client.generate(formed("maybe", 20)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert_eq!(status.metadata().get("parameter").unwrap(), "allowed_token_ids");
    let unknown = CompletionRequest {
        allowed_token_ids: vec![1_000_000],
        ..request
    };
    refused(worker, unknown, Code::InvalidArgument, "allowed_token_ids").await;

    // Special tokens, here the model's `<|im_start|>`, have no text unless it is asked for.
    for (show_special_tokens, text) in [(false, ""), (true, "<|im_start|><|im_start|>")] {
        let request = CompletionRequest {
            allowed_token_ids: vec![1],
            show_special_tokens,
            ..story(2)
        };
        let answer = complete(worker, request).await.unwrap();
        assert_eq!((answer.token_ids, answer.text.as_str()), (vec![1, 1], text));
    }
}

async fn unknown_methods(worker: &Worker) {
    let status = ControlClient::new(worker.channel())
        .is_paused(IsPausedRequest {})
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("vllm.Control/IsPaused"), "{status}");

    for method in ["/vllm.Nothing/Here", "/vllm.Inference/Nothing"] {
        let mut raw = tonic::client::Grpc::new(worker.channel());
        raw.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<IsPausedRequest, AbortRequest>::default();
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(method);
        let status = raw
            .unary(Request::new(IsPausedRequest {}), path, codec)
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{status}");
        assert!(status.message().contains(&method[1..]), "{status}");
    }
}

async fn reflection(worker: &Worker) {
    let expected = [
        "grpc.health.v1.Health",
        "llamero.v1.Completion",
        "llamero.v1.Telemetry",
        "vllm.Control",
        "vllm.Inference",
    ];
    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(worker.channel());
    let mut answers = client
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list");
    };
    let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(names, expected);

    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol("vllm.Inference".into()),
        ),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(worker.channel());
    let mut answers = client
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(files)) = answer
    else {
        panic!("no descriptors: {answer:?}");
    };
    assert!(!files.file_descriptor_proto.is_empty());
}

/// Checkpoints that were cut down, or given another tokenizer, name ends that their vocabulary has not.
#[tokio::test]
async fn an_end_that_is_no_token_of_the_model_harms_no_request() {
    let _turn = turn().await;
    let model = linked_model();
    let config = model.path().join("generation_config.json");
    std::fs::remove_file(&config).unwrap();
    std::fs::write(&config, r#"{"eos_token_id": [2, 128009]}"#).unwrap();
    let worker = Worker::start_with(model.path(), &["--tensor", "1"], &[]).await;
    worker.wait_for_health(true).await;
    let request = CompletionRequest {
        min_tokens: 4,
        ignore_eos: false,
        ..story(8)
    };
    let whole = complete(&worker, request).await.unwrap();
    assert!(whole.token_ids.len() >= 4, "{whole:?}");
    assert_eq!(worker.report().await.ranks[0].restarts, 0);
}
