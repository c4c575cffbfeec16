//! Log-probabilities.

use llamero_gateway::Settings;
use llamero_proto::v1::{CompletionChunk, Finish, FinishReason, TokenLogprob};
use serde_json::{Value, json};

use crate::support::client::post;
use crate::support::worker::Worker;
use crate::support::{MODEL, chat, gateway, soon, with_worker};

fn logprob(id: u32, text: &[u8], logprob: f32, top: Vec<TokenLogprob>) -> TokenLogprob {
    TokenLogprob {
        token_id: id,
        bytes: text.to_vec(),
        logprob,
        top,
        begins: false,
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
    let (served, mut worker) = with_worker(Settings::default()).await;
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

/// Log-probabilities of a prompt come without a token of the answer.
fn of_prompt(chunk: &mut CompletionChunk, tokens: &[TokenLogprob]) {
    chunk.output_tokens -= 1;
    chunk.token_ids.clear();
    chunk.prompt_logprobs = tokens.to_vec();
}

fn prompt() -> [TokenLogprob; 3] {
    let begins = TokenLogprob {
        token_id: 1,
        bytes: b"<s>".to_vec(),
        begins: true,
        ..TokenLogprob::default()
    };
    let top = vec![logprob(4, b"ho", -0.5, vec![]), logprob(2, b"hi", -1.5, vec![])];
    [
        begins,
        logprob(2, b"hi", -1.5, top),
        logprob(3, b" u", -2.0, vec![logprob(5, b"!", -0.125, vec![])]),
    ]
}

/// Score the prompt in two pieces and answer with one token.
async fn answer_with_scores(worker: &mut Worker, wanted: u32) {
    let call = worker.call().await;
    assert_eq!(call.request.prompt_logprobs, Some(wanted));
    let echo = call.request.echo;
    let mut answering = call.accept().await;
    let [a, b, c] = prompt();
    answering
        .send_as(if echo { "<s>hi u" } else { "" }, |chunk| {
            of_prompt(chunk, &[a, b])
        })
        .await;
    answering.uncount();
    answering.send_as("", |chunk| of_prompt(chunk, &[c])).await;
    answering.uncount();
    answering
        .send_as("!", |chunk| {
            chunk.logprobs = vec![logprob(5, b"!", -0.125, vec![])];
            chunk.finish = Some(Finish {
                reason: FinishReason::Length.into(),
                ..Finish::default()
            });
        })
        .await;
}

#[tokio::test]
async fn tokens_of_the_prompt_have_log_probabilities() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let echoed = json!({"text_offset": [0, 3, 5, 7], "token_logprobs": [null, -1.5, -2.0, -0.125],
        "tokens": ["<s>", "hi", " u", "!"],
        "top_logprobs": [null, {"ho": -0.5, "hi": -1.5}, {"!": -0.125, " u": -2.0}, {"!": -0.125}]});
    let body = json!({"model": MODEL, "prompt": "hi u", "logprobs": 1, "echo": true, "max_tokens": 1});
    let request = post(served.http, "/v1/completions", body.clone());
    let (reply, ()) = tokio::join!(request, answer_with_scores(&mut worker, 1));
    let choice = reply.json().await["choices"][0].clone();
    assert_eq!(
        (&choice["logprobs"], &choice["text"]),
        (&echoed, &json!("<s>hi u!"))
    );
    assert!(choice.get("prompt_logprobs").is_none(), "not asked for");

    let mut streamed = body;
    streamed["stream"] = true.into();
    let request = post(served.http, "/v1/completions", streamed);
    let (mut reply, ()) = tokio::join!(request, answer_with_scores(&mut worker, 1));
    let (mut tokens, mut offsets) = (Vec::new(), Vec::new());
    while let Some(event) = reply.event().await.filter(|event| event != "[DONE]") {
        let event: Value = serde_json::from_str(&event).unwrap();
        let logprobs = &event["choices"][0]["logprobs"];
        tokens.extend(logprobs["tokens"].as_array().cloned().unwrap_or_default());
        offsets.extend(logprobs["text_offset"].as_array().cloned().unwrap_or_default());
    }
    assert_eq!(
        (&json!(tokens), &json!(offsets)),
        (&echoed["tokens"], &echoed["text_offset"])
    );

    let of_prompt = json!([null,
        {"2": {"logprob": -1.5, "rank": 2, "decoded_token": "hi"}, "4": {"logprob": -0.5, "rank": 1, "decoded_token": "ho"}},
        {"3": {"logprob": -2.0, "rank": null, "decoded_token": " u"}, "5": {"logprob": -0.125, "rank": 1, "decoded_token": "!"}}]);
    let request = post(
        served.http,
        "/v1/chat/completions",
        chat(json!({"prompt_logprobs": 2})),
    );
    let (reply, ()) = tokio::join!(request, answer_with_scores(&mut worker, 2));
    let answer = reply.json().await;
    assert_eq!(answer["prompt_logprobs"], of_prompt);
    assert!(answer["choices"][0].get("prompt_logprobs").is_none());
    let body = json!({"model": MODEL, "prompt": "hi u", "prompt_logprobs": 2});
    let request = post(served.http, "/v1/completions", body);
    let (reply, ()) = tokio::join!(request, answer_with_scores(&mut worker, 2));
    let answer = reply.json().await;
    assert_eq!(answer["choices"][0]["prompt_logprobs"], of_prompt);
    assert!(answer.get("prompt_logprobs").is_none());
}

#[tokio::test]
async fn scores_that_came_before_a_leader_died_come_once() {
    let served = gateway(Settings::default()).await;
    let mut dying = Worker::start();
    served.publish(MODEL, &[dying.address]);
    let request = post(
        served.http,
        "/v1/chat/completions",
        chat(json!({"prompt_logprobs": 2})),
    );
    let request = tokio::spawn(request);
    let mut answering = dying.call().await.accept().await;
    let [a, b, _] = prompt();
    answering.send_as("", |chunk| of_prompt(chunk, &[a, b])).await;
    let mut heir = Worker::start();
    served.publish(MODEL, &[dying.address, heir.address]);
    dying.quiet().await;
    dying.kill().await;
    answer_with_scores(&mut heir, 2).await;
    let answer = soon(request).await.unwrap().json().await;
    assert_eq!(answer["prompt_logprobs"].as_array().unwrap().len(), 3);
}
