//! Speculative decoding with the real model: tokens are those without drafts, whatever a request asks for and whatever dies.

use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::structure::Form;
use llamero_proto::v1::telemetry_client::TelemetryClient;
use llamero_proto::v1::{CompletionRequest, LoadRequest, Structure};
use rustix::process::Signal;

use crate::harness::{Whole, Worker, all_serve, begin, complete, finish, send, story, turn, until};

const DRAFTS: [&str; 2] = ["--speculation", "prompt-lookup"];

/// What the model says of this repeats it: every way of sampling has drafts that are right and drafts that are wrong.
const LIST: &str = "Copy the list twice.\n\n- name: anna, age: 31, city: paris\n- name: berta, age: 32, city: paris\n- name: carla, age: 33, city: \
                    paris\n\n- name: anna, age: 31, city: paris\n- name: berta, age: 32,";

const SCHEMA: &str = r#"{"type": "array", "minItems": 4, "maxItems": 6, "items": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8},
    "age": {"type": "integer", "minimum": 30, "maximum": 39}}, "required": ["name", "age"], "additionalProperties": false}}"#;

fn listed(change: impl FnOnce(&mut CompletionRequest)) -> CompletionRequest {
    let mut request = CompletionRequest {
        prompt: Some(Prompt::Text(LIST.to_owned())),
        ..story(96)
    };
    change(&mut request);
    request
}

fn sampled(temperature: f32) -> CompletionRequest {
    listed(|request| {
        request.temperature = Some(temperature);
        request.seed = Some(11);
        request.top_p = Some(0.95);
        request.top_k = Some(40);
    })
}

/// A request of each kind.
fn requests() -> Vec<CompletionRequest> {
    let form = |request: &mut CompletionRequest, form: Form| {
        request.ignore_eos = false;
        request.structure = Some(Structure {
            parameter: "form".to_owned(),
            form: Some(form),
        });
    };
    vec![
        listed(|_| ()),
        story(96),
        sampled(0.3),
        sampled(1.0),
        listed(|request| form(request, Form::JsonSchema(SCHEMA.to_owned()))),
        CompletionRequest {
            max_tokens: Some(120),
            ..{
                let mut request = sampled(0.7);
                form(&mut request, Form::JsonSchema(SCHEMA.to_owned()));
                request
            }
        },
        listed(|request| {
            request.frequency_penalty = Some(0.05);
            request.presence_penalty = Some(0.1);
            request.repetition_penalty = Some(1.01);
        }),
        listed(|request| {
            request.ignore_eos = false;
            request.stop = vec!["berta".to_owned()];
            request.min_tokens = 40;
        }),
        listed(|request| {
            request.bad_words = vec!["carla".to_owned(), " paris".to_owned()];
            request.logit_bias = [(33, 1.5), (284, -0.5)].into();
            request.logprobs = Some(2);
        }),
        listed(|request| request.allowed_token_ids = (20..9000).collect()),
        CompletionRequest {
            prompt_logprobs: Some(1),
            max_tokens: Some(40),
            ..sampled(0.2)
        },
    ]
}

async fn answers(worker: &Worker, requests: &[CompletionRequest], at_once: bool) -> Vec<Whole> {
    let answer = |request: &CompletionRequest| complete(worker, request.clone());
    if at_once {
        let all = futures::future::join_all(requests.iter().map(answer)).await;
        return all.into_iter().map(Result::unwrap).collect();
    }
    let mut all = Vec::new();
    for request in requests {
        all.push(answer(request).await.unwrap());
    }
    all
}

/// Tokens that were drafted so far, and how many of them were right.
async fn drafted(worker: &Worker) -> (u64, u64) {
    let mut client = TelemetryClient::new(worker.channel());
    let request = LoadRequest { interval_millis: 100 };
    let mut samples = client.watch(request).await.unwrap().into_inner();
    let sample = samples.message().await.unwrap().unwrap();
    (sample.draft_tokens, sample.accepted_tokens)
}

#[tokio::test]
async fn drafts_change_no_token_of_any_request() {
    let _turn = turn().await;
    let requests = requests();
    let plain = Worker::alone(1, &[]).await;
    let reference = answers(&plain, &requests, true).await;
    assert_eq!(drafted(&plain).await, (0, 0), "off unless it is asked for");
    drop(plain);
    for (tensor, more) in [(1, &[][..]), (2, &[]), (1, &["--pipeline", "2"])] {
        let worker = Worker::alone(tensor, &[&DRAFTS[..], more].concat()).await;
        // One by one, and in one batch with what the prefix cache holds by then.
        let ways = if tensor == 1 && more.is_empty() {
            &[false, true][..]
        } else {
            &[true]
        };
        for &at_once in ways {
            let got = answers(&worker, &requests, at_once).await;
            for (number, (got, reference)) in got.iter().zip(&reference).enumerate() {
                assert_eq!(
                    got, reference,
                    "request {number}, tensor {tensor}, {more:?}, at once: {at_once}"
                );
            }
        }
        let (tokens, accepted) = drafted(&worker).await;
        println!("tensor {tensor} {more:?}: {accepted} of {tokens} drafts were right");
        // How many pay depends on what else the machine does.
        assert!(
            accepted > 0 && tokens >= accepted,
            "tensor {tensor} {more:?}: {accepted} of {tokens} drafts were right"
        );
        until("the pod's metrics tell of the drafts", async || {
            let (_, text) = worker.get("/metrics").await;
            let line = format!("llamero_spec_decode_num_accepted_tokens_total {accepted}\n");
            text.contains(&line).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn drafts_change_nothing_when_a_rank_dies_or_another_leader_goes_on() {
    let _turn = turn().await;
    let requests = [
        listed(|request| request.max_tokens = Some(160)),
        CompletionRequest {
            max_tokens: Some(160),
            ..sampled(0.3)
        },
    ];
    let plain = Worker::alone(1, &[]).await;
    let reference = answers(&plain, &requests, false).await;
    let worker = Worker::alone(2, &DRAFTS).await;
    for (request, reference) in requests.iter().zip(&reference) {
        let before = worker.report_when("all serve", all_serve).await;
        let (whole, mut stream) = begin(&worker, request.clone(), 40).await;
        send(before.ranks[1].pid, Signal::KILL);
        assert_eq!(finish(whole, &mut stream).await.unwrap(), *reference);
        let (pid, restarts) = (before.ranks[1].pid, before.ranks[1].restarts);
        worker
            .report_when("the rank serves again", |report| {
                let rank = &report.ranks[1];
                rank.pid != pid && rank.restarts > restarts && all_serve(report)
            })
            .await;
        // Begun there, and gone on with here; and the other way round.
        for (from, to) in [(&worker, &plain), (&plain, &worker)] {
            let (begun, stream) = begin(from, request.clone(), 60).await;
            drop(stream);
            let resumed = CompletionRequest {
                resume_token_ids: begun.token_ids.clone(),
                ..request.clone()
            };
            let rest = complete(to, resumed).await.unwrap();
            assert_eq!([begun.token_ids, rest.token_ids].concat(), reference.token_ids);
        }
    }
    let (tokens, accepted) = drafted(&worker).await;
    assert!(accepted > 0, "{accepted} of {tokens} drafts were right");
    assert_eq!(drafted(&plain).await, (0, 0));
}

#[tokio::test]
async fn drafts_leave_adapters_and_a_cache_in_fp8_as_they_are() {
    let _turn = turn().await;
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
    let arguments = [
        "--adapter-dir",
        fixtures,
        "--max-adapters",
        "2",
        "--max-adapter-rank",
        "8",
        "--adapter",
        "poet=lora",
        "--kv-cache-dtype",
        "fp8",
    ];
    let adapted = |request: CompletionRequest| CompletionRequest {
        adapter: "poet".to_owned(),
        ..request
    };
    let requests = [
        listed(|_| ()),
        adapted(listed(|_| ())),
        adapted(sampled(0.3)),
        sampled(0.3),
        story(96),
        adapted(story(96)),
    ];
    let plain = Worker::alone(1, &arguments).await;
    let reference = answers(&plain, &requests, true).await;
    assert_ne!(reference[4].token_ids, reference[5].token_ids);
    drop(plain);
    let worker = Worker::alone(2, &[&arguments[..], &DRAFTS].concat()).await;
    assert_eq!(answers(&worker, &requests, false).await, reference);
    assert_eq!(answers(&worker, &requests, true).await, reference);
    let (tokens, accepted) = drafted(&worker).await;
    assert!(accepted > 0, "{accepted} of {tokens} drafts were right");
}
