//! Log-probabilities.

use llamero_gateway::Settings;
use llamero_proto::v1::{Finish, FinishReason, TokenLogprob};
use serde_json::{Value, json};

use crate::support::client::post;
use crate::support::worker::Worker;
use crate::support::{MODEL, chat, with_worker};

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
