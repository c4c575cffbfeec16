//! Errors in the form of the OpenAI API: `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header::RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use llamero_proto::v1::AdmitReply;
use serde::Serialize;

use crate::quota::headers;
use crate::routes::completion::route::Route;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An error as the client sees it. The message says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// One or two sentences for a human.
    pub message: String,
    /// OpenAI's kind of error: `invalid_request_error`, `server_error`, …
    pub kind: &'static str,
    /// The parameter at fault.
    pub param: Option<String>,
    /// A stable word for programs.
    pub code: Option<&'static str>,
    /// Seconds after which another try makes sense.
    pub retry_after: Option<u64>,
    /// Another try makes no sense, although the status might suggest it. OpenAI's clients understand the header
    /// `x-should-retry: false`.
    pub final_answer: bool,
    /// What is left of the limits of the caller's key.
    pub limits: Option<Box<AdmitReply>>,
}

/// What is sent.
#[derive(Debug, Serialize)]
pub struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

#[derive(Debug, Serialize)]
struct ErrorFields<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl ApiError {
    /// 400: the request is wrong in a parameter, or as a whole.
    #[must_use]
    pub fn invalid(param: Option<&str>, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            message: message.into(),
            kind: "invalid_request_error",
            param: param.map(str::to_owned),
            code: None,
            retry_after: None,
            final_answer: false,
            limits: None,
        }
    }

    /// 400: a parameter asks for something that is not built.
    #[must_use]
    pub fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self {
            code: Some("unsupported_parameter"),
            ..Self::invalid(Some(param), message)
        }
    }

    /// 404: no deployment serves this model.
    #[must_use]
    pub fn unknown_model(model: &str) -> Self {
        let shown: String = model.chars().take(256).collect();
        Self {
            status: StatusCode::NOT_FOUND,
            code: Some("model_not_found"),
            ..Self::invalid(
                Some("model"),
                format!("The model '{shown}' does not exist here; GET /v1/models lists those that do."),
            )
        }
    }

    /// 503: try again later.
    #[must_use]
    pub fn unavailable(code: &'static str, message: impl Into<String>, retry_after: u64) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            message: message.into(),
            kind: "server_error",
            param: None,
            code: Some(code),
            retry_after: Some(retry_after),
            final_answer: false,
            limits: None,
        }
    }

    /// 429: there is no room at present.
    #[must_use]
    pub fn busy(message: impl Into<String>, retry_after: u64) -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            ..Self::unavailable("overloaded", message, retry_after)
        }
    }

    /// 413: the request has more bytes than the gateway and the workers take.
    #[must_use]
    pub fn too_large(limit: usize) -> Self {
        let message = format!("The request is larger than {limit} bytes; send a shorter conversation.");
        Self {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            code: Some("request_too_large"),
            ..Self::invalid(None, message)
        }
    }

    /// 500: our fault or the worker's.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::internal_as("internal_error", message)
    }

    /// 500 with a word of its own.
    #[must_use]
    pub fn internal_as(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            message: message.into(),
            kind: "server_error",
            param: None,
            code: Some(code),
            retry_after: None,
            final_answer: false,
            limits: None,
        }
    }

    /// The same where the parameter has another name.
    #[must_use]
    pub fn renamed(mut self, from: &str, to: &str) -> Self {
        self.message = self.message.replace(from, to);
        self.param = self.param.map(|param| param.replace(from, to));
        self
    }

    /// As it is on this route: only there it is known what the prompt is called.
    #[must_use]
    pub fn on(mut self, route: Route) -> Self {
        if self.code == Some("context_length_exceeded") {
            self.param = Some(route.prompt().to_owned());
        }
        self
    }

    /// What is sent, also within a stream.
    #[must_use]
    pub fn body(&self) -> ErrorBody<'_> {
        ErrorBody {
            error: ErrorFields {
                message: &self.message,
                kind: self.kind,
                param: self.param.as_deref(),
                code: self.code,
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.final_answer {
            response
                .headers_mut()
                .insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(limits) = &self.limits {
            headers::tell(response.headers_mut(), limits);
        }
        // Routes whose errors have another form write it again.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_four_fields_are_always_there() {
        let body = serde_json::to_value(ApiError::unknown_model("x").body()).unwrap();
        assert_eq!(
            body,
            serde_json::json!({"error": {
                "message": "The model 'x' does not exist here; GET /v1/models lists those that do.",
                "type": "invalid_request_error", "param": "model", "code": "model_not_found",
            }})
        );
        let body = serde_json::to_value(ApiError::invalid(None, "no").body()).unwrap();
        assert!(body["error"]["param"].is_null() && body["error"]["code"].is_null());
    }
}
