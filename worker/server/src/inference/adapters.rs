//! The adapters that requests may ask for.

use llamero_engine::runtime::{AdapterChoice, AdapterError, AdapterInfo, EngineHandle};
use tonic::Status;

/// The adapter of that name; none for an empty one.
///
/// # Errors
/// NOT_FOUND. A request is never answered without the adapter that it names.
pub fn choose(engine: &EngineHandle, name: &str) -> Result<Option<AdapterChoice>, Status> {
    if name.is_empty() {
        return Ok(None);
    }
    let loaded = engine.adapters();
    match loaded.iter().find(|info| info.name == name) {
        Some(info) => Ok(Some(AdapterChoice {
            name: info.name.clone(),
            identity: info.identity,
        })),
        None => {
            let names: Vec<&str> = loaded.iter().map(|info| info.name.as_str()).collect();
            let there = match names.as_slice() {
                [] => "none is".to_owned(),
                names => format!("these are: {}", names.join(", ")),
            };
            Err(Status::not_found(format!(
                "no adapter {name:?} is loaded here; {there}"
            )))
        }
    }
}

/// What an answer must be resumed on: the model's identity, and the adapter's.
#[must_use]
pub fn identity(model: &str, adapter: Option<&AdapterChoice>) -> String {
    match adapter {
        None => model.to_owned(),
        Some(adapter) => format!("{model} lora-{}", adapter.identity),
    }
}

/// Wait for the end of a load or an unload.
///
/// # Errors
/// As the engine says.
pub async fn outcome(
    start: impl FnOnce(Box<dyn FnOnce(Result<AdapterInfo, AdapterError>) + Send>),
) -> Result<AdapterInfo, Status> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    start(Box::new(move |end| {
        // Who does not wait any more needs no answer.
        let _ = sender.send(end);
    }));
    match receiver.await {
        Ok(end) => end.map_err(|error| status(&error)),
        Err(_) => Err(Status::unavailable("the engine has stopped")),
    }
}

fn status(error: &AdapterError) -> Status {
    let message = error.to_string();
    match error {
        AdapterError::Invalid(_) => Status::invalid_argument(message),
        AdapterError::Unknown(_) => Status::not_found(message),
        AdapterError::Taken(_) => Status::already_exists(message),
        AdapterError::Full(_) => Status::resource_exhausted(message),
        AdapterError::Off | AdapterError::InUse { .. } | AdapterError::Refused { .. } => {
            Status::failed_precondition(message)
        }
        AdapterError::Busy(_) | AdapterError::Unavailable(_) => Status::unavailable(message),
    }
}
