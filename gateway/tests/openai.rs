//! The OpenAI API over real HTTP, with a scripted worker behind.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod support;

use hyper::{Method, StatusCode};
use llamero_gateway::Settings;
use llamero_proto::v1::{
    ChatPrompt, Finish, FinishReason, TokenLogprob, ToolCallDelta, ToolChoice, completion_request::Prompt,
};
use serde_json::{Value, json};
use support::client::{get, post, send, send_with};
use support::worker::Worker;
use support::{Served, gateway};
use tonic::Status;

const MODEL: &str = "org/smol";

async fn with_worker() -> (Served, Worker) {
    let served = gateway(Settings::default()).await;
    let worker = Worker::start();
    served.publish(MODEL, &[worker.address]);
    (served, worker)
}

fn chat(extra: Value) -> Value {
    let mut request = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]});
    request
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    request
}

#[tokio::test]
async fn models_are_listed_and_found() {
    let (served, _worker) = with_worker().await;
    let expected = json!({"id": MODEL, "object": "model", "created": 7, "owned_by": "ns/smol"});
    let list = get(served.http, "/v1/models").await.json().await;
    assert_eq!(list, json!({"object": "list", "data": [expected]}));
    assert_eq!(
        get(served.http, "/v1/models/org/smol").await.json().await,
        expected
    );
    let missing = get(served.http, "/v1/models/other").await;
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    assert_eq!(missing.json().await["error"]["code"], "model_not_found");
}

#[tokio::test]
async fn a_chat_answer_comes_whole() {
    let (served, mut worker) = with_worker().await;
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
    let (served, mut worker) = with_worker().await;
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
    let (served, mut worker) = with_worker().await;
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
async fn bad_requests_get_a_sentence_in_openai_s_form() {
    let served = gateway(Settings {
        body_limit: 1000,
        ..Settings::default()
    })
    .await;
    served.publish(MODEL, &[]);
    let chat_route = "/v1/chat/completions";
    let big = chat(json!({"user": "x".repeat(1000)})).to_string().into_bytes();
    let cases: [(Method, &str, Vec<u8>, u16, &str); 10] = [
        (
            Method::POST,
            chat_route,
            b"{\"model\":".to_vec(),
            400,
            "not a valid JSON",
        ),
        (
            Method::POST,
            chat_route,
            b"{\"model\":\"\xff\"}".to_vec(),
            400,
            "UTF-8",
        ),
        (Method::POST, chat_route, b"".to_vec(), 400, "empty"),
        (
            Method::POST,
            chat_route,
            chat(json!({"temperature": -1})).to_string().into(),
            400,
            "from 0 to 2",
        ),
        (
            Method::POST,
            chat_route,
            chat(json!({"temperature": "hot"})).to_string().into(),
            400,
            "temperature",
        ),
        (
            Method::POST,
            chat_route,
            chat(json!({"n": 200})).to_string().into(),
            400,
            "send several requests",
        ),
        (
            Method::POST,
            chat_route,
            chat(json!({"model": "nope"})).to_string().into(),
            404,
            "/v1/models",
        ),
        (Method::POST, chat_route, big, 413, "larger than 1000 bytes"),
        (Method::GET, chat_route, Vec::new(), 405, "use POST"),
        (
            Method::POST,
            "/v1/embeddings",
            b"{}".to_vec(),
            404,
            "/v1/chat/completions",
        ),
    ];
    for (method, path, body, status, words) in cases {
        let reply = send(served.http, method, path, body).await;
        assert_eq!(reply.status().as_u16(), status, "{words}");
        let error = reply.json().await["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error.get("param").is_some() && error.get("code").is_some());
    }
}

#[tokio::test]
async fn the_worker_s_sentence_reaches_the_client_with_its_status_also_when_streaming() {
    let (served, mut worker) = with_worker().await;
    for stream in [false, true] {
        let (reply, ()) = tokio::join!(
            post(
                served.http,
                "/v1/chat/completions",
                chat(json!({"stream": stream}))
            ),
            async {
                worker.call().await.refuse(tonic::Status::invalid_argument(
                    "the prompt has 9 tokens too many",
                ));
            }
        );
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
        assert_eq!(
            reply.json().await["error"]["message"],
            "the prompt has 9 tokens too many"
        );
    }
}

#[tokio::test]
async fn an_error_behind_the_first_text_comes_as_an_event() {
    let (served, mut worker) = with_worker().await;
    let request = post(served.http, "/v1/chat/completions", chat(json!({"stream": true})));
    let (mut reply, ()) = tokio::join!(request, async {
        let mut answering = worker.call().await.accept().await;
        answering.send("Hel", &[1], None).await;
        answering.fail(tonic::Status::internal("out of cheese")).await;
    });
    assert_eq!(reply.piece().await.unwrap(), "Hel");
    let error: Value = serde_json::from_str(&reply.event().await.unwrap()).unwrap();
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("out of cheese")
    );
    assert_eq!(reply.event().await, None);
}

#[tokio::test]
async fn metrics_and_probes_tell_what_happened() {
    let (served, mut worker) = with_worker().await;
    let (reply, ()) = tokio::join!(
        post(served.http, "/v1/chat/completions", chat(json!({}))),
        async {
            worker.call().await.answer(&["a"]).await;
        }
    );
    reply.json().await;
    post(
        served.http,
        "/v1/chat/completions",
        chat(json!({"model": "made-up"})),
    )
    .await
    .json()
    .await;
    assert_eq!(get(served.health, "/livez").await.status(), StatusCode::OK);
    assert_eq!(get(served.health, "/readyz").await.status(), StatusCode::OK);
    let metrics = get(served.health, "/metrics").await.text().await;
    for line in [
        "llamero_gateway_requests_total{route=\"chat_completions\",model=\"org/smol\",status=\"200\"} 1",
        "llamero_gateway_requests_total{route=\"chat_completions\",model=\"unknown\",status=\"404\"} 1",
        "llamero_gateway_output_tokens_total{model=\"org/smol\"} 1",
        "llamero_gateway_in_flight_requests{namespace=\"ns\",name=\"smol\"} 0",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert!(!metrics.contains("made-up"));
}

#[tokio::test]
async fn a_gateway_that_has_read_nothing_yet_is_not_ready() {
    let served = gateway(Settings::default()).await;
    assert_eq!(
        get(served.health, "/readyz").await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    let reply = post(served.http, "/v1/chat/completions", chat(json!({}))).await;
    assert_eq!(
        (reply.status(), reply.header("retry-after")),
        (StatusCode::SERVICE_UNAVAILABLE, Some("2"))
    );
}

#[tokio::test]
async fn ids_go_both_ways_and_the_weights_are_named() {
    let (served, mut worker) = with_worker().await;
    let headers = [("x-request-id", "order-66")];
    let body = chat(json!({})).to_string();
    let request = send_with(served.http, Method::POST, "/v1/chat/completions", &headers, body);
    let (reply, ()) = tokio::join!(request, async {
        let call = worker.call().await;
        assert_eq!(call.metadata.get("x-request-id").unwrap(), "order-66");
        let mut answering = call.accept_as("sha256:abc").await;
        answering.send("x", &[1], Some(FinishReason::Stop)).await;
    });
    assert_eq!(reply.header("x-request-id"), Some("order-66"));
    assert_eq!(reply.json().await["system_fingerprint"], "sha256:abc");
    // Errors have an id as well, and what a client gives is only taken when it is short and printable.
    for id in ["", "with space", &"x".repeat(129)] {
        let headers = [("x-request-id", id)];
        let reply = send_with(served.http, Method::GET, "/v1/nothing", &headers, "").await;
        assert!(reply.header("x-request-id").unwrap().starts_with("req-"));
    }
}

#[tokio::test]
async fn several_answers_come_from_several_requests_with_seeds_in_a_row() {
    let (served, mut worker) = with_worker().await;
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
    let (served, mut worker) = with_worker().await;
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
async fn a_context_that_is_too_short_is_named_with_its_parameter() {
    let (served, mut worker) = with_worker().await;
    let text = json!({"model": MODEL, "prompt": "hi"});
    for (path, body, param) in [
        ("/v1/chat/completions", chat(json!({})), "messages"),
        ("/v1/completions", text, "prompt"),
    ] {
        let (reply, ()) = tokio::join!(post(served.http, path, body), async {
            let refusal = tonic::Status::out_of_range("the prompt has 9 tokens, the context 8");
            worker.call().await.refuse(refusal);
        });
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
        let error = reply.json().await["error"].clone();
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!(param), &json!("context_length_exceeded"))
        );
    }
}

#[tokio::test]
async fn a_stop_string_that_ended_the_answer_is_told() {
    let (served, mut worker) = with_worker().await;
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

#[tokio::test]
async fn conversations_are_bounded_in_number_and_depth() {
    let (served, _worker) = with_worker().await;
    let message = json!({"role": "user", "content": "x"});
    let many = json!({"model": MODEL, "messages": vec![message; 4097]}).to_string();
    let deep = format!(
        r#"{{"model": "{MODEL}", "messages": [], "made_up": {}{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    for (body, words) in [
        (many, "more than 4096 entries"),
        (deep, "nested more than 64 levels"),
    ] {
        let reply = send(served.http, Method::POST, "/v1/chat/completions", body).await;
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
        let error = reply.json().await["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
        assert!(error["param"].as_str().unwrap().len() <= 128);
    }
}

fn logprob(id: u32, text: &[u8], logprob: f32, top: Vec<TokenLogprob>) -> TokenLogprob {
    TokenLogprob {
        token_id: id,
        bytes: text.to_vec(),
        logprob,
        top,
    }
}

/// "é" in two tokens, the second of which ends the answer.
async fn answer_with_logprobs(worker: &mut Worker) {
    let mut answering = worker.call().await.accept().await;
    answering
        .send_as("", |chunk| {
            let top = vec![
                logprob(7, b"x", -0.25, vec![]),
                logprob(100, &[0xc3], -0.5, vec![]),
            ];
            chunk.logprobs = vec![logprob(100, &[0xc3], -0.5, top)];
        })
        .await;
    answering
        .send_as("é!", |chunk| {
            chunk.logprobs = vec![logprob(101, b"\xa9!", -1.0, vec![])];
            chunk.finish = Some(Finish {
                reason: FinishReason::Stop.into(),
                stop_token_id: Some(9),
                ..Finish::default()
            });
        })
        .await;
}

#[tokio::test]
async fn log_probabilities_come_whole_and_in_pieces() {
    let (served, mut worker) = with_worker().await;
    let path = "/v1/chat/completions";
    let extra = json!({"logprobs": true, "top_logprobs": 2, "stop_token_ids": [9]});
    let request = post(served.http, path, chat(extra.clone()));
    let (reply, ()) = tokio::join!(request, answer_with_logprobs(&mut worker));
    let answer = reply.json().await;
    let tokens = json!([
        {"token": "\u{fffd}", "logprob": -0.5, "bytes": [0xc3], "top_logprobs": [
            {"token": "x", "logprob": -0.25, "bytes": [b'x']},
            {"token": "\u{fffd}", "logprob": -0.5, "bytes": [0xc3]}]},
        {"token": "\u{fffd}!", "logprob": -1.0, "bytes": [0xa9, b'!'], "top_logprobs": []},
    ]);
    let choice = &answer["choices"][0];
    assert_eq!(choice["logprobs"], json!({"content": tokens, "refusal": null}));
    assert_eq!(
        (&choice["stop_reason"], &choice["message"]["content"]),
        (&json!(9), &json!("é!"))
    );

    let mut streamed = extra;
    streamed["stream"] = true.into();
    let request = post(served.http, path, chat(streamed));
    let (mut reply, ()) = tokio::join!(request, answer_with_logprobs(&mut worker));
    let mut pieces = Vec::new();
    while let Some(event) = reply.event().await.filter(|event| event != "[DONE]") {
        let event: Value = serde_json::from_str(&event).unwrap();
        pieces.extend(
            event["choices"][0]["logprobs"]["content"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        );
    }
    assert_eq!(Value::from(pieces), tokens);

    let body = json!({"model": MODEL, "prompt": "hi", "logprobs": 1});
    let (reply, ()) = tokio::join!(
        post(served.http, "/v1/completions", body),
        answer_with_logprobs(&mut worker)
    );
    assert_eq!(
        reply.json().await["choices"][0]["logprobs"],
        json!({"text_offset": [0, 1], "token_logprobs": [-0.5, -1.0], "tokens": ["\u{fffd}", "\u{fffd}!"],
            "top_logprobs": [{"x": -0.25, "\u{fffd}": -0.5}, {"\u{fffd}!": -1.0}]})
    );
}

async fn answer_with_calls(worker: &mut Worker) -> ChatPrompt {
    let call = worker.call().await;
    let Some(Prompt::Chat(chat)) = call.request.prompt.clone() else {
        panic!("{:?}", call.request)
    };
    let mut answering = call.accept().await;
    for (index, name, arguments) in [(0, "f", ""), (0, "", "{\"a\":"), (0, "", " 1}"), (1, "g", "{}")] {
        let delta = ToolCallDelta {
            index,
            name: name.into(),
            arguments: arguments.into(),
        };
        answering
            .send_as("", |chunk| chunk.tool_calls = vec![delta])
            .await;
    }
    answering.send("", &[1], Some(FinishReason::Stop)).await;
    chat
}

#[tokio::test]
async fn tool_calls_come_whole_and_in_pieces() {
    let (served, mut worker) = with_worker().await;
    let path = "/v1/chat/completions";
    let tool =
        |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"z": 1, "a": 2}}});
    let extra = json!({"tools": [tool("f"), tool("g")], "tool_choice": "required"});
    let request = post(served.http, path, chat(extra.clone()));
    let (reply, asked) = tokio::join!(request, answer_with_calls(&mut worker));
    assert_eq!(asked.tool_choice(), ToolChoice::Required);
    assert_eq!(
        serde_json::from_str::<Value>(&asked.tools_json).unwrap(),
        extra["tools"]
    );
    let answer = reply.json().await;
    let id = |call: u32| {
        let id = answer["id"].as_str().unwrap().trim_start_matches("chatcmpl-");
        format!("call_{id}00{call:02x}")
    };
    assert_eq!(
        answer["choices"][0]["message"],
        json!({"role": "assistant", "content": null, "refusal": null, "tool_calls": [
            {"id": id(0), "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
            {"id": id(1), "type": "function", "function": {"name": "g", "arguments": "{}"}}]})
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");

    let mut streamed = extra;
    streamed["stream"] = true.into();
    let (mut reply, _) = tokio::join!(
        post(served.http, path, chat(streamed)),
        answer_with_calls(&mut worker)
    );
    let (mut pieces, mut ends) = (Vec::new(), Vec::new());
    while let Some(event) = reply.event().await.filter(|event| event != "[DONE]") {
        let event: Value = serde_json::from_str(&event).unwrap();
        let choice = &event["choices"][0];
        pieces.extend(
            choice["delta"]["tool_calls"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        );
        ends.push(choice["finish_reason"].clone());
    }
    let begins: Vec<_> = pieces.iter().filter(|piece| piece.get("id").is_some()).collect();
    assert_eq!((begins.len(), pieces.len()), (2, 4));
    assert_eq!(
        (&begins[1]["index"], &begins[1]["function"]["name"]),
        (&json!(1), &json!("g"))
    );
    assert_eq!(pieces[2], json!({"index": 0, "function": {"arguments": " 1}"}}));
    assert_eq!(ends.last().unwrap(), "tool_calls");
}

#[tokio::test]
async fn the_worker_names_the_parameter_at_fault() {
    let (served, mut worker) = with_worker().await;
    let request = post(
        served.http,
        "/v1/chat/completions",
        chat(json!({"guided_regex": "("})),
    );
    let (reply, ()) = tokio::join!(request, async {
        let call = worker.call().await;
        let mut status = Status::invalid_argument("no");
        let parameter = call
            .request
            .structure
            .as_ref()
            .unwrap()
            .parameter
            .parse()
            .unwrap();
        status.metadata_mut().insert("parameter", parameter);
        call.refuse(status);
    });
    assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
    assert_eq!(reply.json().await["error"]["param"], "guided_regex");
}
