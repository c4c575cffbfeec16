//! Requests that wait for a group, and the end of a gateway.

use std::time::Duration;

use hyper::StatusCode;
use llamero_gateway::Settings;
use llamero_proto::v1::demand_client::DemandClient;
use llamero_proto::v1::{DemandRequest, DemandSample, FinishReason};
use serde_json::{Value, json};

use crate::support::client::{get, post, send_with};
use crate::support::worker::Worker;
use crate::support::{MODEL, ask, asking, begun, counted, found, gateway, soon, streamed, with_worker};

#[tokio::test]
async fn a_request_at_zero_is_held_told_and_answered() {
    let settings = Settings {
        first_chunk_wait: Duration::from_millis(10),
        keep_alive: Duration::from_millis(10),
        ..Settings::default()
    };
    let served = gateway(settings).await;
    served.publish(MODEL, &[]);
    let mut demand = DemandClient::connect(format!("http://{}", served.grpc))
        .await
        .unwrap();
    let mut samples = demand.watch(DemandRequest {}).await.unwrap().into_inner();

    let mut streamed = ask(&served, true).await;
    assert_eq!(streamed.status(), StatusCode::OK);
    let whole = asking(&served, false);
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
    served.publish(MODEL, &[worker.address]);
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
        hold_timeout: Duration::from_secs(3),
        ..Settings::default()
    };
    let served = gateway(settings).await;
    served.publish(MODEL, &[]);
    let first = asking(&served, false);
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
    let mut hopeless = found(MODEL, &[]);
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
    let (served, mut worker) = with_worker(Settings::default()).await;
    let (request, mut answering) = begun(&served, &mut worker, true).await;
    let mut running = soon(request).await.unwrap();
    assert_eq!(running.piece().await.unwrap(), "a");
    served.publish(MODEL, &[]);
    let waiting = asking(&served, false);
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
async fn holding_is_bounded_in_bytes_over_all_deployments() {
    let settings = Settings {
        hold_bytes: 100 << 10,
        ..Settings::default()
    };
    let served = gateway(settings).await;
    let mut second = found("n", &[]);
    second.key.name = "other".to_owned();
    served.gateway.publish(vec![found(MODEL, &[]), second]);
    let long = |model: &str| json!({"model": model, "messages": [{"role": "user", "content": "x".repeat(60 << 10)}]});
    let first = tokio::spawn(post(served.http, "/v1/chat/completions", long(MODEL)));
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
    let (served, mut worker) = with_worker(settings).await;
    let request = json!({"model": MODEL, "prompt": "hi", "stream": true});
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
    served.publish(MODEL, &[]);
    let body = streamed(false).to_string();
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
