//! Routing, continuation, holding and cancelling, over real HTTP with scripted workers behind.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::StatusCode;
use llamero_gateway::Settings;
use llamero_gateway::demand::Counts;
use llamero_proto::v1::demand_client::DemandClient;
use llamero_proto::v1::{CompletionRequest, DemandRequest, DemandSample, FinishReason};
use serde_json::{Value, json};
use support::client::{Reply, get, post, send_with};
use support::worker::Worker;
use support::{Served, found, gateway, soon};

fn chat(stream: bool) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream})
}

async fn ask(served: &Served, stream: bool) -> Reply {
    post(served.http, "/v1/chat/completions", chat(stream)).await
}

/// Wait until so many requests of a deployment are held, in flight, and have come in all.
async fn counted(served: &Served, (held, in_flight, total): (u32, u32, u64)) {
    let expected = Counts {
        held,
        in_flight,
        total,
    };
    let mut changes = served.gateway.demand.subscribe();
    soon(async {
        while !served
            .gateway
            .demand
            .counts()
            .into_values()
            .any(|counts| counts == expected)
        {
            changes.changed().await.unwrap();
        }
    })
    .await;
}

fn without_resume(mut request: CompletionRequest) -> CompletionRequest {
    request.resume_token_ids.clear();
    request
}

#[tokio::test]
async fn requests_spread_over_leaders() {
    let served = gateway(Settings::default()).await;
    let (mut a, mut b) = (Worker::start(), Worker::start());
    served.publish("m", &[a.address, b.address]);
    let clients: Vec<_> = (0..4)
        .map(|_| tokio::spawn(post(served.http, "/v1/chat/completions", chat(false))))
        .collect();
    // All four run at once, so each leader must have exactly two.
    let calls = [a.call().await, a.call().await, b.call().await, b.call().await];
    assert!(!a.has_call() && !b.has_call());
    for call in calls {
        call.answer(&["x"]).await;
    }
    for client in clients {
        assert_eq!(soon(client).await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn the_load_that_others_cause_counts() {
    let served = gateway(Settings::default()).await;
    let (busy, mut idle) = (Worker::start(), Worker::start());
    busy.tell_load(3, 2);
    served.publish("m", &[busy.address, idle.address]);
    let leaders = served
        .gateway
        .directory
        .snapshot()
        .by_model("m")
        .unwrap()
        .leaders
        .clone();
    let known = leaders
        .iter()
        .find(|leader| leader.address() == busy.address.to_string())
        .unwrap();
    soon(async {
        while known.load(tokio::time::Instant::now()) != 5 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..3 {
        let (reply, ()) = tokio::join!(ask(&served, false), async {
            idle.call().await.answer(&["x"]).await
        });
        assert_eq!(reply.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_stream_goes_on_when_its_leader_dies() {
    let served = gateway(Settings::default()).await;
    let mut workers = BTreeMap::new();
    for worker in [Worker::start(), Worker::start()] {
        workers.insert(worker.address, worker);
    }
    served.publish("m", &workers.keys().copied().collect::<Vec<_>>());
    let request = tokio::spawn(post(served.http, "/v1/chat/completions", chat(true)));
    let mut first = None;
    soon(async {
        while first.is_none() {
            first = workers
                .iter_mut()
                .find(|(_, worker)| worker.has_call())
                .map(|(address, _)| *address);
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut dying = workers.remove(&first.unwrap()).unwrap();
    let (_, mut heir) = workers.pop_first().unwrap();

    let call = dying.call().await;
    let original = call.request.clone();
    let mut answering = call.accept().await;
    answering.send("Hel", &[11, 12], None).await;
    let mut reply = soon(request).await.unwrap();
    assert_eq!(reply.piece().await.unwrap(), "Hel");
    dying.kill().await;

    let call = heir.call().await;
    assert_eq!(call.request.resume_token_ids, [11, 12]);
    assert_eq!(
        without_resume(call.request.clone()),
        without_resume(original),
        "same id, seed and prompt"
    );
    let mut answering = call.accept().await;
    answering.send("lo", &[13], None).await;
    answering.send("!", &[14], Some(FinishReason::Stop)).await;
    assert_eq!(reply.piece().await.unwrap(), "lo");
    assert_eq!(reply.piece().await.unwrap(), "!");
    let last: Value = serde_json::from_str(&reply.event().await.unwrap()).unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(reply.event().await.unwrap(), "[DONE]");
}

#[tokio::test]
async fn the_same_leader_goes_on_when_it_is_back_as_often_as_it_takes() {
    let served = gateway(Settings::default()).await;
    let mut worker = Worker::start();
    served.publish("m", &[worker.address]);
    let request = tokio::spawn(post(served.http, "/v1/chat/completions", chat(false)));
    let mut answering = worker.call().await.accept().await;
    answering.send("a", &[1], None).await;
    answering
        .fail(tonic::Status::aborted("the group forms again"))
        .await;
    worker.call().await.refuse(tonic::Status::unavailable("not yet"));
    let call = worker.call().await;
    assert_eq!(call.request.resume_token_ids, [1]);
    let mut answering = call.accept().await;
    answering.send("b", &[2], None).await;
    // The stream ends without a word, and the process is replaced at the same address.
    drop(answering);
    let call = worker.call().await;
    assert_eq!(call.request.resume_token_ids, [1, 2]);
    drop(call);
    let mut worker = Worker::start_at(worker.kill().await);
    let call = worker.call().await;
    assert_eq!(call.request.resume_token_ids, [1, 2]);
    let mut answering = call.accept().await;
    answering.send("c", &[3], Some(FinishReason::Length)).await;
    let answer = soon(request).await.unwrap().json().await;
    assert_eq!(answer["choices"][0]["message"]["content"], "abc");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn an_answer_with_a_hole_is_an_error_not_an_answer() {
    let served = gateway(Settings::default()).await;
    let mut worker = Worker::start();
    served.publish("m", &[worker.address]);
    let (reply, ()) = tokio::join!(ask(&served, false), async {
        let mut answering = worker.call().await.accept().await;
        answering.send("a", &[1], None).await;
        answering.fail(tonic::Status::unavailable("gone")).await;
        // This one starts from the beginning instead of going on.
        let mut call = worker.call().await;
        call.request.resume_token_ids.clear();
        let mut answering = call.accept().await;
        answering.send("a", &[1], None).await;
    });
    assert_eq!(reply.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let message = reply.json().await["error"]["message"].to_string();
    assert!(
        message.contains("counted 0 tokens") && message.contains("1 arrived"),
        "{message}"
    );
}

#[tokio::test]
async fn a_request_that_nobody_can_go_on_with_fails_in_time() {
    let settings = Settings {
        continuation_timeout: Duration::from_millis(300),
        ..Settings::default()
    };
    let served = gateway(settings).await;
    let mut worker = Worker::start();
    served.publish("m", &[worker.address]);
    let request = tokio::spawn(post(served.http, "/v1/chat/completions", chat(true)));
    let mut answering = worker.call().await.accept().await;
    answering.send("a", &[1], None).await;
    let mut reply = soon(request).await.unwrap();
    assert_eq!(reply.piece().await.unwrap(), "a");
    worker.kill().await;
    let error: Value = serde_json::from_str(&reply.event().await.unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "no_group_reachable");
    assert_eq!(reply.event().await, None);
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_request() {
    let served = gateway(Settings::default()).await;
    let mut worker = Worker::start();
    served.publish("m", &[worker.address]);
    let request = tokio::spawn(post(served.http, "/v1/chat/completions", chat(true)));
    let mut answering = worker.call().await.accept().await;
    answering.send("a", &[1], None).await;
    let mut reply = soon(request).await.unwrap();
    assert_eq!(reply.piece().await.unwrap(), "a");
    counted(&served, (0, 1, 1)).await;
    reply.hang_up();
    answering.cancelled().await;
    counted(&served, (0, 0, 1)).await;

    // The same without streaming, while the worker still computes.
    let request = tokio::spawn(post(served.http, "/v1/chat/completions", chat(false)));
    let answering = worker.call().await.accept().await;
    request.abort();
    answering.cancelled().await;
    counted(&served, (0, 0, 2)).await;
}

#[tokio::test]
async fn a_request_at_zero_is_held_told_and_answered() {
    let settings = Settings {
        first_chunk_wait: Duration::from_millis(10),
        keep_alive: Duration::from_millis(10),
        ..Settings::default()
    };
    let served = gateway(settings).await;
    served.publish("m", &[]);
    let mut demand = DemandClient::connect(format!("http://{}", served.grpc))
        .await
        .unwrap();
    let mut samples = demand.watch(DemandRequest {}).await.unwrap().into_inner();

    let mut streamed = ask(&served, true).await;
    assert_eq!(streamed.status(), StatusCode::OK);
    let whole = tokio::spawn(post(served.http, "/v1/chat/completions", chat(false)));
    let told = |sample: &DemandSample| {
        sample
            .models
            .first()
            .map(|model| (model.name.clone(), model.held, model.in_flight, model.total))
    };
    soon(async {
        while told(&samples.message().await.unwrap().unwrap()) != Some(("smol".to_owned(), 2, 0, 2)) {}
    })
    .await;
    // The opening, then pieces that say nothing keep the stream open. Parsers that refuse comments, or take each blank
    // line for an event, read them.
    let opening: Value = serde_json::from_str(&streamed.event().await.unwrap()).unwrap();
    assert_eq!(
        opening["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    for _ in 0..2 {
        let silence: Value = serde_json::from_str(&streamed.event().await.unwrap()).unwrap();
        assert_eq!(silence["choices"][0]["delta"], json!({}));
        assert_eq!(
            (&silence["object"], &silence["id"]),
            (&json!("chat.completion.chunk"), &opening["id"])
        );
    }

    let mut worker = Worker::start();
    served.publish("m", &[worker.address]);
    let (first, second) = (worker.call().await, worker.call().await);
    soon(async {
        while told(&samples.message().await.unwrap().unwrap()) != Some(("smol".to_owned(), 0, 2, 2)) {}
    })
    .await;
    first.answer(&["x"]).await;
    second.answer(&["x"]).await;
    assert_eq!(streamed.piece().await.unwrap(), "x");
    assert_eq!(
        soon(whole).await.unwrap().json().await["choices"][0]["message"]["content"],
        "x"
    );
}

#[tokio::test]
async fn holding_is_bounded_in_number_and_time() {
    let settings = Settings {
        hold_limit: 1,
        hold_timeout: Duration::from_millis(400),
        ..Settings::default()
    };
    let served = gateway(settings).await;
    served.publish("m", &[]);
    let first = tokio::spawn(post(served.http, "/v1/chat/completions", chat(false)));
    counted(&served, (1, 0, 1)).await;
    let second = ask(&served, false).await;
    assert_eq!(
        (second.status(), second.header("retry-after")),
        (StatusCode::SERVICE_UNAVAILABLE, Some("10"))
    );
    assert_eq!(second.json().await["error"]["code"], "too_many_waiting");
    let first = soon(first).await.unwrap();
    assert_eq!(first.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(first.json().await["error"]["code"], "no_group_ready");
    counted(&served, (0, 0, 2)).await;
}

#[tokio::test]
async fn a_hopeless_deployment_says_why_at_once() {
    let served = gateway(Settings::default()).await;
    let mut hopeless = found("m", &[]);
    hopeless.problem = Some("tensor 10 is more than 9 q heads".to_owned());
    served.gateway.publish(vec![hopeless]);
    let reply = ask(&served, false).await;
    assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        reply.json().await["error"]["message"]
            .as_str()
            .unwrap()
            .contains("9 q heads")
    );
}

#[tokio::test]
async fn stopping_lets_answers_finish_and_sends_waiting_requests_away() {
    let served = gateway(Settings::default()).await;
    let mut worker = Worker::start();
    served.publish("m", &[worker.address]);
    let request = tokio::spawn(post(served.http, "/v1/chat/completions", chat(true)));
    let mut answering = worker.call().await.accept().await;
    answering.send("a", &[1], None).await;
    let mut running = soon(request).await.unwrap();
    assert_eq!(running.piece().await.unwrap(), "a");
    served.publish("m", &[]);
    let waiting = tokio::spawn(post(served.http, "/v1/chat/completions", chat(false)));
    counted(&served, (1, 1, 2)).await;

    served.stop.cancel();
    let waiting = soon(waiting).await.unwrap();
    assert_eq!(waiting.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(waiting.json().await["error"]["code"], "gateway_stopping");
    assert_eq!(
        get(served.health, "/readyz").await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert_eq!(get(served.health, "/livez").await.status(), StatusCode::OK);
    answering.send("b", &[2], Some(FinishReason::Stop)).await;
    assert_eq!(running.piece().await.unwrap(), "b");
    while running.event().await.is_some() {}
    soon(served.ended).await.unwrap();
}

#[tokio::test]
async fn a_request_that_kills_its_leaders_ends_after_three() {
    for stream in [false, true] {
        let served = gateway(Settings::default()).await;
        let mut worker = Worker::start();
        served.publish("m", &[worker.address]);
        let request = tokio::spawn(post(served.http, "/v1/chat/completions", chat(stream)));
        for token in 1..=3 {
            let mut answering = worker.call().await.accept().await;
            answering.send("a", &[token], None).await;
            answering.fail(tonic::Status::unavailable("rank 0 died")).await;
        }
        let mut reply = soon(request).await.unwrap();
        let error: Value = if stream {
            for _ in 0..3 {
                assert_eq!(reply.piece().await.unwrap(), "a");
            }
            let error = serde_json::from_str(&reply.event().await.unwrap()).unwrap();
            assert_eq!(reply.event().await, None);
            error
        } else {
            assert_eq!(
                (reply.status(), reply.header("x-should-retry")),
                (StatusCode::INTERNAL_SERVER_ERROR, Some("false"))
            );
            reply.json().await
        };
        assert_eq!(error["error"]["code"], "leaders_lost");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("The request itself is the likely cause"),
            "{message}"
        );
        assert!(!worker.has_call());
    }
}

#[tokio::test]
async fn a_request_that_progresses_outlives_any_number_of_leaders() {
    let served = gateway(Settings::default()).await;
    let mut worker = Worker::start();
    served.publish("m", &[worker.address]);
    let request = tokio::spawn(post(served.http, "/v1/chat/completions", chat(false)));
    for _ in 0..4 {
        let mut answering = worker.call().await.accept().await;
        answering.send("a", &[7; 32], None).await;
        answering.fail(tonic::Status::unavailable("moving on")).await;
    }
    worker.call().await.answer(&["end"]).await;
    let answer = soon(request).await.unwrap().json().await;
    assert_eq!(answer["choices"][0]["message"]["content"], "aaaaend");
}

#[tokio::test]
async fn an_answer_goes_on_only_on_the_weights_it_began_on() {
    let served = gateway(Settings::default()).await;
    let (mut first, mut other, mut same) = (Worker::start(), Worker::start(), Worker::start());
    served.publish("m", &[first.address]);
    let request = tokio::spawn(post(served.http, "/v1/chat/completions", chat(false)));
    let call = first.call().await;
    assert_eq!(call.request.content_identity, "");
    let mut answering = call.accept_as("base").await;
    answering.send("a", &[1], None).await;
    served.publish("m", &[other.address]);
    answering.fail(tonic::Status::unavailable("gone")).await;
    // It is asked once, refuses, and is left alone.
    let call = other.call().await;
    assert_eq!(call.request.content_identity, "base");
    call.refuse(tonic::Status::failed_precondition("this is instruct"));
    served.publish("m", &[other.address, same.address]);
    let call = same.call().await;
    assert_eq!(
        (
            call.request.content_identity.as_str(),
            &call.request.resume_token_ids[..]
        ),
        ("base", &[1][..])
    );
    let mut answering = call.accept_as("base").await;
    answering.send("b", &[2], Some(FinishReason::Stop)).await;
    let answer = soon(request).await.unwrap().json().await;
    assert_eq!(answer["choices"][0]["message"]["content"], "ab");
    assert!(!other.has_call());
}

#[tokio::test]
async fn other_weights_alone_end_a_stream_with_a_sentence() {
    let settings = Settings {
        continuation_timeout: Duration::from_millis(300),
        ..Settings::default()
    };
    let served = gateway(settings).await;
    let (mut first, mut other) = (Worker::start(), Worker::start());
    served.publish("m", &[first.address]);
    let request = tokio::spawn(post(served.http, "/v1/chat/completions", chat(true)));
    let mut answering = first.call().await.accept_as("base").await;
    answering.send("a", &[1], None).await;
    let mut reply = soon(request).await.unwrap();
    assert_eq!(reply.piece().await.unwrap(), "a");
    served.publish("m", &[other.address]);
    answering.fail(tonic::Status::unavailable("gone")).await;
    // A leader that takes the request although it has other weights is not believed.
    let answering = other.call().await.accept_as("instruct").await;
    answering.cancelled().await;
    let error: Value = serde_json::from_str(&reply.event().await.unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "other_weights");
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("same weights")
    );
}

fn full() -> tonic::Status {
    let mut full = tonic::Status::resource_exhausted("the queue is full");
    full.metadata_mut()
        .insert("retry-after-ms", "2500".parse().unwrap());
    full
}

#[tokio::test]
async fn a_full_queue_sends_a_request_to_another_leader_or_away() {
    let served = gateway(Settings::default()).await;
    let (mut a, mut b) = (Worker::start(), Worker::start());
    // The load decides who is asked first.
    served.publish("m", &[a.address]);
    let request = tokio::spawn(post(served.http, "/v1/chat/completions", chat(false)));
    let call = a.call().await;
    served.publish("m", &[a.address, b.address]);
    call.refuse(full());
    b.call().await.answer(&["x"]).await;
    assert_eq!(soon(request).await.unwrap().status(), StatusCode::OK);

    let request = tokio::spawn(post(served.http, "/v1/chat/completions", chat(true)));
    let (first, second) = tokio::join!(a_or_b(&mut a), a_or_b(&mut b));
    assert!(first && second);
    let reply = soon(request).await.unwrap();
    assert_eq!(
        (reply.status(), reply.header("retry-after")),
        (StatusCode::TOO_MANY_REQUESTS, Some("3"))
    );
    assert_eq!(reply.json().await["error"]["code"], "overloaded");
}

async fn a_or_b(worker: &mut Worker) -> bool {
    worker.call().await.refuse(full());
    true
}

#[tokio::test]
async fn a_stream_waits_for_room_when_it_has_begun() {
    let served = gateway(Settings::default()).await;
    let mut worker = Worker::start();
    served.publish("m", &[worker.address]);
    let request = tokio::spawn(post(served.http, "/v1/chat/completions", chat(false)));
    let mut answering = worker.call().await.accept().await;
    answering.send("a", &[1], None).await;
    answering.fail(tonic::Status::unavailable("gone")).await;
    let mut full = tonic::Status::resource_exhausted("the queue is full");
    full.metadata_mut().insert("retry-after-ms", "5".parse().unwrap());
    worker.call().await.refuse(full);
    worker.call().await.answer(&["b"]).await;
    let answer = soon(request).await.unwrap().json().await;
    assert_eq!(answer["choices"][0]["message"]["content"], "ab");
}

#[tokio::test]
async fn holding_is_bounded_in_bytes_over_all_deployments() {
    let settings = Settings {
        hold_bytes: 100 << 10,
        ..Settings::default()
    };
    let served = gateway(settings).await;
    let mut second = found("n", &[]);
    second.key.name = "other".to_owned();
    served.gateway.publish(vec![found("m", &[]), second]);
    let long = |model: &str| json!({"model": model, "messages": [{"role": "user", "content": "x".repeat(60 << 10)}]});
    let first = tokio::spawn(post(served.http, "/v1/chat/completions", long("m")));
    counted(&served, (1, 0, 1)).await;
    let refused = post(served.http, "/v1/chat/completions", long("n")).await;
    assert_eq!(
        (refused.status(), refused.header("retry-after")),
        (StatusCode::SERVICE_UNAVAILABLE, Some("10"))
    );
    assert_eq!(refused.json().await["error"]["code"], "too_many_waiting");
    first.abort();
    soon(async {
        while served.gateway.held_bytes.used() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let again = tokio::spawn(post(served.http, "/v1/chat/completions", long("n")));
    let mut worker = Worker::start();
    let mut ready = found("n", &[worker.address]);
    ready.key.name = "other".to_owned();
    served.gateway.publish(vec![ready]);
    worker.call().await.answer(&["x"]).await;
    assert_eq!(soon(again).await.unwrap().status(), StatusCode::OK);
    assert_eq!(served.gateway.held_bytes.used(), 0);
}

/// A leader takes its time to tokenise; meanwhile the request is in this process.
#[tokio::test]
async fn requests_on_their_way_to_a_leader_are_bounded_too() {
    let settings = Settings {
        hold_bytes: 100 << 10,
        ..Settings::default()
    };
    let served = gateway(settings).await;
    let mut worker = Worker::start();
    served.publish("m", &[worker.address]);
    let long = json!({"model": "m", "messages": [{"role": "user", "content": "x".repeat(60 << 10)}]});
    let first = tokio::spawn(post(served.http, "/v1/chat/completions", long.clone()));
    let call = worker.call().await;
    let refused = post(served.http, "/v1/chat/completions", long.clone()).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.json().await["error"]["code"], "too_many_waiting");
    let mut answering = call.accept().await;
    answering.send("a", &[1], None).await;
    soon(async {
        while served.gateway.held_bytes.used() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let second = tokio::spawn(post(served.http, "/v1/chat/completions", long));
    worker.call().await.answer(&["b"]).await;
    assert_eq!(soon(second).await.unwrap().status(), StatusCode::OK);
    first.abort();
    assert_eq!(served.gateway.held_bytes.used(), 0);
}

#[tokio::test]
async fn a_silent_text_completion_sends_empty_text() {
    let settings = Settings {
        first_chunk_wait: Duration::from_millis(10),
        keep_alive: Duration::from_millis(10),
        ..Settings::default()
    };
    let served = gateway(settings).await;
    let mut worker = Worker::start();
    served.publish("m", &[worker.address]);
    let request = json!({"model": "m", "prompt": "hi", "stream": true});
    let mut reply = post(served.http, "/v1/completions", request).await;
    let silence: Value = serde_json::from_str(&reply.event().await.unwrap()).unwrap();
    assert_eq!(
        (
            &silence["choices"][0]["text"],
            &silence["choices"][0]["finish_reason"]
        ),
        (&json!(""), &Value::Null)
    );
    // Also in the middle of an answer.
    let mut answering = worker.call().await.accept().await;
    answering.send("a", &[1], None).await;
    assert_eq!(reply.piece().await.unwrap(), "a");
    let silence: Value = serde_json::from_str(&reply.event().await.unwrap()).unwrap();
    assert_eq!(silence["choices"][0]["text"], "");
    answering.send("b", &[2], Some(FinishReason::Stop)).await;
    assert_eq!(reply.piece().await.unwrap(), "b");
}

#[tokio::test]
async fn a_held_request_waits_as_long_as_its_client_wants() {
    let served = gateway(Settings::default()).await;
    served.publish("m", &[]);
    let body = chat(false).to_string();
    let headers = [("prefer", "wait=0")];
    let reply = send_with(
        served.http,
        hyper::Method::POST,
        "/v1/chat/completions",
        &headers,
        body,
    )
    .await;
    assert_eq!(
        (
            reply.status(),
            reply.header("retry-after"),
            reply.header("preference-applied")
        ),
        (StatusCode::SERVICE_UNAVAILABLE, Some("10"), Some("wait=0"))
    );
    // Nothing was sent before, so the status is the first thing that came.
    assert_eq!(reply.json().await["error"]["code"], "no_group_ready");
}
