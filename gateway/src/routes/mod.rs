//! The routes of the OpenAI API.
//!
//! | module | what it is |
//! |---|---|
//! | [`models`] | `GET /v1/models`, `GET /v1/models/{id}` |
//! | [`completion`] | `POST /v1/chat/completions`, `POST /v1/completions` |
//! | [`body`] | reading a JSON body |
//! | [`record`] | what the metrics learn of a request |
//! | [`usage`] | counts of tokens |

pub mod body;
pub mod completion;
pub mod models;
pub mod record;
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
        .route("/v1/chat/completions", post(completion::handler::chat))
        .route("/v1/completions", post(completion::handler::text))
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
