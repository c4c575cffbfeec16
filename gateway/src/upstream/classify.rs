//! What an error of a leader means for the request.

use std::error::Error;

use axum::http::StatusCode;
use tonic::{Code, Status};

use crate::error::ApiError;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The leader is lost or does not serve now: go on with another, or with the same later.
    Lost(String),
    /// The request would fail anywhere.
    Final(ApiError),
}

/// Read a status. Statuses that the transport made up (a broken connection, a reset stream) carry their cause as source;
/// those that the leader sent do not. ALREADY_EXISTS means that the leader has not yet noticed that our last stream with
/// this request id broke.
#[must_use]
pub fn classify(status: &Status) -> Failure {
    if status.source().is_some()
        || matches!(
            status.code(),
            Code::Unavailable | Code::Aborted | Code::AlreadyExists
        )
    {
        return Failure::Lost(format!("{:?}: {}", status.code(), status.message()));
    }
    let message = status.message().to_owned();
    Failure::Final(match status.code() {
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => {
            ApiError::invalid(None, message)
        }
        Code::Unimplemented => ApiError {
            code: Some("unsupported_parameter"),
            ..ApiError::invalid(None, message)
        },
        Code::NotFound => ApiError {
            status: StatusCode::NOT_FOUND,
            code: Some("model_not_found"),
            ..ApiError::invalid(Some("model"), message)
        },
        Code::ResourceExhausted => ApiError::unavailable("overloaded", message, 5),
        code => ApiError::internal(format!("The model's workers failed ({code:?}): {message}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_of_the_user_are_final_and_lost_leaders_are_not() {
        assert!(matches!(
            classify(&Status::unavailable("draining")),
            Failure::Lost(_)
        ));
        assert!(matches!(
            classify(&Status::aborted("re-forming")),
            Failure::Lost(_)
        ));
        assert!(matches!(
            classify(&Status::already_exists("under way")),
            Failure::Lost(_)
        ));
        let broken = Status::from_error(Box::new(std::io::Error::other("connection reset")));
        assert!(matches!(classify(&broken), Failure::Lost(_)));
        let Failure::Final(error) = classify(&Status::invalid_argument("the prompt is empty")) else {
            panic!()
        };
        assert_eq!(
            (error.status, error.message.as_str()),
            (StatusCode::BAD_REQUEST, "the prompt is empty")
        );
        let Failure::Final(error) = classify(&Status::resource_exhausted("queue full")) else {
            panic!()
        };
        assert_eq!(
            (error.status, error.retry_after),
            (StatusCode::SERVICE_UNAVAILABLE, Some(5))
        );
        let Failure::Final(error) = classify(&Status::internal("oops")) else {
            panic!()
        };
        assert_eq!(error.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
