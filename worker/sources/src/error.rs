//! What can go wrong with a source, in words for the user.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Who reads an error: what to do about it differs. All but the first read the status of a `LlamaDeployment`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Audience {
    /// Somebody at a terminal.
    #[default]
    CommandLine,
    /// The source is `huggingFace`.
    HuggingFace,
    /// The source is `https`.
    Https,
    /// The source is `s3`.
    Bucket,
}

impl Audience {
    /// Where credentials are given.
    #[must_use]
    pub const fn token(self) -> &'static str {
        match self {
            Self::CommandLine => "by HF_TOKEN or --token-file",
            Self::HuggingFace => "in a Secret that model.source.huggingFace.tokenSecretRef names",
            Self::Https => "in a Secret that model.source.https.tokenSecretRef names",
            Self::Bucket => {
                "in a Secret that model.source.s3.credentialsSecretRef names, or by the cloud identity of the service \
                 account that worker.serviceAccountName names"
            }
        }
    }

    /// Where the address of a Hub is given.
    const fn endpoint(self) -> &'static str {
        match self {
            Self::CommandLine => "--endpoint or HF_ENDPOINT",
            _ => "model.source.huggingFace.endpoint",
        }
    }

    /// Where an authority's certificates are given.
    const fn authority(self) -> &'static str {
        match self {
            Self::CommandLine => "SSL_CERT_FILE",
            Self::HuggingFace => "a ConfigMap that model.source.huggingFace.caBundle names",
            Self::Https => "a ConfigMap that model.source.https.caBundle names",
            Self::Bucket => "a ConfigMap that model.source.s3.caBundle names",
        }
    }

    /// What becomes of what was interrupted.
    const fn again(self) -> &'static str {
        match self {
            Self::CommandLine => "what has arrived is kept: run the same command to go on",
            _ => "it is tried again later",
        }
    }

    /// What to do about files that are not what they were.
    const fn unchanged(self) -> &'static str {
        match self {
            Self::CommandLine | Self::HuggingFace => {
                "a commit never changes, so look at what stands between this machine and the Hub"
            }
            Self::Https | Self::Bucket => {
                "the files of a running model must stay: put the old ones back, or set rollout.restartedAt so that the new \
                 ones are looked into and rolled out"
            }
        }
    }

    /// How a GGUF file of a repository is served.
    pub(crate) const fn gguf(self) -> &'static str {
        match self {
            Self::CommandLine => "choose one of its GGUF files by --file",
            _ => {
                "name a source with safetensors, or make a folder of a GGUF file with `llamero-worker convert` \
                 and put that into a claim; it has"
            }
        }
    }
}

/// Why a repository cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The address of the Hub is none.
    #[error(
        "{endpoint:?} is not the address of a Hub; write one such as https://huggingface.co in {}", audience.endpoint()
    )]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// Who reads this.
        audience: Audience,
    },
    /// The address of files or of a bucket is none.
    #[error("{given:?} is not {wanted}")]
    Address {
        /// What was given.
        given: String,
        /// What it should be, and where it is given.
        wanted: &'static str,
    },
    /// The keys of a bucket are not there, or not all of them.
    #[error("{host} cannot be asked: {reason}; give credentials {}", audience.token())]
    NoKeys {
        /// The service.
        host: String,
        /// What is missing.
        reason: String,
        /// Who reads this.
        audience: Audience,
    },
    /// 401 or 403 of a server that is no Hub.
    #[error(
        "{host} refuses {what} ({status}{words}); check the address, and that the credentials may list and read it; they are \
         given {}", audience.token()
    )]
    Refused {
        /// Who answered.
        host: String,
        /// What was asked for.
        what: String,
        /// The status.
        status: u16,
        /// What it says of the reason, after a colon.
        words: String,
        /// Who reads this.
        audience: Audience,
    },
    /// The token cannot be sent.
    #[error("the access token has characters that no token has; check what is given {}", audience.token())]
    Token {
        /// Who reads this.
        audience: Audience,
    },
    /// The bundle of certificates cannot be used.
    #[error("the certificates in {path} cannot be used: {reason}", path = path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// 401 without a token: the Hub does not tell whether a private repository is there.
    #[error(
        "{host} does not show {what} to strangers (401): either there is none of that name, or it is private or gated; \
         check the name, accept the licence on the repository's page if it has one, and give a token {}", audience.token()
    )]
    NoToken {
        /// The Hub.
        host: String,
        /// The repository.
        what: String,
        /// Who reads this.
        audience: Audience,
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
        "{host} refuses {what} (403): the repository is gated; accept its terms at {url} and use a token of that account, \
         given {}", audience.token()
    )]
    Gated {
        /// The Hub.
        host: String,
        /// The repository.
        what: String,
        /// Its page.
        url: String,
        /// Who reads this.
        audience: Audience,
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
    #[error("{host} takes no more requests for now (429); try again later, or give a token {}", audience.token())]
    RateLimited {
        /// Who answered.
        host: String,
        /// When it takes requests again.
        after: Option<Duration>,
        /// Who reads this.
        audience: Audience,
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
    #[error("{host} is not trusted: {reason}; name the certificates of its authority in {}", audience.authority())]
    Certificate {
        /// Who was asked.
        host: String,
        /// What is wrong with it.
        reason: String,
        /// Who reads this.
        audience: Audience,
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
    /// The server has other bytes than those that were promised at the beginning.
    #[error("{what} changed at {host}: {reason}; {}", audience.unchanged())]
    Changed {
        /// Who answered.
        host: String,
        /// What was asked for.
        what: String,
        /// What is different.
        reason: String,
        /// Who reads this.
        audience: Audience,
    },
    /// The bytes are not the announced ones.
    #[error(
        "{file} arrived damaged: its SHA-256 is {found}, announced is {announced}; nothing of it is used"
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
    #[error("{last}; tried {attempts} times, and {}", audience.again())]
    GivenUp {
        /// Attempts without progress.
        attempts: u32,
        /// What the last one failed with.
        last: Box<FetchError>,
        /// Who reads this.
        audience: Audience,
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
    /// Its configuration, or its weights' headers, are none of a Llama.
    #[error(transparent)]
    Checkpoint(#[from] Box<llamero_checkpoint::Error>),
    /// A file cannot be written or read here.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

impl FetchError {
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
        match self {
            Self::Endpoint { .. }
            | Self::Address { .. }
            | Self::NoKeys { .. }
            | Self::Refused { .. }
            | Self::Token { .. }
            | Self::Bundle { .. }
            | Self::NoToken { .. }
            | Self::BadToken { .. }
            | Self::Gated { .. }
            | Self::Certificate { .. }
            | Self::NotFound { .. }
            | Self::Unusable { .. } => true,
            Self::Checkpoint(error) => !error.is_passing(),
            _ => false,
        }
    }

    /// In the form in which reads fail; [`llamero_checkpoint::Error::is_passing`] tells by its kind what [`Self::is_final`]
    /// tells here.
    #[must_use]
    pub fn into_io(self) -> io::Error {
        Self::to_io(&Arc::new(self))
    }

    /// The same for an error that several readers are told.
    pub(crate) fn to_io(error: &Arc<Self>) -> io::Error {
        let kind = match error.is_final() {
            true => io::ErrorKind::PermissionDenied,
            false => io::ErrorKind::ConnectionAborted,
        };
        io::Error::new(kind, Told(Arc::clone(error)))
    }
}

/// An error that several readers are told.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Told(Arc<FetchError>);
