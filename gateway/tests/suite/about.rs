//! Models, ids, metrics and probes.

use hyper::{Method, StatusCode};
use llamero_gateway::Settings;
use llamero_proto::v1::FinishReason;
use serde_json::json;

use crate::support::client::{get, post, send_with};
use crate::support::{MODEL, chat, gateway, with_worker};

#[tokio::test]
async fn models_are_listed_and_found() {
    let (served, _worker) = with_worker(Settings::default()).await;
    let expected =
        json!({"id": MODEL, "object": "model", "created": 7, "owned_by": "ns/smol", "max_model_len": 4096});
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
async fn ids_go_both_ways_and_the_weights_are_named() {
    let (served, mut worker) = with_worker(Settings::default()).await;
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
async fn metrics_and_probes_tell_what_happened() {
    let (served, mut worker) = with_worker(Settings::default()).await;
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
    // They are for the cluster, not for clients.
    assert_eq!(get(served.http, "/metrics").await.status(), StatusCode::NOT_FOUND);
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

/// What the program tells until it serves, with these arguments besides.
#[cfg(feature = "kube")]
async fn told_at_start(arguments: &[&str]) -> String {
    use std::process::Stdio;

    use tokio::io::{AsyncBufReadExt as _, BufReader};
    use tokio::process::Command;

    use crate::support::soon;

    let ports = ["--http-port=0", "--grpc-port=0", "--health-port=0"];
    let mut gateway = Command::new(env!("CARGO_BIN_EXE_llamero-gateway"))
        .args(["--listen=127.0.0.1", "--static=m=127.0.0.1:9"])
        .args(ports)
        .args(arguments)
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(gateway.stderr.take().unwrap()).lines();
    let mut told = String::new();
    soon(async {
        while let Some(line) = lines.next_line().await.unwrap() {
            told += &line;
            if line.contains("serving the OpenAI API") {
                break;
            }
        }
    })
    .await;
    soon(gateway.kill()).await.unwrap();
    told
}

#[cfg(feature = "kube")]
#[tokio::test]
async fn a_gateway_without_keys_says_at_start_that_it_is_open() {
    let open = told_at_start(&[]).await;
    assert!(
        open.contains("WARN") && open.contains("the API is open: whoever reaches it"),
        "{open}"
    );
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.yaml");
    std::fs::write(&keys, "keys: [{name: alice, key: sk-alice-0123456789}]").unwrap();
    let closed = told_at_start(&[&format!("--api-keys={}", keys.display())]).await;
    assert!(
        closed.contains("to holders of keys only") && !closed.contains("WARN"),
        "{closed}"
    );
    assert!(open.contains("serving the OpenAI API") && closed.contains("serving the OpenAI API"));
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
