//! `POST /v1/messages`.

use std::time::Duration;

use hyper::{Method, StatusCode};
use llamero_gateway::Settings;
use llamero_proto::v1::FinishReason;
use serde_json::{Value, json};

use crate::support::client::{post, send_with};
use crate::support::{MODEL, with_worker};

const PATH: &str = "/v1/messages";

fn request(extra: Value) -> Value {
    let mut request =
        json!({"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]});
    request
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    request
}

fn tools() -> Value {
    json!([{"name": "f", "input_schema": {"type": "object"}}])
}

#[tokio::test]
async fn a_message_comes_whole() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let body = request(json!({"tools": tools()}));
    let (reply, ()) = tokio::join!(post(served.http, PATH, body), async {
        worker.call().await.answer_and_call().await
    });
    assert_eq!(reply.status(), StatusCode::OK);
    let mut message = reply.json().await;
    let bare = message["id"]
        .as_str()
        .unwrap()
        .strip_prefix("msg_")
        .unwrap()
        .to_owned();
    message["id"].take();
    assert_eq!(
        message,
        json!({
            "id": null, "type": "message", "role": "assistant", "model": MODEL,
            "content": [{"type": "text", "text": "Hello"},
                {"type": "tool_use", "id": format!("call_{bare}0000"), "name": "f", "input": {"a": 1}}],
            "stop_reason": "tool_use", "stop_sequence": null,
            "usage": {"input_tokens": 5, "output_tokens": 6, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0},
        })
    );
}

#[tokio::test]
async fn the_events_of_a_stream_come_in_order() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let body = request(json!({"stream": true, "tools": tools()}));
    let (mut reply, ()) = tokio::join!(post(served.http, PATH, body), async {
        worker.call().await.answer_and_call().await
    });
    let events = reply.all_named().await;
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    assert_eq!(events[0].1["message"]["usage"]["input_tokens"], 5);
    assert_eq!(events[2].1["delta"], json!({"type": "text_delta", "text": "Hel"}));
    assert_eq!(
        (&events[5].1["index"], &events[5].1["content_block"]["name"]),
        (&json!(1), &json!("f"))
    );
    assert_eq!(
        events[6].1["delta"],
        json!({"type": "input_json_delta", "partial_json": "{\"a\":"})
    );
    assert_eq!(
        events[9].1["delta"],
        json!({"stop_reason": "tool_use", "stop_sequence": null})
    );
    assert_eq!(events[9].1["usage"]["output_tokens"], 6);
}

#[tokio::test]
async fn each_end_has_its_reason() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let mut reasons = Vec::new();
    for end in ["length", "stop", "END"] {
        let body = request(json!({"stop_sequences": ["END"]}));
        let (reply, ()) = tokio::join!(post(served.http, PATH, body), async {
            let call = worker.call().await;
            assert_eq!(call.request.stop, ["END"]);
            let mut answering = call.accept().await;
            match end {
                "length" => answering.send("x", &[1], Some(FinishReason::Length)).await,
                "stop" => answering.send("x", &[1], Some(FinishReason::Stop)).await,
                string => {
                    answering.send("x", &[1], None).await;
                    answering.stop_at(string).await;
                }
            }
        });
        let message = reply.json().await;
        reasons.push((message["stop_reason"].clone(), message["stop_sequence"].clone()));
    }
    assert_eq!(
        reasons,
        [
            (json!("max_tokens"), json!(null)),
            (json!("end_turn"), json!(null)),
            (json!("stop_sequence"), json!("END"))
        ]
    );
}

#[tokio::test]
async fn errors_have_anthropic_s_form_whole_and_in_streams() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    for (body, status, kind) in [
        (request(json!({"max_tokens": null})), 400, "invalid_request_error"),
        (request(json!({"model": "nope"})), 404, "not_found_error"),
        (json!([]), 400, "invalid_request_error"),
    ] {
        let reply = post(served.http, PATH, body).await;
        assert_eq!(reply.status().as_u16(), status);
        assert_eq!(reply.header("content-type"), Some("application/json"));
        let error = reply.json().await;
        assert_eq!(
            (&error["type"], &error["error"]["type"]),
            (&json!("error"), &json!(kind))
        );
        assert!(!error["error"]["message"].as_str().unwrap().is_empty());
    }
    let (mut reply, ()) = tokio::join!(post(served.http, PATH, request(json!({"stream": true}))), async {
        let mut answering = worker.call().await.accept().await;
        answering.send("a", &[1], None).await;
        answering.fail(tonic::Status::internal("out of cheese")).await;
    });
    let events = reply.all_named().await;
    let (name, error) = events.last().unwrap();
    assert_eq!(
        (name.as_str(), &error["error"]["type"]),
        ("error", &json!("api_error"))
    );
}

#[tokio::test]
async fn a_silent_stream_pings() {
    let settings = Settings {
        first_chunk_wait: Duration::from_millis(10),
        keep_alive: Duration::from_millis(10),
        ..Settings::default()
    };
    let (served, mut worker) = with_worker(settings).await;
    let mut reply = post(served.http, PATH, request(json!({"stream": true}))).await;
    assert_eq!(
        reply.named().await.unwrap(),
        ("ping".to_owned(), json!({"type": "ping"}))
    );
    worker.call().await.answer(&["x"]).await;
    let events = reply.all_named().await;
    assert_eq!(events.last().unwrap().0, "message_stop");
}

#[tokio::test]
async fn tokens_are_counted() {
    let (served, _worker) = with_worker(Settings::default()).await;
    let mut body = request(json!({"system": "abc"}));
    body.as_object_mut().unwrap().remove("max_tokens");
    let headers = [("x-api-key", "unused"), ("anthropic-version", "2023-06-01")];
    let path = "/v1/messages/count_tokens";
    let reply = send_with(served.http, Method::POST, path, &headers, body.to_string()).await;
    assert_eq!(reply.json().await, json!({"input_tokens": 5}));
}
