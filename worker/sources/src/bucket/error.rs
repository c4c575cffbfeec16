//! What a refusal of a bucket means.

use object_store::Error;

use super::Bucket;
use crate::FetchError;
use crate::client::{Cause, causes, is_certificate};

/// Characters of a server's own words that are shown.
const WORDS: usize = 300;

impl Bucket {
    /// What a request for `what` failed with.
    pub(super) fn refusal(&self, error: &Error, what: &str) -> FetchError {
        let (host, what) = (self.host.clone(), what.to_owned());
        let audience = self.audience;
        if causes(error).any(is_certificate) {
            return FetchError::Certificate {
                host,
                reason: reason(error),
                audience,
            };
        }
        let refused = |status| FetchError::Refused {
            host: self.host.clone(),
            what: what.clone(),
            status,
            words: words(error).map_or_else(String::new, |words| format!(": {words}")),
            audience,
        };
        let status = match error {
            Error::NotFound { .. } => Some(404),
            Error::Precondition { .. } => Some(412),
            Error::PermissionDenied { .. } => Some(403),
            Error::Unauthenticated { .. } => Some(401),
            _ => status(error),
        };
        match status {
            Some(404) => FetchError::NotFound {
                host,
                what,
                hint: ", the bucket and the folder",
            },
            Some(412) => FetchError::Changed {
                host,
                what,
                reason: "its ETag is another one now".to_owned(),
                audience,
            },
            Some(status @ (401 | 403)) => refused(status),
            Some(429) => FetchError::RateLimited {
                host,
                after: None,
                audience,
            },
            Some(status) => FetchError::Status { host, status, what },
            None => self.broken(error),
        }
    }

    /// What a connection broke with.
    pub(crate) fn broken(&self, error: &Error) -> FetchError {
        FetchError::Network {
            host: self.host.clone(),
            reason: reason(error),
        }
    }
}

/// The innermost cause, which is the one that says something.
pub(super) fn reason(error: &Error) -> String {
    let innermost = causes(error).last().map_or_else(String::new, ToString::to_string);
    innermost.chars().take(WORDS).collect()
}

/// The status of an answer. The type that has it is private to `object_store`, so its words are read; a test has them.
fn status(error: &Error) -> Option<u16> {
    let in_cause = |cause: &Cause| {
        let text = cause.to_string();
        let after = text.split_once("status code: ")?.1;
        after.get(..3)?.parse().ok()
    };
    causes(error).find_map(in_cause)
}

/// What the service says in the XML of its answer: `<Code>…</Code><Message>…</Message>`.
fn words(error: &Error) -> Option<String> {
    let text = causes(error).last()?.to_string();
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once("</")?.0)
    };
    let words = match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => format!("{code}, {message}"),
        (code, message) => code.or(message)?.to_owned(),
    };
    Some(words.chars().take(WORDS).collect())
}
