//! The handler.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::types::TextRequest;
use super::{convert, validate};
use crate::Gateway;
use crate::error::ApiError;
use crate::routes::answer;
use crate::routes::body::read_json;
use crate::routes::record::Record;

/// `POST /v1/completions`.
///
/// # Errors
/// In OpenAI's form.
pub async fn create(State(gateway): State<Arc<Gateway>>, body: Body) -> Result<Response, ApiError> {
    let mut record = Record::new(Arc::clone(&gateway), "completions");
    let parsed = async {
        let request: TextRequest = read_json(&gateway, body).await?;
        let streamed = request.stream.unwrap_or(false);
        let include_usage = request
            .stream_options
            .and_then(|options| options.include_usage)
            .unwrap_or(false);
        let prompt = validate::validate(&request)?;
        Ok((convert::request(request, prompt)?, streamed, include_usage))
    };
    let (request, streamed, include_usage) = parsed.await.inspect_err(|error| record.failed(error))?;
    let (envelope, answer) = answer::order(gateway, record, "cmpl", request)?;
    if streamed {
        return Ok(answer
            .stream(convert::Chunks {
                envelope,
                include_usage,
            })
            .await);
    }
    Ok(Json(convert::whole(envelope, answer.whole().await?)).into_response())
}
