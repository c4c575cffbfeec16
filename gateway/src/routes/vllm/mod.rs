//! The contract of the crate `vllm-proto` over gRPC on the port of the API, so that clients of gRPC need one address too.
//!
//! | module | what it is |
//! |---|---|
//! | [`inference`] | `vllm.Inference`: passed through to a leader of the model that the request names |
//! | [`control`] | `vllm.Control`: the same, by the model that the metadata name |
//! | `receiving` | bounds on the messages that clients send |

pub mod control;
pub mod inference;
mod receiving;

use std::sync::Arc;

use axum::middleware::from_fn_with_state;
use llamero_proto::VLLM_DESCRIPTORS;
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Status};
use tonic_reflection::server::Builder;
use vllm_proto::control_server::ControlServer;
use vllm_proto::inference_server::InferenceServer;

use self::receiving::{MAX_CONTROL_BYTES, receive};
use super::completion::api::Front;
use super::leader::Unanswered;
use crate::Gateway;
use crate::error::ApiError;
use crate::keys::Caller;
use crate::listener::service::RequestId;
use crate::relay::Wishes;
use crate::upstream::Affinity;

/// Largest question of reflection: the name of a symbol or a file.
const MAX_REFLECTION_BYTES: usize = 4 << 10;

/// The services and their reflection, as routes.
pub fn router(gateway: Arc<Gateway>) -> axum::Router<Arc<Gateway>> {
    let service = Service {
        gateway: Arc::clone(&gateway),
    };
    let longest = gateway.settings.body_limit;
    let inference = InferenceServer::new(service.clone()).max_decoding_message_size(longest);
    let control = ControlServer::new(service).max_decoding_message_size(MAX_CONTROL_BYTES);
    let mut routes = tonic::service::Routes::new(inference).add_service(control);
    let describe = || Builder::configure().register_encoded_file_descriptor_set(VLLM_DESCRIPTORS);
    match (describe().build_v1(), describe().build_v1alpha()) {
        (Ok(newer), Ok(older)) => {
            routes = routes
                .add_service(newer.max_decoding_message_size(MAX_REFLECTION_BYTES))
                .add_service(older.max_decoding_message_size(MAX_REFLECTION_BYTES));
        }
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "gRPC reflection is not offered"),
    }
    routes
        .prepare()
        .into_axum_router()
        .reset_fallback()
        .layer(from_fn_with_state(gateway, receive))
        .with_state(())
}

#[derive(Debug, Clone)]
struct Service {
    gateway: Arc<Gateway>,
}

impl Service {
    /// Who asks, and for what session.
    fn front(&self, extensions: &Extensions, session: Option<&str>) -> Front {
        Front {
            gateway: Arc::clone(&self.gateway),
            caller: extensions.get::<Caller>().cloned().unwrap_or_default(),
            wishes: Wishes {
                patience: None,
                request_id: extensions.get::<RequestId>().map(|RequestId(id)| id.clone()),
                session: session.map(Affinity::of_session),
            },
        }
    }
}

/// The id of a request at the leaders. Names of keys have no slash, so that no key reaches the requests of another.
fn own_id(caller: &Caller, id: &str) -> String {
    match caller.name() {
        Some(name) if !id.is_empty() => format!("{name}/{id}"),
        _ => id.to_owned(),
    }
}

/// What the leader itself said is passed on as it is.
fn unanswered(unanswered: Unanswered) -> Status {
    let Unanswered { error, status } = unanswered;
    status.unwrap_or_else(|| self::status(error))
}

/// An error of this gateway's own.
pub(super) fn status(error: ApiError) -> Status {
    let code = match error.status.as_u16() {
        404 => Code::NotFound,
        408 => Code::DeadlineExceeded,
        413 => Code::OutOfRange,
        429 => Code::ResourceExhausted,
        503 => Code::Unavailable,
        400..500 => Code::InvalidArgument,
        _ => Code::Internal,
    };
    let mut metadata = MetadataMap::new();
    if let Some(seconds) = error.retry_after {
        metadata.insert("retry-after-ms", (seconds * 1000).into());
    }
    Status::with_metadata(code, error.message, metadata)
}
