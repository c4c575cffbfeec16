//! `vllm.Inference` and `vllm.Control` on the port of the API.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures::{StreamExt as _, stream};
use llamero_gateway::Settings;
use llamero_gateway::keys::KeyStore;
use prost::Message as _;
use serde_json::json;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};
use vllm_proto::control_client::ControlClient;
use vllm_proto::inference_client::InferenceClient;
use vllm_proto::{
    AbortRequest, GenerateRequest, GetModelInfoRequest, GetServerInfoRequest, SleepRequest,
    generate_request::Prompt,
};

use crate::support::client::{Http2, get, post};
use crate::support::worker::Worker;
use crate::support::{MODEL, chat, found, gateway, soon, with_worker};

const KEY: &str = "sk-grpc-0123456789";

/// Settings with one key, `grpc`.
fn keyed() -> (Settings, tempfile::TempDir) {
    keyed_with("")
}

/// The same with more of the key's fields.
fn keyed_with(fields: &str) -> (Settings, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.yaml");
    std::fs::write(&path, format!("keys: [{{name: grpc, key: {KEY}{fields}}}]")).unwrap();
    let keys = Some(Arc::new(KeyStore::load(&path).unwrap()));
    let settings = Settings {
        keys,
        ..Settings::default()
    };
    (settings, folder)
}

fn request(model: &str, key: Option<&str>) -> Request<GenerateRequest> {
    let mut request = Request::new(GenerateRequest {
        model: model.to_owned(),
        prompt: Some(Prompt::Text("hum".to_owned())),
        ..GenerateRequest::default()
    });
    if let Some(key) = key {
        let value = MetadataValue::try_from(format!("Bearer {key}")).unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

#[tokio::test]
async fn a_key_reaches_no_adapter_that_it_does_not_see() {
    let (settings, _folder) = keyed_with(&format!(", models: ['{MODEL}', 'ns/seen']"));
    let (served, _worker) = with_worker(settings).await;
    let mut client = InferenceClient::connect(format!("http://{}", served.http))
        .await
        .unwrap();
    for (adapter, code) in [("secret", Some(Code::NotFound)), ("seen", None), ("", None)] {
        let mut asked = request(MODEL, Some(KEY));
        asked.get_mut().lora_name = adapter.to_owned();
        let answer = client.generate(asked).await;
        assert_eq!(answer.err().map(|status| status.code()), code, "{adapter}");
    }
}

#[tokio::test]
async fn requests_pass_to_the_model_that_they_name() {
    let (settings, _folder) = keyed();
    let (served, _worker) = with_worker(settings).await;
    let mut client = InferenceClient::connect(format!("http://{}", served.http))
        .await
        .unwrap();
    let whole = client
        .generate(request(MODEL, Some(KEY)))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(whole.outputs.unwrap().text, "hum");
    let mut pieces = client
        .generate_stream(request(MODEL, Some(KEY)))
        .await
        .unwrap()
        .into_inner();
    let mut texts = Vec::new();
    while let Some(piece) = pieces.message().await.unwrap() {
        texts.push(piece.outputs.unwrap().text);
    }
    assert_eq!(texts, ["h", "u", "m"]);

    let code = |answer: Result<_, tonic::Status>| answer.err().map(|status| status.code());
    assert_eq!(
        code(client.generate(request(MODEL, None)).await),
        Some(Code::Unauthenticated)
    );
    assert_eq!(
        code(client.generate(request("nope", Some(KEY))).await),
        Some(Code::NotFound)
    );
    // The leader is told its own name of the model, not what the client called it.
    let qualified = client.generate(request(&format!("ns/{MODEL}"), Some(KEY))).await;
    assert_eq!(qualified.unwrap().into_inner().outputs.unwrap().text, "hum");
    // What the leader says is passed on as it is, and a mistake of a client is no failure of the leader.
    let mut twice = request(MODEL, Some(KEY));
    twice.get_mut().request_id = "taken".to_owned();
    assert_eq!(code(client.generate(twice).await), Some(Code::AlreadyExists));
    let mut empty = request(MODEL, Some(KEY));
    empty.get_mut().prompt = None;
    assert_eq!(code(client.generate(empty).await), Some(Code::OutOfRange));
    let metrics = get(served.health, "/metrics").await.text().await;
    for line in [
        "llamero_gateway_key_requests_total{key=\"grpc\",model=\"org/smol\",status=\"200\"} 3",
        "llamero_gateway_key_tokens_total{key=\"grpc\",model=\"org/smol\",kind=\"prompt\"} 21",
        "llamero_gateway_key_tokens_total{key=\"grpc\",model=\"org/smol\",kind=\"output\"} 9",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

/// A question with metadata.
fn with<Q>(question: Q, metadata: &[(&'static str, &str)]) -> Request<Q> {
    let mut request = Request::new(question);
    for (name, value) in metadata {
        let value = MetadataValue::try_from(*value).unwrap();
        request.metadata_mut().insert(*name, value);
    }
    request
}

#[tokio::test]
async fn control_is_asked_of_the_model_that_the_metadata_name() {
    let served = gateway(Settings::default()).await;
    let worker = Worker::start();
    served.publish(MODEL, &[worker.address]);
    let mut client = ControlClient::connect(format!("http://{}", served.http))
        .await
        .unwrap();
    let info = client.get_server_info(GetServerInfoRequest {}).await.unwrap();
    assert_eq!(info.into_inner().max_model_len, 100);
    let none = with(GetModelInfoRequest {}, &[("model", "nope")]);
    assert_eq!(
        client.get_model_info(none).await.unwrap_err().code(),
        Code::NotFound
    );
    let sleep = client.sleep(SleepRequest::default()).await.unwrap_err();
    assert_eq!(sleep.code(), Code::Unimplemented);
    assert!(sleep.message().contains("vllm.Control/Sleep"), "{sleep}");

    let mut other = found("other", &[worker.address]);
    other.key.name = "other".to_owned();
    served
        .gateway
        .publish(vec![found(MODEL, &[worker.address]), other]);
    let ambiguous = client.get_model_info(GetModelInfoRequest {}).await.unwrap_err();
    assert_eq!(ambiguous.code(), Code::InvalidArgument);
    assert!(ambiguous.message().contains("'model'"), "{ambiguous}");
    let named = with(GetModelInfoRequest {}, &[("model", MODEL)]);
    let info = client.get_model_info(named).await.unwrap().into_inner();
    assert_eq!(info.served_model_name, MODEL);
}

#[tokio::test]
async fn an_abort_reaches_every_leader_but_no_request_of_another_key() {
    let (settings, _folder) = keyed();
    let served = gateway(settings).await;
    let (mut a, mut b) = (Worker::start(), Worker::start());
    served.publish(MODEL, &[a.address, b.address]);
    let mut client = ControlClient::connect(format!("http://{}", served.http))
        .await
        .unwrap();
    let abort = AbortRequest {
        request_ids: vec!["one".to_owned()],
    };
    let open = client.abort(abort.clone()).await.unwrap_err();
    assert_eq!(open.code(), Code::Unauthenticated);
    let bearer = format!("Bearer {KEY}");
    client
        .abort(with(abort, &[("authorization", &bearer)]))
        .await
        .unwrap();
    assert_eq!(
        (a.aborted().await, b.aborted().await),
        ("grpc/one".into(), "grpc/one".into())
    );
}

/// A body of which these bytes come, and no end.
fn unfinished(bytes: Vec<u8>) -> Body {
    let first = stream::iter([Ok::<_, Infallible>(Bytes::from(bytes))]);
    Body::from_stream(first.chain(stream::pending()))
}

/// What stands before a message of so many bytes.
fn prefix(bytes: u32) -> Vec<u8> {
    [&[0], &bytes.to_be_bytes()[..]].concat()
}

const CALLS: [&str; 3] = [
    "/vllm.Inference/Generate",
    "/vllm.Inference/GenerateStream",
    "/vllm.Control/Abort",
];

fn prompt(bytes: usize) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::Text("x".repeat(bytes))),
        ..request(MODEL, None).into_inner()
    }
}

#[tokio::test]
async fn a_message_that_does_not_come_is_not_waited_for() {
    let mut settings = Settings::default();
    settings.limits.body_timeout = Duration::from_millis(50);
    let served = gateway(settings).await;
    let client = Http2::connect(served.http).await;
    for path in CALLS {
        for begun in [Vec::new(), prefix(100), [prefix(100), vec![0; 50]].concat()] {
            let (status, message) = client.grpc(path, unfinished(begun)).await.unwrap();
            assert_eq!(status, Code::DeadlineExceeded as u32, "{path}: {message}");
        }
    }
    assert_eq!(served.gateway.body_bytes.used(), 0);
}

#[tokio::test]
async fn messages_share_the_memory_of_bodies() {
    let settings = Settings {
        body_bytes: 1000,
        ..Settings::default()
    };
    let (served, _worker) = with_worker(settings).await;
    let used = async |bytes| {
        soon(async {
            while served.gateway.body_bytes.used() != bytes {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    // What is only announced takes nothing.
    let idle = Http2::connect(served.http).await;
    let begun = [prefix(8 << 20), vec![0; 595]].concat();
    let hanging = tokio::spawn(async move { idle.grpc(CALLS[0], unfinished(begun)).await });
    used(600).await;
    let mut client = InferenceClient::connect(format!("http://{}", served.http))
        .await
        .unwrap();
    let refused = client.generate(prompt(600)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(refused.metadata().get("retry-after-ms").unwrap(), "1000");
    let long = chat(serde_json::json!({"user": "x".repeat(600)}));
    let refused = post(served.http, "/v1/chat/completions", long).await;
    assert_eq!(refused.status().as_u16(), 503);
    client.generate(prompt(300)).await.unwrap();
    hanging.abort();
    used(0).await;
    client.generate(prompt(600)).await.unwrap();
    used(0).await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused() {
    const LIMIT: usize = 1 << 20;
    let settings = Settings {
        body_limit: LIMIT,
        ..Settings::default()
    };
    let (served, _worker) = with_worker(settings).await;
    let address = format!("http://{}", served.http);
    let mut client = InferenceClient::connect(address.clone()).await.unwrap();
    // As much as a JSON body may have, and no byte more.
    let beside = prompt(LIMIT).encoded_len() - LIMIT;
    let longest = prompt(LIMIT - beside);
    assert_eq!(longest.encoded_len(), LIMIT);
    client.generate(longest).await.unwrap();
    let refused = client.generate(prompt(LIMIT - beside + 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    assert!(refused.message().contains("1048576 bytes"), "{refused}");

    let mut client = ControlClient::connect(address).await.unwrap();
    let request_ids = vec!["x".repeat(1000); 70];
    let refused = client.abort(AbortRequest { request_ids }).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    assert_eq!(served.gateway.body_bytes.used(), 0);
}

#[tokio::test]
async fn what_is_not_served_is_unimplemented_to_clients_of_grpc() {
    let served = gateway(Settings::default()).await;
    let client = Http2::connect(served.http).await;
    for path in [
        "/llamero.v1.RankControl/Watch",
        "/vllm.Inference/Nothing",
        "/made.up.Service/Method",
        "/nothing",
        "/v1/models",
        "/health",
    ] {
        let (status, message) = client.grpc(path, prefix(0)).await.unwrap();
        assert_eq!(status, Code::Unimplemented as u32, "{path}: {message}");
    }
    // All others are told as ever, each in the form of its API.
    let reply = client.post("/llamero.v1.RankControl/Watch", json!({})).await;
    assert_eq!(reply.status().as_u16(), 404);
    assert_eq!(reply.json().await["error"]["code"], "unknown_url");
    let reply = client.post("/v1/messages/batches", json!({})).await;
    assert_eq!(reply.status().as_u16(), 404);
    assert_eq!(reply.json().await["error"]["type"], "not_found_error");
}

#[tokio::test]
async fn reflection_lists_the_services() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let served = gateway(Settings::default()).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", served.http)).unwrap();
    let mut client = ServerReflectionClient::new(channel.connect().await.unwrap());
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = client
        .server_reflection_info(tokio_stream::iter([question]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("{answer:?}")
    };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(
        names.contains(&"vllm.Inference") && names.contains(&"vllm.Control"),
        "{names:?}"
    );
}
