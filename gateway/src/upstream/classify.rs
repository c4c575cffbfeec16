//! What an error of a leader means for the request.

use std::error::Error;
use std::time::Duration;

use axum::http::StatusCode;
use llamero_identity::explain;
use tonic::{Code, ConnectError, Status};

use crate::error::ApiError;

/// Metadata beside RESOURCE_EXHAUSTED: milliseconds after which the leader expects to have room.
pub const RETRY_AFTER_MS: &str = "retry-after-ms";
/// Metadata beside INVALID_ARGUMENT: the parameter at fault.
const PARAMETER: &str = "parameter";
/// When the leader does not say.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The leader is lost or does not serve now: go on with another, or with the same later.
    Lost {
        /// For the log.
        reason: String,
        /// The leader may have had the request when it broke, so the request may be the cause.
        taken: bool,
    },
    /// The leader's queue is full: another may have room.
    Busy {
        /// The leader's sentence.
        message: String,
        /// When this one may have room.
        retry_after: Duration,
    },
    /// The leader has other weights than the group that began the answer.
    OtherWeights(String),
    /// The request would fail anywhere.
    Final(ApiError),
}

/// Read a status. `bound` tells that the request asked for a content identity.
///
/// Statuses that the transport made up (a broken connection, a reset stream) carry their cause as source; those that the
/// leader sent do not. ALREADY_EXISTS means that the leader has not yet noticed that our last stream with this request
/// id broke.
#[must_use]
pub fn classify(status: &Status, bound: bool) -> Failure {
    let transport = status.source().is_some();
    if transport
        || matches!(
            status.code(),
            Code::Unavailable | Code::Aborted | Code::AlreadyExists
        )
    {
        return Failure::Lost {
            reason: format!("{:?}: {}", status.code(), status.message()),
            taken: transport && !never_connected(status) && !explain::is_refused(status),
        };
    }
    let message = status.message().to_owned();
    Failure::Final(match status.code() {
        Code::ResourceExhausted => {
            return Failure::Busy {
                message,
                retry_after: retry_after(status),
            };
        }
        Code::FailedPrecondition if bound => return Failure::OtherWeights(message),
        Code::OutOfRange => ApiError {
            code: Some("context_length_exceeded"),
            ..ApiError::invalid(Some("prompt"), message)
        },
        Code::InvalidArgument | Code::FailedPrecondition => ApiError::invalid(parameter(status), message),
        Code::Unimplemented => ApiError {
            code: Some("unsupported_parameter"),
            ..ApiError::invalid(None, message)
        },
        Code::NotFound => ApiError {
            status: StatusCode::NOT_FOUND,
            code: Some("model_not_found"),
            ..ApiError::invalid(Some("model"), message)
        },
        code => ApiError::internal(format!("The model's workers failed ({code:?}): {message}")),
    })
}

/// The parameter at fault, as the worker names it.
fn parameter(status: &Status) -> Option<&str> {
    status.metadata().get(PARAMETER)?.to_str().ok()
}

/// Whether the request cannot have left, since there was no connection to send it on.
fn never_connected(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn retry_after(status: &Status) -> Duration {
    let millis = status.metadata().get(RETRY_AFTER_MS);
    let millis = millis
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok());
    millis.map_or(RETRY_AFTER, Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn final_error(status: &Status) -> ApiError {
        match classify(status, false) {
            Failure::Final(error) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lost_leaders_are_not_final() {
        for refusal in [
            Status::unavailable("draining"),
            Status::aborted("re-forming"),
            Status::already_exists("under way"),
        ] {
            assert!(matches!(
                classify(&refusal, false),
                Failure::Lost { taken: false, .. }
            ));
        }
        let broken = Status::from_error(Box::new(std::io::Error::other("connection reset")));
        assert!(matches!(
            classify(&broken, false),
            Failure::Lost { taken: true, .. }
        ));
        let refused = Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        let unreachable = Status::from_error(Box::new(ConnectError(refused)));
        assert!(matches!(
            classify(&unreachable, false),
            Failure::Lost { taken: false, .. }
        ));
    }

    #[test]
    fn mistakes_of_the_user_are_final() {
        let error = final_error(&Status::invalid_argument("the prompt is empty"));
        assert_eq!(
            (error.status, error.message.as_str()),
            (StatusCode::BAD_REQUEST, "the prompt is empty")
        );
        let error = final_error(&Status::out_of_range("the prompt has 9 tokens, the context 8"));
        assert_eq!(error.code, Some("context_length_exceeded"));
        let error = final_error(&Status::internal("oops"));
        assert_eq!(error.status, StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[test]
    fn a_full_queue_says_when_to_come_again() {
        let mut full = Status::resource_exhausted("queue full");
        let busy = |status: &Status| match classify(status, false) {
            Failure::Busy { retry_after, .. } => retry_after,
            other => panic!("{other:?}"),
        };
        assert_eq!(busy(&full), RETRY_AFTER);
        full.metadata_mut()
            .insert(RETRY_AFTER_MS, "1500".parse().unwrap());
        assert_eq!(busy(&full), Duration::from_millis(1500));
    }

    #[test]
    fn only_a_request_that_asked_for_weights_is_refused_for_them() {
        let refusal = Status::failed_precondition("other weights");
        assert!(matches!(classify(&refusal, true), Failure::OtherWeights(_)));
        assert_eq!(final_error(&refusal).status, StatusCode::BAD_REQUEST);
    }
}
