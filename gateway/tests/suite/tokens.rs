//! `POST /tokenize`, `POST /detokenize`, and the small routes beside them.

use hyper::{Method, StatusCode};
use llamero_gateway::Settings;
use serde_json::{Value, json};

use crate::support::client::{get, post, send};
use crate::support::{MODEL, gateway, with_worker};

#[tokio::test]
async fn prompts_become_tokens_and_tokens_texts() {
    let (served, _worker) = with_worker(Settings::default()).await;
    let body = json!({"model": MODEL, "prompt": "hi", "return_token_strs": true});
    let tokens = post(served.http, "/tokenize", body).await.json().await;
    assert_eq!(
        tokens,
        json!({"count": 2, "max_model_len": 100, "tokens": [104, 105], "token_strs": ["h", "i"]})
    );
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hey"}]});
    let tokens = post(served.http, "/tokenize", body).await.json().await;
    assert_eq!(
        (&tokens["count"], &tokens["token_strs"]),
        (&json!(3), &Value::Null)
    );
    let body = json!({"model": MODEL, "tokens": [104, 105]});
    let text = post(served.http, "/detokenize", body).await.json().await;
    assert_eq!(text, json!({"prompt": "hi"}));
    for (path, body, status) in [
        ("/tokenize", json!({"model": MODEL}), 400),
        (
            "/tokenize",
            json!({"model": MODEL, "prompt": "a", "messages": []}),
            400,
        ),
        ("/tokenize", json!({"model": "nope", "prompt": "a"}), 404),
        (
            "/tokenize",
            json!({"model": MODEL, "messages": [{"role": "user", "content": "a"}], "chat_template": "{{ x }}"}),
            400,
        ),
        ("/detokenize", json!({"model": MODEL, "tokens": [-1]}), 400),
    ] {
        assert_eq!(post(served.http, path, body).await.status().as_u16(), status);
    }
}

#[tokio::test]
async fn answers_may_be_longer_than_what_grpc_takes_by_itself() {
    let (served, _worker) = with_worker(Settings::default()).await;
    // A byte for each token's number and three for what it spells.
    let letters = 3 << 19;
    let body = json!({"model": MODEL, "prompt": "a".repeat(letters)});
    let reply = post(served.http, "/tokenize", body).await;
    assert_eq!(reply.status(), StatusCode::OK);
    assert_eq!(reply.json().await["count"], letters);
}

#[tokio::test]
async fn health_and_version_are_told_and_what_others_have_is_refused_by_name() {
    let starting = gateway(Settings::default()).await;
    assert_eq!(
        get(starting.http, "/health").await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    let (served, _worker) = with_worker(Settings::default()).await;
    assert_eq!(get(served.http, "/health").await.status(), StatusCode::OK);
    let version = get(served.http, "/version").await.json().await;
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    for path in [
        "/score",
        "/v1/rerank",
        "/embeddings",
        "/v1/audio/speech",
        "/v1/responses/resp_1",
    ] {
        let reply = send(served.http, Method::POST, path, "{}").await;
        assert_eq!(reply.status(), StatusCode::NOT_FOUND);
        let error = reply.json().await["error"].clone();
        assert_eq!(error["code"], "unsupported_url");
        assert!(error["message"].as_str().unwrap().contains(path));
    }
}
