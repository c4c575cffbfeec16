//! The routes.
//!
//! | module | what it is |
//! |---|---|
//! | [`models`] | `GET /v1/models`, `GET /v1/models/{id}` |
//! | [`completion`] | `POST /v1/chat/completions`, `POST /v1/completions`, and what all answers share |
//! | [`responses`] | `POST /v1/responses` |
//! | [`messages`] | `POST /v1/messages`, `POST /v1/messages/count_tokens` |
//! | [`embeddings`] | `POST /v1/embeddings` |
//! | [`tokens`] | `POST /tokenize`, `POST /detokenize` |
//! | [`vllm`] | `vllm.Inference` and `vllm.Control`, over gRPC |
//! | [`leader`] | one question to a leader |
//! | [`unknown`] | routes that are not there, those of other servers by name |
//! | [`form`] | in what form a route tells of errors |
//! | [`body`] | reading a JSON body |
//! | [`record`] | what metrics and limits learn of a request |
//! | [`usage`] | counts of tokens |

pub mod body;
pub mod completion;
pub mod embeddings;
pub mod form;
pub mod leader;
pub mod messages;
pub mod models;
pub mod record;
pub mod responses;
pub mod tokens;
pub mod unknown;
pub mod usage;
pub mod vllm;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde_json::{Value, json};

use crate::keys::caller::authenticate;
use crate::{Gateway, page};
use completion::Completion;
use completion::api::{Front, respond};
use completion::route::Route;

/// All routes.
pub fn router(gateway: Arc<Gateway>) -> Router {
    let authenticated = middleware::from_fn_with_state(Arc::clone(&gateway), authenticate);
    let chat = async |front: Front, body: Body| respond(Completion(Route::Chat), front, body).await;
    let text = async |front: Front, body: Body| respond(Completion(Route::Text), front, body).await;
    let responses = async |front: Front, body: Body| respond(responses::Responses, front, body).await;
    let messages = async |front: Front, body: Body| respond(messages::Messages, front, body).await;
    let anthropic = Router::new()
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(messages::count::count))
        .route_layer(authenticated.clone())
        .route_layer(middleware::map_response(messages::failure::rewrite));
    Router::new()
        .route("/v1/models", get(models::handler::list))
        .route("/v1/models/{*id}", get(models::handler::get))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(text))
        .route("/v1/responses", post(responses))
        .route("/v1/embeddings", post(embeddings::handler::embed))
        .route("/tokenize", post(tokens::handler::tokenize))
        .route("/detokenize", post(tokens::handler::detokenize))
        .merge(vllm::router(Arc::clone(&gateway)))
        .route_layer(authenticated)
        .merge(anthropic)
        .route("/health", get(health))
        .route("/version", get(version))
        .merge(page::router())
        .fallback(unknown::route)
        .method_not_allowed_fallback(unknown::method)
        .with_state(gateway)
}

/// `GET /health`: whether this gateway takes requests. The groups of a model have readiness of their own.
async fn health(State(gateway): State<Arc<Gateway>>) -> StatusCode {
    match gateway.not_ready() {
        None => StatusCode::OK,
        Some(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// `GET /version`.
async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
