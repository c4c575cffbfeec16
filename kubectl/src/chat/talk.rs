//! The gateway as who answers.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, stream};
use llamero_chat::{ChatError, Message, Pieces, Talk, answer::Piece};
use reqwest::{Certificate, Response, Url, redirect::Policy};
use serde_json::{Value, json};

use super::{
    events::{Events, Failure},
    forward::Forward,
};
use crate::options::ChatArgs;

/// Longest error that is read.
const MOST_ERROR_BYTES: usize = 64 << 10;
/// A gateway holds requests while a group wakes, ten minutes by default; then it says so.
const SILENCE: Duration = Duration::from_secs(1800);

/// How the gateway is reached.
#[derive(Clone, Debug)]
pub struct Way {
    base: String,
    /// Where the host of `base` really is.
    at: Option<(String, SocketAddr)>,
}

impl Way {
    /// At an address of its own.
    #[must_use]
    pub fn direct(url: &str) -> Self {
        Self {
            base: url.trim_end_matches('/').trim_end_matches("/v1").to_owned(),
            at: None,
        }
    }

    /// Through a forwarded port; with TLS under the name of its Service, which its certificate must have.
    #[must_use]
    pub fn forwarded(forward: &Forward) -> Self {
        let scheme = if forward.tls { "https" } else { "http" };
        let port = forward.address.port();
        Self {
            base: format!("{scheme}://{}:{port}", forward.host),
            at: Some((forward.host.clone(), forward.address)),
        }
    }
}

/// A gateway, and how the model is to answer.
#[derive(Clone, Debug)]
pub struct GatewayTalk {
    http: reqwest::Client,
    url: Url,
    key: Option<String>,
    model: String,
    args: ChatArgs,
}

impl GatewayTalk {
    /// Talk with this model.
    ///
    /// # Errors
    /// The address or the certificates make no sense.
    pub fn new(way: Way, model: String, args: &ChatArgs, key: Option<String>) -> Result<Self> {
        let url = Url::parse(&format!("{}/v1/chat/completions", way.base));
        let url = url.with_context(|| format!("{} is no address of a gateway", way.base))?;
        // Another call has set the same one before, or this one does.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("kubectl-llamero/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .connect_timeout(Duration::from_secs(30))
            .read_timeout(SILENCE)
            .tls_certs_merge(roots(args)?);
        if let Some((host, address)) = &way.at {
            http = http.no_proxy().resolve(host, *address);
        }
        Ok(Self {
            http: http.build().context("cannot use TLS")?,
            url,
            key,
            model,
            args: args.clone(),
        })
    }

    fn body(&self, messages: &[Message]) -> Value {
        let args = &self.args;
        let said = messages
            .iter()
            .map(|message| json!({"role": message.role, "content": message.content}));
        let settings = [
            ("temperature", args.temperature.map(Value::from)),
            ("top_p", args.top_p.map(Value::from)),
            ("seed", args.seed.map(Value::from)),
            ("max_tokens", args.max_tokens.map(Value::from)),
        ];
        let mut body = json!({"model": self.model, "messages": said.collect::<Vec<_>>(), "stream": true,
            "stream_options": {"include_usage": true}});
        if let Some(body) = body.as_object_mut() {
            let given = settings
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?)));
            body.extend(given);
        }
        body
    }
}

/// Certificates of the user, and Mozilla's beside the system's.
fn roots(args: &ChatArgs) -> Result<Vec<Certificate>> {
    let known = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
    let mut roots: Vec<Certificate> = known
        .filter_map(|root| Certificate::from_der(root).ok())
        .collect();
    if let Some(path) = &args.ca {
        let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let named = Certificate::from_pem_bundle(&pem).unwrap_or_default();
        anyhow::ensure!(
            !named.is_empty(),
            "{} holds no certificate in PEM form",
            path.display()
        );
        roots.extend(named);
    }
    Ok(roots)
}

impl Talk for GatewayTalk {
    fn system(&self) -> Option<&str> {
        self.args.system.as_deref()
    }

    async fn ask(&self, messages: Vec<Message>) -> Result<Pieces, ChatError> {
        let mut request = self
            .http
            .post(self.url.clone())
            .header("content-type", "application/json")
            .body(self.body(&messages).to_string());
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|error| lost(&error))?;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        Ok(pieces(response).boxed())
    }
}

/// What came and was not handed on, and what is still to come.
struct Reading {
    response: Response,
    events: Events,
    ready: VecDeque<Piece>,
}

fn pieces(response: Response) -> impl stream::Stream<Item = Result<Piece, ChatError>> + Send {
    let reading = Reading {
        response,
        events: Events::default(),
        ready: VecDeque::new(),
    };
    stream::try_unfold(reading, |mut reading| async move {
        loop {
            if let Some(piece) = reading.ready.pop_front() {
                return Ok(Some((piece, reading)));
            }
            if reading.events.done() {
                return Ok(None);
            }
            let Some(bytes) = reading.response.chunk().await.map_err(|error| lost(&error))? else {
                return Ok(None);
            };
            reading.ready.extend(reading.events.take(&bytes)?);
        }
    })
}

fn lost(error: &reqwest::Error) -> ChatError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    ChatError::Refused(format!("cannot reach the gateway: {cause}"))
}

/// The gateway's own words, which say what to do.
async fn refused(mut response: Response) -> ChatError {
    #[derive(serde::Deserialize)]
    struct Body {
        error: Failure,
    }
    let status = response.status();
    let mut body = Vec::new();
    while let Ok(Some(bytes)) = response.chunk().await {
        body.extend_from_slice(&bytes);
        if body.len() > MOST_ERROR_BYTES {
            break;
        }
    }
    let words = match serde_json::from_slice::<Body>(&body) {
        Ok(body) => body.error.message,
        Err(_) => format!("HTTP {status}"),
    };
    let way_out = if status == reqwest::StatusCode::UNAUTHORIZED {
        "; give --api-key-file, or set LLAMERO_API_KEY"
    } else {
        ""
    };
    ChatError::Refused(format!("{words}{way_out}"))
}
