//! The routes of the OpenAI API.
//!
//! | module | what it is |
//! |---|---|
//! | [`models`] | `GET /v1/models`, `GET /v1/models/{id}` |
//! | [`chat_completions`] | `POST /v1/chat/completions` |
//! | [`completions`] | `POST /v1/completions` |
//! | [`sampling`] | parameters that both kinds of completion share |
//! | [`unsupported`] | parameters that ask for what is not built |
//! | [`body`] | reading a JSON body |
//! | [`answer`] | from a checked request to a whole answer or a stream |
//! | [`record`] | what the metrics learn of a request |
//! | [`usage`] | counts of tokens |

pub mod answer;
pub mod body;
pub mod chat_completions;
pub mod completions;
pub mod models;
pub mod record;
pub mod sampling;
pub mod unsupported;
pub mod usage;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::response::Html;
use axum::routing::{get, post};

use crate::Gateway;
use crate::error::ApiError;

/// All routes.
pub fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/", get(async || Html(include_str!("page.html"))))
        .route("/v1/models", get(models::handler::list))
        .route("/v1/models/{*id}", get(models::handler::get))
        .route("/v1/chat/completions", post(chat_completions::handler::create))
        .route("/v1/completions", post(completions::handler::create))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(gateway)
}

async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    let message = format!(
        "There is no {method} {}; use /v1/models, /v1/chat/completions or /v1/completions.",
        uri.path()
    );
    ApiError {
        status: StatusCode::NOT_FOUND,
        code: Some("unknown_url"),
        ..ApiError::invalid(None, message)
    }
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let path = uri.path();
    let right = if path.starts_with("/v1/models") || path == "/" {
        "GET"
    } else {
        "POST"
    };
    let message = format!("{method} is not allowed for {path}; use {right}.");
    ApiError {
        status: StatusCode::METHOD_NOT_ALLOWED,
        code: Some("method_not_allowed"),
        ..ApiError::invalid(None, message)
    }
}
