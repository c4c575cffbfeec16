//! `vllm.Inference` on the port of the API.

use std::sync::Arc;

use llamero_gateway::Settings;
use llamero_gateway::keys::KeyStore;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};
use vllm_proto::inference_client::InferenceClient;
use vllm_proto::{GenerateRequest, generate_request::Prompt};

use crate::support::client::get;
use crate::support::{MODEL, with_worker};

const KEY: &str = "sk-grpc-0123456789";

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
async fn requests_pass_to_the_model_that_they_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.yaml");
    std::fs::write(&path, format!("keys: [{{name: grpc, key: {KEY}}}]")).unwrap();
    let settings = Settings {
        keys: Some(Arc::new(KeyStore::load(&path).unwrap())),
        ..Settings::default()
    };
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
    // What the leader says is passed on as it is.
    let mut empty = request(MODEL, Some(KEY));
    empty.get_mut().prompt = None;
    assert_eq!(code(client.generate(empty).await), Some(Code::OutOfRange));
    let metrics = get(served.health, "/metrics").await.text().await;
    for line in [
        "llamero_gateway_key_requests_total{key=\"grpc\",model=\"org/smol\",status=\"200\"} 2",
        "llamero_gateway_key_tokens_total{key=\"grpc\",model=\"org/smol\",kind=\"prompt\"} 14",
        "llamero_gateway_key_tokens_total{key=\"grpc\",model=\"org/smol\",kind=\"output\"} 6",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}
