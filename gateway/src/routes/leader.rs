//! One question to a leader. It waits for one as a request for an answer does, and wakes a deployment at zero too.

use std::sync::Arc;

use futures::future::BoxFuture;
use llamero_settings::losses::Losses;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::Gateway;
use crate::demand::Counted;
use crate::error::ApiError;
use crate::relay::deadly;
use crate::relay::wait::Waiting;
use crate::routes::completion::api::Front;
use crate::routes::completion::order::named;
use crate::routes::record::Record;
use crate::upstream::{Affinity, Failure, Leader, Refusal, Running, classify};

/// A question.
pub struct Question<'a> {
    /// The route, for metrics.
    pub route: &'static str,
    /// The model that it is for.
    pub model: &'a str,
    /// Memory that it takes while it waits.
    pub bytes: usize,
    /// Tokens that it is likely to cost.
    pub tokens: u64,
    /// Whether it may go to the model of an adapter, since the adapter changes nothing of the answer.
    pub adapters: bool,
    /// An adapter that it names in a field of its own; empty: none.
    pub adapter: &'a str,
    /// Which requests it belongs to by its prompt; what the client says goes before it.
    pub affinity: Option<Affinity>,
}

/// What a leader answered. While it is held, the question counts as under way.
#[derive(Debug)]
pub struct Asked<T> {
    /// The answer.
    pub answer: T,
    /// For metrics and limits.
    pub record: Record,
    _running: Running,
    _counted: Counted,
}

/// Why there is no answer.
#[derive(Debug)]
pub struct Unanswered {
    /// For the client.
    pub error: ApiError,
    /// What the leader itself said, if it was that.
    pub status: Option<Status>,
}

impl From<ApiError> for Unanswered {
    fn from(error: ApiError) -> Self {
        Self { error, status: None }
    }
}

impl From<Unanswered> for ApiError {
    fn from(unanswered: Unanswered) -> Self {
        unanswered.error
    }
}

/// Ask a leader, and another when it is lost before it has answered.
///
/// # Errors
/// What the leader says, 404 for a model that is not there, and what waiting ends with.
pub async fn ask<T>(
    front: Front,
    question: Question<'_>,
    call: impl Fn(&Leader) -> BoxFuture<'static, Result<T, Status>> + Send,
) -> Result<Asked<T>, Unanswered> {
    let Front {
        gateway,
        caller,
        wishes,
    } = front;
    let scope = caller.scope().clone();
    let mut record = Record::new(Arc::clone(&gateway), question.route, caller);
    let asked = async {
        let (deployment, adapter) = named(&gateway, &scope, question.model)?;
        if !adapter.is_empty() && !question.adapters {
            let message = format!(
                "'{}' is an adapter of {}, and adapters answer chats, completions, responses and messages; ask for the model itself.",
                question.model, deployment.model
            );
            return Err(ApiError::unsupported("model", message).into());
        }
        let qualified = || format!("{}/{}", deployment.key.namespace, question.adapter);
        let sees = || scope.has_model(question.adapter) || scope.has_model(&qualified());
        if !question.adapter.is_empty() && !sees() {
            return Err(ApiError::unknown_model(question.adapter).into());
        }
        record.model(&deployment.model);
        record.admit(question.tokens).await?;
        gateway.demand.arrived(&deployment.key);
        let waiting = Waiting::new(&gateway, deployment.key, question.bytes, wishes.patience);
        let waiting = waiting.with_affinity(wishes.session.or(question.affinity));
        first_answer(&gateway, waiting, call).await
    };
    match asked.await {
        Ok((answer, running, counted)) => Ok(Asked {
            answer,
            record,
            _running: running,
            _counted: counted,
        }),
        Err(unanswered) => {
            record.failed(&unanswered.error);
            Err(unanswered)
        }
    }
}

async fn first_answer<T>(
    gateway: &Gateway,
    mut waiting: Waiting,
    call: impl Fn(&Leader) -> BoxFuture<'static, Result<T, Status>>,
) -> Result<(T, Running, Counted), Unanswered> {
    let mut losses = Losses::default();
    let mut lost = false;
    loop {
        let leader = waiting.leader(gateway, false).await?;
        let running = leader.begin();
        let counted = gateway.demand.run(waiting.key());
        let status = match call(&leader).await {
            Ok(answer) => {
                leader.succeeded();
                return Ok((answer, running, counted));
            }
            // A leader that was lost may not have noticed that our own question to it broke.
            Err(status) if status.code() == Code::AlreadyExists && !lost => {
                return Err(Unanswered {
                    error: ApiError::invalid(Some("request_id"), status.message()),
                    status: Some(status),
                });
            }
            Err(status) => status,
        };
        match classify(&status, false) {
            Failure::Final(error) => {
                return Err(Unanswered {
                    error,
                    status: Some(status),
                });
            }
            Failure::Busy { retry_after, .. } => {
                waiting.refused(&leader, Refusal::Busy(Instant::now() + retry_after));
            }
            Failure::OtherWeights(_) => waiting.refused(&leader, Refusal::OtherWeights),
            Failure::Lost { taken, .. } => {
                leader.failed(Instant::now());
                lost = true;
                // Nothing has come of it, so every loss counts.
                if taken && losses.add(0) {
                    return Err(deadly().into());
                }
                waiting.stalled();
            }
        }
    }
}
