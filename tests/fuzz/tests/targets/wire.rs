//! What comes over gRPC, and from a gateway.

use kubectl_llamero::chat::events::Events;
use llamero_fuzz::{Shape, Target, drive};
use llamero_proto::v1;
use prost::Message;

use crate::outcome;

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
        threads: false,
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
        threads: false,
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
