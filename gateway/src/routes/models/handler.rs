//! The handlers.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json};

use super::convert;
use super::types::{Model, ModelList};
use crate::Gateway;
use crate::error::ApiError;
use crate::keys::Caller;

/// `GET /v1/models`.
pub async fn list(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
) -> Json<ModelList> {
    Json(convert::list(&gateway.directory.snapshot(), caller.scope()))
}

/// `GET /v1/models/{id}`; ids may contain slashes.
///
/// # Errors
/// 404.
pub async fn get(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Model>, ApiError> {
    let snapshot = gateway.directory.snapshot();
    if let Some(deployment) = snapshot.by_model_in(&id, caller.scope()) {
        return Ok(Json(convert::model(deployment)));
    }
    let (deployment, adapter) = snapshot
        .by_adapter_in(&id, caller.scope())
        .ok_or_else(|| ApiError::unknown_model(&id))?;
    Ok(Json(convert::adapter(deployment, adapter)))
}
