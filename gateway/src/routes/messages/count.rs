//! Counting the tokens of a prompt.

use axum::Json;
use axum::body::Body;
use llamero_proto::v1::{CompletionRequest, completion_request::Prompt};
use serde_json::{Value, json};

use super::check::prompt;
use super::request::Request;
use crate::error::ApiError;
use crate::routes::body::read_json;
use crate::routes::completion::api::Front;
use crate::routes::completion::check::refusal;
use crate::routes::completion::request::Reader;
use crate::routes::completion::route::Route;
use crate::routes::tokens::handler::tokens;

/// `POST /v1/messages/count_tokens`.
///
/// # Errors
/// 400 naming the parameter, and whatever keeps a leader from answering.
pub async fn count(front: Front, body: Body) -> Result<Json<Value>, ApiError> {
    let request = read_json(&front.gateway, Reader::<Request>::new(Route::Messages), body).await?;
    if let Some((field, instead)) = request.refused {
        return Err(refusal(field, instead));
    }
    let model = request.model.clone();
    let request = CompletionRequest {
        prompt: Some(Prompt::Chat(prompt(request)?)),
        ..CompletionRequest::default()
    };
    let tokenized = tokens(front, "count_tokens", &model, request).await?;
    Ok(Json(json!({"input_tokens": tokenized.ids.len()})))
}
