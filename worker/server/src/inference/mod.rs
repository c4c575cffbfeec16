//! gRPC for clients, on rank 0.
//!
//! | module | what it is |
//! |---|---|
//! | [`model`] | tokenizer, template, limits |
//! | [`prepare`] | requests of `llamero.v1.Completion`, rendered, tokenised and checked |
//! | [`receiving`] | bounds on the requests that are being received |
//! | [`text_workers`] | rendering and tokenising, off the threads that stream |
//! | [`embed`] | embeddings |
//! | [`adapters`] | the adapters that requests may ask for |
//! | [`answer`] | tokens become text and end where the request says |
//! | [`running`] | requests under way, by id |
//! | [`completion`] | `llamero.v1.Completion` |
//! | [`vllm`] | `vllm.Inference` and `vllm.Control` |
//! | [`telemetry`] | `llamero.v1.Telemetry` |
//! | [`health`] | `grpc.health.v1`: whether the whole group steps |

pub mod adapters;
pub mod answer;
pub mod completion;
pub mod embed;
pub mod health;
pub mod model;
pub mod prepare;
pub mod receiving;
pub mod running;
pub mod telemetry;
pub mod text_workers;
pub mod vllm;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use llamero_engine::runtime::EngineHandle;
use llamero_identity::Serving;
use llamero_proto::v1::completion_server::CompletionServer;
use llamero_proto::v1::telemetry_server::TelemetryServer;
use llamero_settings::limits::{MAX_FRAME_BYTES, MAX_MESSAGE_BYTES};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use vllm_proto::control_server::ControlServer;
use vllm_proto::inference_server::InferenceServer;

pub use self::model::Model;
use self::receiving::Receiving;
use self::running::Running;
use self::text_workers::TextWorkers;
use crate::grpc;

/// Answers still on their way after the last request may take this long to leave.
const FLUSH: Duration = Duration::from_secs(3);
/// A client that does not answer a ping within this time is gone, and its requests are cancelled.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// What the services share.
#[derive(Clone)]
pub struct Services {
    /// The model.
    pub model: Arc<Model>,
    /// The queue.
    pub engine: EngineHandle,
    /// Where prompts are rendered and tokenised.
    pub text_workers: TextWorkers,
    /// Requests under way.
    pub running: Running,
    /// Cancelled when the server closes: streams without an end of their own end then.
    pub closing: CancellationToken,
}

/// Serve clients until `closing` is cancelled, then let answers leave.
///
/// # Errors
/// When the server cannot run.
pub async fn serve(
    listener: TcpListener,
    serving: Serving,
    mut model: Model,
    engine: EngineHandle,
    closing: CancellationToken,
) -> anyhow::Result<()> {
    model.served_by(engine.clone());
    listener.set_nonblocking(true)?;
    let incoming = serving.incoming(tokio::net::TcpListener::from_std(listener)?);
    let services = Services {
        model: Arc::new(model),
        engine,
        text_workers: TextWorkers::default(),
        running: Running::default(),
        closing: closing.clone(),
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    let watching = tokio::spawn(health::follow(services.clone(), health));
    let routes = grpc::reflection(&[
        "vllm.Inference",
        "vllm.Control",
        "llamero.v1.Completion",
        "llamero.v1.Telemetry",
        "grpc.health.v1.Health",
    ])?
    .add_service(InferenceServer::new(services.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
    .add_service(ControlServer::new(services.clone()))
    .add_service(CompletionServer::new(services.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
    .add_service(TelemetryServer::new(services))
    .add_service(health_service);

    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_frame_size(MAX_FRAME_BYTES)
        .add_routes(serving.guard(grpc::with_fallback(Receiving::default().bound(routes))))
        .serve_with_incoming_shutdown(incoming, closing.clone().cancelled_owned());
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => ended?,
        () = closing.cancelled() => {
            // Watchers of health and reflection, whose streams have no end, would keep the server for ever.
            if let Ok(ended) = tokio::time::timeout(FLUSH, server).await {
                ended?;
            }
        }
    }
    watching.abort();
    Ok(())
}
