//! Answers, whole and streamed.

use hyper::StatusCode;
use llamero_gateway::Settings;
use llamero_proto::v1::{FinishReason, completion_request::Prompt};
use serde_json::{Value, json};

use crate::support::client::post;
use crate::support::{MODEL, chat, with_worker};

#[tokio::test]
async fn a_chat_answer_comes_whole() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let request = post(
        served.http,
        "/v1/chat/completions",
        chat(json!({"max_completion_tokens": 9, "seed": 4})),
    );
    let (reply, ()) = tokio::join!(request, async {
        let call = worker.call().await;
        let Some(Prompt::Chat(chat)) = &call.request.prompt else {
            panic!("{:?}", call.request)
        };
        assert_eq!(
            (chat.messages[0].role.as_str(), chat.messages[0].content.as_str()),
            ("user", "hi")
        );
        assert_eq!((call.request.max_tokens, call.request.seed), (Some(9), Some(4)));
        assert_eq!((call.request.temperature, call.request.top_p), (None, None));
        call.answer(&["Hel", "lo"]).await;
    });
    assert_eq!(reply.status(), StatusCode::OK);
    let mut answer = reply.json().await;
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    answer["id"].take();
    answer["created"].take();
    assert_eq!(
        answer,
        json!({
            "id": null, "object": "chat.completion", "created": null, "model": MODEL,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello", "refusal": null},
                "logprobs": null, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 0}},
        })
    );
}

#[tokio::test]
async fn a_chat_answer_streams_with_usage() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let extra = json!({"stream": true, "stream_options": {"include_usage": true}});
    let request = post(served.http, "/v1/chat/completions", chat(extra));
    let (mut reply, ()) = tokio::join!(request, async {
        let call = worker.call().await;
        assert!(
            call.request.seed.is_some(),
            "an answer without a seed could not go on elsewhere"
        );
        call.answer(&["Hé", "llo"]).await;
    });
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!(reply.header("cache-control"), Some("no-cache, no-transform"));
    assert_eq!(reply.header("x-accel-buffering"), Some("no"));
    let mut events = Vec::new();
    while let Some(event) = reply.event().await {
        events.push(event);
    }
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let events: Vec<Value> = events
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    let deltas: Vec<&Value> = events[..4]
        .iter()
        .map(|event| &event["choices"][0]["delta"])
        .collect();
    let expected = [
        json!({"role": "assistant", "content": ""}),
        json!({"content": "Hé"}),
        json!({"content": "llo"}),
        json!({}),
    ];
    assert!(deltas.into_iter().eq(&expected));
    assert_eq!(events[3]["choices"][0]["finish_reason"], "stop");
    assert!(
        events[..4]
            .iter()
            .all(|event| event["usage"].is_null() && event.get("usage").is_some())
    );
    assert_eq!(events[4]["choices"], json!([]));
    assert_eq!(
        events[4]["usage"],
        json!({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 0}})
    );
    assert!(
        events
            .iter()
            .all(|event| event["object"] == "chat.completion.chunk" && event["id"] == events[0]["id"])
    );
}

#[tokio::test]
async fn text_completion_both_ways() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let request = json!({"model": MODEL, "prompt": "Once", "stop": "."});
    let (reply, ()) = tokio::join!(post(served.http, "/v1/completions", request.clone()), async {
        let call = worker.call().await;
        assert_eq!(call.request.prompt, Some(Prompt::Text("Once".to_owned())));
        assert_eq!(
            (call.request.max_tokens, &call.request.stop[..]),
            (Some(16), &[".".to_owned()][..])
        );
        let mut answering = call.accept().await;
        answering.send(" upon", &[1], Some(FinishReason::Length)).await;
    });
    let answer = reply.json().await;
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(
        answer["choices"],
        json!([{"index": 0, "text": " upon", "logprobs": null, "finish_reason": "length"}])
    );
    let mut streamed = request;
    streamed["stream"] = json!(true);
    let (mut reply, ()) = tokio::join!(post(served.http, "/v1/completions", streamed), async {
        worker.call().await.answer(&[" upon", " a time"]).await;
    });
    assert_eq!(reply.piece().await.unwrap(), " upon");
    assert_eq!(reply.piece().await.unwrap(), " a time");
    let last: Value = serde_json::from_str(&reply.event().await.unwrap()).unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert!(last.get("usage").is_none());
    assert_eq!(reply.event().await.unwrap(), "[DONE]");
    assert_eq!(reply.event().await, None);
}

#[tokio::test]
async fn several_answers_come_from_several_requests_with_seeds_in_a_row() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let request = chat(json!({"n": 3, "seed": 40}));
    let (reply, ()) = tokio::join!(post(served.http, "/v1/chat/completions", request), async {
        let mut ids = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let call = worker.call().await;
            ids.insert(call.request.request_id.clone());
            let word = call.request.seed.unwrap().to_string();
            call.answer(&[&word]).await;
        }
        assert_eq!(ids.len(), 3);
    });
    let answer = reply.json().await;
    let said: Vec<_> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| {
            (
                choice["index"].as_u64().unwrap(),
                choice["message"]["content"].clone(),
            )
        })
        .collect();
    assert_eq!(said, [(0, json!("40")), (1, json!("41")), (2, json!("42"))]);
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 0}})
    );
}

#[tokio::test]
async fn several_prompts_stream_in_one_answer_with_usage_all_along() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let request = json!({"model": MODEL, "prompt": ["a", "b"], "stream": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let (mut reply, ()) = tokio::join!(post(served.http, "/v1/completions", request), async {
        for _ in 0..2 {
            let call = worker.call().await;
            let Some(Prompt::Text(text)) = call.request.prompt.clone() else {
                panic!()
            };
            call.answer(&[&text, "!"]).await;
        }
    });
    let mut texts = [String::new(), String::new()];
    let mut usages = Vec::new();
    loop {
        let event = reply.event().await.unwrap();
        if event == "[DONE]" {
            break;
        }
        let event: Value = serde_json::from_str(&event).unwrap();
        usages.push(event["usage"].clone());
        if let Some(choice) = event["choices"].get(0) {
            let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
            texts[index] += choice["text"].as_str().unwrap();
        }
    }
    assert_eq!(texts, ["a!", "b!"]);
    assert!(
        usages
            .iter()
            .all(|usage| usage["prompt_tokens"].as_u64() >= Some(5))
    );
    assert_eq!(
        usages.last().unwrap(),
        &json!({"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 0}})
    );
}

#[tokio::test]
async fn a_stop_string_that_ended_the_answer_is_told() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    for stream in [false, true] {
        let request = chat(json!({"stop": "END", "stream": stream}));
        let (mut reply, ()) = tokio::join!(post(served.http, "/v1/chat/completions", request), async {
            let mut answering = worker.call().await.accept().await;
            answering.send("x", &[1], None).await;
            answering.stop_at("END").await;
        });
        let choice = if stream {
            reply.piece().await.unwrap();
            let last: Value = serde_json::from_str(&reply.event().await.unwrap()).unwrap();
            last["choices"][0].clone()
        } else {
            reply.json().await["choices"][0].clone()
        };
        assert_eq!(
            (&choice["finish_reason"], &choice["stop_reason"]),
            (&json!("stop"), &json!("END"))
        );
    }
}
