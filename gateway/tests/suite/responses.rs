//! `POST /v1/responses`.

use std::time::Duration;

use hyper::StatusCode;
use llamero_gateway::Settings;
use llamero_proto::v1::structure::Form;
use llamero_proto::v1::{ChatPrompt, FinishReason, completion_request::Prompt};
use serde_json::{Value, json};

use crate::support::client::post;
use crate::support::worker::Call;
use crate::support::{MODEL, with_worker};

const PATH: &str = "/v1/responses";

fn request(extra: Value) -> Value {
    let mut request = json!({"model": MODEL, "input": "hi", "instructions": "be kind"});
    request
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    request
}

fn prompt(call: &Call) -> ChatPrompt {
    match call.request.prompt.clone() {
        Some(Prompt::Chat(chat)) => chat,
        other => panic!("{other:?}"),
    }
}

fn tools() -> Value {
    json!([{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true}])
}

#[tokio::test]
async fn a_response_comes_whole() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let extra = json!({"max_output_tokens": 50, "metadata": {"a": "b"}, "store": true, "tools": tools()});
    let (reply, ()) = tokio::join!(post(served.http, PATH, request(extra)), async {
        let call = worker.call().await;
        let chat = prompt(&call);
        let said: Vec<_> = chat
            .messages
            .iter()
            .map(|message| (&*message.role, &*message.content))
            .collect();
        assert_eq!(said, [("system", "be kind"), ("user", "hi")]);
        assert_eq!(call.request.max_tokens, Some(50));
        assert!(
            chat.tools_json
                .starts_with(r#"[{"type":"function","function":{"name":"f","parameters":{"#)
        );
        call.answer_and_call().await;
    });
    assert_eq!(reply.status(), StatusCode::OK);
    let response = reply.json().await;
    let bare = response["id"]
        .as_str()
        .unwrap()
        .strip_prefix("resp_")
        .unwrap()
        .to_owned();
    assert_eq!(
        (&response["object"], &response["status"]),
        (&json!("response"), &json!("completed"))
    );
    assert_eq!(
        (&response["metadata"], &response["store"]),
        (&json!({"a": "b"}), &json!(false))
    );
    assert_eq!(
        response["output"],
        json!([
            {"type": "message", "id": format!("msg_{bare}00"), "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]},
            {"type": "function_call", "id": format!("fc_{bare}01"), "call_id": format!("call_{bare}0000"),
                "name": "f", "arguments": "{\"a\":1}", "status": "completed"},
        ])
    );
    assert_eq!(
        response["usage"],
        json!({"input_tokens": 5, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}, "output_tokens": 6,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 11})
    );
}

#[tokio::test]
async fn the_events_of_a_stream_come_in_order_and_end_in_the_same_response() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let body = request(json!({"stream": true, "tools": tools()}));
    let (mut reply, ()) = tokio::join!(post(served.http, PATH, body), async {
        worker.call().await.answer_and_call().await;
    });
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    let events = reply.all_named().await;
    let names: Vec<&str> = events
        .iter()
        .map(|(name, _)| name.strip_prefix("response.").unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
    );
    let numbers: Vec<u64> = events
        .iter()
        .map(|(_, event)| event["sequence_number"].as_u64().unwrap())
        .collect();
    assert!(numbers.iter().copied().eq(0..15));
    let response = &events[14].1["response"];
    assert_eq!(events[0].1["response"]["status"], "in_progress");
    assert_eq!(
        (&events[8].1["item"], &events[13].1["item"]),
        (&response["output"][0], &response["output"][1])
    );
    assert_eq!(response["output"][0]["content"][0]["text"], "Hello");
    assert_eq!(response["usage"]["output_tokens"], 6);
}

#[tokio::test]
async fn forms_are_enforced_and_long_answers_are_incomplete() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let format = json!({"type": "json_schema", "name": "n", "schema": {"type": "null"}, "strict": true});
    let body = request(json!({"text": {"format": format}}));
    let (reply, ()) = tokio::join!(post(served.http, PATH, body), async {
        let call = worker.call().await;
        let structure = call.request.structure.clone().unwrap();
        assert_eq!(structure.parameter, "text.format");
        assert_eq!(
            structure.form,
            Some(Form::JsonSchema(r#"{"type":"null"}"#.to_owned()))
        );
        let mut answering = call.accept().await;
        answering.send("nul", &[1], Some(FinishReason::Length)).await;
    });
    let response = reply.json().await;
    assert_eq!(
        (&response["status"], &response["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    assert_eq!(response["output"][0]["status"], "incomplete");
    assert_eq!(response["text"]["format"], format);
}

#[tokio::test]
async fn what_would_have_to_be_stored_is_refused_by_name() {
    let (served, _worker) = with_worker(Settings::default()).await;
    for (extra, param) in [
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"background": true}), "background"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0]"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"input": null}), "input"),
        (
            json!({"input": [{"type": "item_reference", "id": "x"}]}),
            "input[0]",
        ),
    ] {
        let reply = post(served.http, PATH, request(extra)).await;
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
        let error = reply.json().await["error"].clone();
        assert_eq!(error["param"], param, "{error}");
    }
}

#[tokio::test]
async fn a_silent_stream_repeats_its_state_and_a_failed_one_says_so() {
    let settings = Settings {
        first_chunk_wait: Duration::from_millis(10),
        keep_alive: Duration::from_millis(10),
        ..Settings::default()
    };
    let (served, mut worker) = with_worker(settings).await;
    let mut reply = post(served.http, PATH, request(json!({"stream": true}))).await;
    for name in ["response.created", "response.in_progress", "response.in_progress"] {
        assert_eq!(reply.named().await.unwrap().0, name);
    }
    let mut answering = worker.call().await.accept().await;
    answering.send("a", &[1], None).await;
    answering.fail(tonic::Status::internal("out of cheese")).await;
    let events = reply.all_named().await;
    let ends = &events[events.len() - 2..];
    assert_eq!((&*ends[0].0, &*ends[1].0), ("error", "response.failed"));
    assert!(ends[0].1["message"].as_str().unwrap().contains("out of cheese"));
    assert_eq!(ends[1].1["response"]["status"], "failed");
}
