//! What can go wrong with a Hub, in words for the user.

use std::path::PathBuf;
use std::time::Duration;

/// Why a repository cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The address of the Hub is none.
    #[error(
        "{0:?} is not the address of a Hub; write one such as https://huggingface.co in --endpoint or HF_ENDPOINT"
    )]
    Endpoint(String),
    /// The token cannot be sent.
    #[error("the access token has characters that no token has; check HF_TOKEN or the file of --token-file")]
    Token,
    /// 401 without a token: the Hub does not tell whether a private repository is there.
    #[error(
        "{host} does not show {what} to strangers (401): either there is none of that name, or it is private or gated; \
         check the name, and give a token by HF_TOKEN or --token-file"
    )]
    NoToken {
        /// The Hub.
        host: String,
        /// The repository.
        what: String,
    },
    /// 401 with a token.
    #[error(
        "{host} does not show {what} to the owner of this token (401): check the name, and that the token is valid and \
         may read the repository"
    )]
    BadToken {
        /// The Hub.
        host: String,
        /// The repository.
        what: String,
    },
    /// 403.
    #[error(
        "{host} refuses {what} (403): the repository is gated; accept its terms at {url} and use a token of that account \
         by HF_TOKEN or --token-file"
    )]
    Gated {
        /// The Hub.
        host: String,
        /// The repository.
        what: String,
        /// Its page.
        url: String,
    },
    /// 404.
    #[error("{host} has no {what} (404); check the name{hint}")]
    NotFound {
        /// The Hub.
        host: String,
        /// The repository, revision or file.
        what: String,
        /// What else may be meant.
        hint: &'static str,
    },
    /// An answer with another status.
    #[error("{host} answered {status} for {what}")]
    Status {
        /// Who answered.
        host: String,
        /// The status.
        status: u16,
        /// What was asked for.
        what: String,
    },
    /// 429: too many requests.
    #[error(
        "{host} takes no more requests for now (429); try again later, or give a token by HF_TOKEN or --token-file"
    )]
    RateLimited {
        /// Who answered.
        host: String,
        /// When it takes requests again.
        after: Option<Duration>,
    },
    /// No connection, or a broken one.
    #[error("no answer from {host}: {reason}")]
    Network {
        /// Who was asked.
        host: String,
        /// In words.
        reason: String,
    },
    /// A certificate of nobody who is trusted here.
    #[error("{host} is not trusted: {reason}; name the certificates of its authority in SSL_CERT_FILE")]
    Certificate {
        /// Who was asked.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An answer that makes no sense.
    #[error("{host} gave an answer for {what} that is not understood: {reason}")]
    Answer {
        /// Who answered.
        host: String,
        /// What was asked for.
        what: String,
        /// Why.
        reason: String,
    },
    /// The bytes are not the announced ones.
    #[error(
        "{file} arrived damaged twice: its SHA-256 is {found}, announced is {announced}; nothing of it is kept"
    )]
    Damaged {
        /// The file.
        file: String,
        /// What was announced.
        announced: String,
        /// What arrived.
        found: String,
    },
    /// Tried as often as is sensible.
    #[error("{last}; tried {attempts} times, and what has arrived is kept: run the same command to go on")]
    GivenUp {
        /// Attempts without progress.
        attempts: u32,
        /// What the last one failed with.
        last: Box<HubError>,
    },
    /// Not enough space.
    #[error("{path} has {free} MB free, but {needed} MB are to come; make room, or name another folder by --cache-dir", path = path.display())]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// Free, in 10^6 bytes.
        free: u64,
        /// Needed, in 10^6 bytes.
        needed: u64,
    },
    /// The repository is not what can be run.
    #[error("{repository} cannot be run: {reason}")]
    Unusable {
        /// The repository.
        repository: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A file cannot be written or read here.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
}

impl HubError {
    /// Whether trying again in a moment may help.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Network { .. } => true,
            Self::Status { status, .. } => matches!(status, 403 | 408 | 500..=599),
            _ => false,
        }
    }

    /// Whether only a change by the user helps.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Endpoint(_)
                | Self::Token
                | Self::NoToken { .. }
                | Self::BadToken { .. }
                | Self::Gated { .. }
                | Self::Certificate { .. }
                | Self::NotFound { .. }
                | Self::Unusable { .. }
        )
    }
}
