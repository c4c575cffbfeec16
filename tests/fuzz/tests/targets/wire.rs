//! What comes from the API server, over gRPC, and from a gateway.

use kubectl_llamero::chat::events::Events;
use llamero_api::summary::CheckpointSummary;
use llamero_api::{LlamaDeployment, LlamaGroup};
use llamero_core::observed::{Node, Settings};
use llamero_core::{policy, revision, sizing};
use llamero_fuzz::{Shape, Target, drive};
use llamero_proto::v1;
use prost::Message;
use serde_json::Value;

use crate::outcome;

/// A deployment and what an inspect pod says of its checkpoint.
#[test]
fn resources() {
    let target = Target {
        name: "resource",
        shape: Shape::Json,
        factor: 400,
        constant: 1 << 20,
    };
    let settings = Settings::default();
    drive(target, || {
        (Vec::new(), move |input: &[u8]| {
            let input: Value = match serde_json::from_slice(input) {
                Ok(value) => value,
                Err(error) => return error.to_string(),
            };
            let group = serde_json::from_value::<LlamaGroup>(input["group"].clone());
            let summary = serde_json::from_value::<CheckpointSummary>(input["summary"].clone());
            let deployment = serde_json::from_value::<LlamaDeployment>(input["deployment"].clone());
            let mut words = vec![outcome(group), outcome(summary.as_ref())];
            match &deployment {
                Err(error) => words.push(error.to_string()),
                Ok(object) => {
                    words.push(outcome(object.validate_cel()));
                    words.push(outcome(policy::check(
                        &object.spec.model.source,
                        &object.spec.worker,
                        &settings,
                    )));
                    let _ = revision::digest(&object.spec, object.model_name());
                    let _ = revision::inspect_key(&object.spec);
                    if let Ok(summary) = &summary {
                        let plan = sizing::plan(&object.spec, summary, &[Node::default()]);
                        let _ = revision::template(object, &plan, None, &settings);
                        words.push("planned".to_owned());
                    }
                }
            }
            words.join(" ")
        })
    });
}

#[test]
fn grpc_messages() {
    let seeds = vec![
        v1::CompletionRequest::default().encode_to_vec(),
        v1::CompletionRequest {
            model: "m".to_owned(),
            resume_token_ids: vec![1, 2, 3],
            ..v1::CompletionRequest::default()
        }
        .encode_to_vec(),
        v1::FormRequest {
            group_uid: "uid".to_owned(),
            generation: 3,
            ..v1::FormRequest::default()
        }
        .encode_to_vec(),
        vec![10, 2, b'h', b'i', 18, 2, 10, 0],
    ];
    let target = Target {
        name: "grpc-message",
        shape: Shape::Bytes,
        factor: 400,
        constant: 64 << 10,
    };
    drive(target, || {
        (seeds, move |input: &[u8]| {
            [
                outcome(v1::CompletionRequest::decode(input)),
                outcome(v1::CompletionChunk::decode(input)),
                outcome(v1::FormRequest::decode(input)),
                outcome(vllm_proto::GenerateRequest::decode(input)),
            ]
            .join(" ")
        })
    });
}

#[test]
fn server_sent_events() {
    let target = Target {
        name: "events",
        shape: Shape::Text,
        factor: 300,
        constant: 64 << 10,
    };
    drive(target, || {
        (Vec::new(), move |input: &[u8]| {
            // However the network cuts them.
            let (a, b) = input.split_at(input.len() / 3);
            let mut events = Events::default();
            let first = events.take(a);
            let then = first.and_then(|_| events.take(b));
            outcome(then)
        })
    });
}
