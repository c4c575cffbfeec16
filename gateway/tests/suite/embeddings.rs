//! `POST /v1/embeddings`.

use llamero_gateway::Settings;
use serde_json::{Value, json};

use crate::support::client::post;
use crate::support::{MODEL, gateway, with_worker};

fn body(more: Value) -> Value {
    let mut body = json!({"model": MODEL, "input": "hello"});
    let fields = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    body
}

#[tokio::test]
async fn texts_and_tokens_become_vectors_in_the_order_of_the_inputs() {
    let (served, _worker) = with_worker(Settings::default()).await;
    let ask = async |more: Value| {
        let reply = post(served.http, "/v1/embeddings", body(more)).await;
        assert_eq!(reply.status().as_u16(), 200);
        reply.json().await
    };
    let one = ask(json!({"user": "me", "dimensions": 3})).await;
    let expected = json!({
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [5.0, 0.0, 0.25]}],
        "model": MODEL,
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    });
    assert_eq!(one, expected);

    let several = ask(json!({"input": ["a", "bcd"], "pooling": "mean"})).await;
    assert_eq!(several["data"][1]["embedding"], json!([3.0, 1.0, 0.25]));
    assert_eq!(several["data"][1]["index"], 1);
    assert_eq!(several["usage"]["total_tokens"], 4);
    for (input, lengths) in [
        (json!([7, 8, 9]), vec![3.0]),
        (json!([[7], [8, 9]]), vec![1.0, 2.0]),
    ] {
        let tokens = ask(json!({"input": input})).await;
        let data = tokens["data"].as_array().unwrap();
        let found: Vec<f64> = data
            .iter()
            .map(|one| one["embedding"][0].as_f64().unwrap())
            .collect();
        assert_eq!(found, lengths);
    }
    // 5, 0 and 0.25 as 32-bit floats, little end first.
    let encoded = ask(json!({"encoding_format": "base64"})).await;
    assert_eq!(encoded["data"][0]["embedding"], "AACgQAAAAAAAAIA+");
}

#[tokio::test]
async fn what_is_wrong_or_not_built_is_refused_by_name() {
    let (served, _worker) = with_worker(Settings::default()).await;
    for (more, param, code) in [
        (json!({"input": null}), "input", Value::Null),
        (json!({"input": ""}), "input", Value::Null),
        (json!({"input": []}), "input", Value::Null),
        (json!({"input": ["a", ""]}), "input", Value::Null),
        (json!({"input": {"a": 1}}), "input", Value::Null),
        (json!({"input": ["a", 1]}), "input", Value::Null),
        (json!({"input": vec!["a"; 2049]}), "input", Value::Null),
        (
            json!({"input": "fail"}),
            "input",
            json!("context_length_exceeded"),
        ),
        (json!({"encoding_format": "int8"}), "encoding_format", Value::Null),
        (json!({"pooling": "max"}), "pooling", Value::Null),
        (json!({"dimensions": -1}), "dimensions", Value::Null),
        (
            json!({"dimensions": 2}),
            "dimensions",
            json!("unsupported_parameter"),
        ),
        (
            json!({"normalize": false}),
            "normalize",
            json!("unsupported_parameter"),
        ),
        (
            json!({"truncate_prompt_tokens": 4}),
            "truncate_prompt_tokens",
            json!("unsupported_parameter"),
        ),
    ] {
        let reply = post(served.http, "/v1/embeddings", body(more.clone())).await;
        assert_eq!(reply.status().as_u16(), 400, "{more}");
        let error = reply.json().await["error"].clone();
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!(param), &code),
            "{error}"
        );
    }
    let unknown = post(served.http, "/v1/embeddings", body(json!({"model": "nope"}))).await;
    assert_eq!(unknown.status().as_u16(), 404);
}

/// The first leader breaks off behind one embedding; the other one is asked for all.
#[tokio::test]
async fn another_group_is_asked_when_one_is_lost() {
    let served = gateway(Settings::default()).await;
    let (worker, dead) = (
        crate::support::worker::Worker::start(),
        crate::support::worker::Worker::start(),
    );
    let gone = dead.kill().await;
    served.publish(MODEL, &[gone, worker.address]);
    for _ in 0..4 {
        let reply = post(served.http, "/v1/embeddings", body(json!({"input": ["a", "b"]}))).await;
        assert_eq!(reply.status().as_u16(), 200);
        assert_eq!(reply.json().await["data"].as_array().unwrap().len(), 2);
    }
    let hurried = [("prefer", "wait=1")];
    let text = body(json!({"input": ["a", "break"]})).to_string();
    let reply =
        crate::support::client::send_with(served.http, hyper::Method::POST, "/v1/embeddings", &hurried, text)
            .await;
    assert_eq!(reply.status().as_u16(), 503, "nobody gives all of them");
}
