//! Answers that lose their leaders.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::StatusCode;
use llamero_gateway::Settings;
use llamero_proto::v1::{CompletionRequest, FinishReason};
use serde_json::Value;

use crate::support::worker::Worker;
use crate::support::{MODEL, ask, asking, begun, counted, gateway, soon, with_worker};

fn without_resume(mut request: CompletionRequest) -> CompletionRequest {
    request.resume_token_ids.clear();
    request
}

#[tokio::test]
async fn a_stream_goes_on_when_its_leader_dies() {
    let served = gateway(Settings::default()).await;
    let mut workers = BTreeMap::new();
    for worker in [Worker::start(), Worker::start()] {
        workers.insert(worker.address, worker);
    }
    served.publish(MODEL, &workers.keys().copied().collect::<Vec<_>>());
    let request = asking(&served, true);
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
    let (served, mut worker) = with_worker(Settings::default()).await;
    let (request, answering) = begun(&served, &mut worker, false).await;
    answering
        .fail(tonic::Status::aborted("the group forms again"))
        .await;
    worker.call().await.refuse(tonic::Status::unavailable("not yet"));
    let call = worker.call().await;
    assert_eq!(call.request.resume_token_ids, [1]);
    let mut answering = call.accept().await;
    // So much progress that the losses after it are not the request's fault, wherever they strike.
    answering.send("b", &[2; 64], None).await;
    let resumed = [vec![1], vec![2; 64]].concat();
    // The stream ends without a word, and the process is replaced at the same address.
    drop(answering);
    let call = worker.call().await;
    assert_eq!(call.request.resume_token_ids, resumed);
    drop(call);
    let mut worker = Worker::start_at(worker.kill().await);
    let call = worker.call().await;
    assert_eq!(call.request.resume_token_ids, resumed);
    let mut answering = call.accept().await;
    answering.send("c", &[3], Some(FinishReason::Length)).await;
    let answer = soon(request).await.unwrap().json().await;
    assert_eq!(answer["choices"][0]["message"]["content"], "abc");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 66);
}

#[tokio::test]
async fn an_answer_with_a_hole_is_an_error_not_an_answer() {
    let (served, mut worker) = with_worker(Settings::default()).await;
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
    let (served, mut worker) = with_worker(settings).await;
    let (request, _answering) = begun(&served, &mut worker, true).await;
    let mut reply = soon(request).await.unwrap();
    assert_eq!(reply.piece().await.unwrap(), "a");
    worker.kill().await;
    let error: Value = serde_json::from_str(&reply.event().await.unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "no_group_reachable");
    assert_eq!(reply.event().await, None);
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_request() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let (request, answering) = begun(&served, &mut worker, true).await;
    let mut reply = soon(request).await.unwrap();
    assert_eq!(reply.piece().await.unwrap(), "a");
    counted(&served, (0, 1, 1)).await;
    reply.hang_up();
    answering.cancelled().await;
    counted(&served, (0, 0, 1)).await;

    // The same without streaming, while the worker still computes.
    let request = asking(&served, false);
    let answering = worker.call().await.accept().await;
    request.abort();
    answering.cancelled().await;
    counted(&served, (0, 0, 2)).await;
}

#[tokio::test]
async fn a_request_that_kills_its_leaders_ends_after_three() {
    for stream in [false, true] {
        let (served, mut worker) = with_worker(Settings::default()).await;
        let request = asking(&served, stream);
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
    let (served, mut worker) = with_worker(Settings::default()).await;
    let request = asking(&served, false);
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
    served.publish(MODEL, &[first.address]);
    let request = asking(&served, false);
    let call = first.call().await;
    assert_eq!(call.request.content_identity, "");
    let mut answering = call.accept_as("base").await;
    answering.send("a", &[1], None).await;
    served.publish(MODEL, &[other.address]);
    answering.fail(tonic::Status::unavailable("gone")).await;
    // It is asked once, refuses, and is left alone.
    let call = other.call().await;
    assert_eq!(call.request.content_identity, "base");
    call.refuse(tonic::Status::failed_precondition("this is instruct"));
    served.publish(MODEL, &[other.address, same.address]);
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
async fn an_answer_that_one_leader_takes_for_wrong_goes_on_at_another() {
    let served = gateway(Settings::default()).await;
    let (mut first, mut older, mut same) = (Worker::start(), Worker::start(), Worker::start());
    served.publish(MODEL, &[first.address]);
    let (request, answering) = begun(&served, &mut first, false).await;
    served.publish(MODEL, &[older.address]);
    answering.fail(tonic::Status::unavailable("gone")).await;
    // It reads the form of the answer in another way, and is asked once.
    let call = older.call().await;
    assert_eq!(call.request.resume_token_ids, [1]);
    call.refuse(tonic::Status::invalid_argument(
        "the resumed tokens have another form",
    ));
    served.publish(MODEL, &[older.address, same.address]);
    let mut answering = same.call().await.accept().await;
    answering.send("b", &[2], None).await;
    // What comes to be wrong while it is answered is final.
    answering
        .fail(tonic::Status::invalid_argument(
            "the form cannot be enforced any further",
        ))
        .await;
    let reply = soon(request).await.unwrap();
    assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
    let message = reply.json().await["error"]["message"].to_string();
    assert!(message.contains("any further"), "{message}");
    assert!(!older.has_call() && !same.has_call());
}

#[tokio::test]
async fn other_weights_alone_end_a_stream_with_a_sentence() {
    let settings = Settings {
        continuation_timeout: Duration::from_secs(3),
        ..Settings::default()
    };
    let served = gateway(settings).await;
    let (mut first, mut other) = (Worker::start(), Worker::start());
    served.publish(MODEL, &[first.address]);
    let request = asking(&served, true);
    let mut answering = first.call().await.accept_as("base").await;
    answering.send("a", &[1], None).await;
    let mut reply = soon(request).await.unwrap();
    assert_eq!(reply.piece().await.unwrap(), "a");
    served.publish(MODEL, &[other.address]);
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
