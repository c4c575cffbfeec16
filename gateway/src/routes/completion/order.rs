//! The answers to one request: as many as it asks for, each from whichever leaders it takes.

use std::iter::repeat_n;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::Stream;
use futures::stream::{SelectAll, StreamExt, select_all};
use llamero_proto::v1::{CompletionRequest, completion_request::Prompt};
use llamero_settings::limits::MAX_REQUEST_BYTES;
use prost::Message;

use super::check::Checked;
use super::route::Route;
use crate::Gateway;
use crate::discovery::Deployment;
use crate::error::ApiError;
use crate::keys::Scope;
use crate::relay::{Delta, Relay, Wishes};

/// Most bytes of the messages to the workers for one request, over all its answers: the texts of a request are never
/// longer than their JSON, but `n` answers carry them `n` times.
const MESSAGE_BYTES: usize = MAX_REQUEST_BYTES;

/// What all objects of one answer carry.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// `chatcmpl-…`, `cmpl-…`, `resp_…` or `msg_…`; also the worker's request id.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The model.
    pub model: String,
    /// Answers to each prompt: answer `i` belongs to prompt `i / n`.
    pub n: usize,
    /// All answers.
    pub choices: usize,
}

impl Envelope {
    /// The id of a call of an answer. It follows from the answer's own id, so that it is the same whoever goes on with the answer.
    #[must_use]
    pub fn call_id(&self, choice: usize, call: u32) -> String {
        format!("call_{}{choice:02x}{call:02x}", self.bare_id())
    }

    /// The id of an item of the answer.
    #[must_use]
    pub fn item_id(&self, prefix: &str, item: usize) -> String {
        format!("{prefix}_{}{item:02x}", self.bare_id())
    }

    /// The id without the word for its kind.
    fn bare_id(&self) -> &str {
        self.id.rsplit(['-', '_']).next().unwrap_or_default()
    }
}

/// A piece of the answer with this index.
pub type Piece = (usize, Result<Delta, ApiError>);

/// The pieces of all answers, as they come.
pub type Pieces = SelectAll<Pin<Box<dyn Stream<Item = Piece> + Send>>>;

/// The deployment that serves a model, among those that the caller sees.
///
/// # Errors
/// 404 when there is none, 503 when the gateway does not know yet.
pub fn deployment(gateway: &Gateway, scope: &Scope, model: &str) -> Result<Deployment, ApiError> {
    let snapshot = gateway.directory.snapshot();
    match snapshot.by_model_in(model, scope) {
        Some(deployment) => Ok(deployment.clone()),
        None if snapshot.complete => Err(ApiError::unknown_model(model)),
        None => Err(ApiError::unavailable(
            "gateway_starting",
            "The gateway has not yet read which models there are.",
            2,
        )),
    }
}

/// The deployment and the adapter that a name stands for; the adapter is empty where it is a model's name.
///
/// # Errors
/// As [`deployment`].
pub fn named(gateway: &Gateway, scope: &Scope, name: &str) -> Result<(Deployment, String), ApiError> {
    match deployment(gateway, scope, name) {
        Ok(deployment) => Ok((deployment, String::new())),
        Err(error) => match gateway.directory.snapshot().by_adapter_in(name, scope) {
            Some((deployment, adapter)) => Ok((deployment.clone(), adapter)),
            None => Err(error),
        },
    }
}

/// Order the answers. Each gets an id and a seed of its own; without a seed it could not go on elsewhere.
///
/// # Errors
/// 413 when the messages to the workers were too large, 500 without randomness.
pub fn order(
    gateway: &Arc<Gateway>,
    route: Route,
    (deployment, adapter): (&Deployment, String),
    checked: Checked,
    wishes: &Wishes,
) -> Result<(Envelope, Pieces), ApiError> {
    let Checked {
        prompts,
        n,
        mut sampling,
        session,
        ..
    } = checked;
    let wishes = Wishes {
        session: wishes.session.or(session),
        ..wishes.clone()
    };
    let choices = prompts.len() * n;
    let prompt_bytes: usize = prompts.iter().map(Prompt::encoded_len).sum();
    let bytes = prompt_bytes
        .saturating_mul(n)
        .saturating_add(sampling.encoded_len().saturating_mul(choices));
    if bytes > MESSAGE_BYTES {
        return Err(ApiError::too_large(MESSAGE_BYTES));
    }
    let random = || getrandom::u64().map_err(|_| ApiError::internal("The system gave no random numbers."));
    let envelope = Envelope {
        id: format!("{}{:016x}{:016x}", route.id_prefix(), random()?, random()?),
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        model: match adapter.as_str() {
            "" => deployment.model.clone(),
            adapter => adapter.to_owned(),
        },
        n,
        choices,
    };
    let seed = match sampling.seed {
        Some(seed) => seed,
        None => random()?,
    };
    sampling.adapter = adapter;
    sampling.template_time = i64::try_from(envelope.created).unwrap_or_default();
    gateway.demand.arrived(&deployment.key);
    let prompts = prompts.into_iter().flat_map(|prompt| repeat_n(prompt, n));
    let relays = prompts.enumerate().map(|(index, prompt)| {
        let answer = index % n;
        let request = CompletionRequest {
            request_id: if choices == 1 {
                envelope.id.clone()
            } else {
                format!("{}-{index}", envelope.id)
            },
            prompt: Some(prompt),
            seed: Some(seed.wrapping_add(answer as u64)),
            // Those of a chat's prompt are sent once.
            prompt_logprobs: sampling
                .prompt_logprobs
                .filter(|_| answer == 0 || route == Route::Text),
            ..sampling.clone()
        };
        let relay = Relay::new(Arc::clone(gateway), deployment, request, wishes.clone());
        let pieces = relay
            .into_stream()
            .map(move |piece| (index, piece.map_err(|error| error.on(route))));
        Box::pin(pieces) as Pin<Box<dyn Stream<Item = Piece> + Send>>
    });
    let pieces = select_all(relays);
    Ok((envelope, pieces))
}
