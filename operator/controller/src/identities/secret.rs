//! The authority in its Secret. The lease holder makes it where it is not there; every replica looks now and then whether it was replaced.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::PostParams};
use llamero_api::labels;
use llamero_identity::{
    Identity,
    authority::{self, Authority, AuthorityError, Pems},
    credentials::{Current, Material, MaterialError, Publisher},
    rotation::{Believed, NotYet},
};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::lease::Leadership;

/// How often it is looked at once it is there.
const PERIOD: Duration = Duration::from_secs(60);
/// Pause before it is looked for again; doubles up to the last.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// An authority that ends sooner is warned of.
const ENDS_SOON: Duration = Duration::from_secs(30 * 86_400);
/// No request may take longer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The API server said no, or could not be reached.
    #[error("the Secret {0} with the certificate authority cannot be read or made: {1}")]
    Api(String, #[source] kube::Error),
    /// No answer in time.
    #[error("the API server did not answer in time about the Secret {0}")]
    TimedOut(String),
    /// An entry is missing or no text.
    #[error(
        "the Secret {0} has no {1}: put an authority there in cert-manager's layout, or delete it, and the operator makes one"
    )]
    Entry(String, &'static str),
    /// What is there cannot be used.
    #[error("the Secret {0} cannot be used: {1}")]
    Unusable(String, #[source] AuthorityError),
    /// This operator's own certificate cannot be used.
    #[error(transparent)]
    Own(#[from] MaterialError),
    /// It may not take the place of the one in use.
    #[error("the Secret {0} holds another authority: {1}")]
    NotYet(String, #[source] NotYet),
    /// Only the lease holder makes one.
    #[error("the Secret {0} is not there yet; the lease holder makes it")]
    NotMade(String),
}

/// Keeps authority and own certificate.
pub struct Keeper {
    /// To the API server.
    pub client: Client,
    /// Of the Secret.
    pub namespace: String,
    /// Of the Secret.
    pub name: String,
    /// Of certificates.
    pub life: Duration,
    /// Whether this process may make it.
    pub leadership: Leadership,
    /// This operator.
    pub identity: Identity,
    /// Whoever signs.
    pub authorities: watch::Sender<Option<Arc<Authority>>>,
    /// Whoever dials and serves.
    pub publisher: Publisher,
}

/// What is in use.
struct Held {
    pems: Pems,
    believed: Believed,
    renew_at: SystemTime,
}

impl Keeper {
    /// Keeps them for ever; what is in use stays while the API server is away.
    pub async fn keep(self) {
        let (mut held, mut retry) = (None, FIRST_RETRY);
        loop {
            let wait = match self.look(&mut held).await {
                Ok(()) => {
                    retry = FIRST_RETRY;
                    let left = held
                        .as_ref()
                        .and_then(|held: &Held| held.renew_at.duration_since(SystemTime::now()).ok());
                    left.map_or(FIRST_RETRY, |left| left.clamp(FIRST_RETRY, PERIOD))
                }
                Err(error) => {
                    // Its own certificate does not need the API server.
                    if let Err(error) = self.renew(&mut held) {
                        warn!(%error, "the operator's own certificate is not renewed");
                    }
                    warn!(%error, "trying again");
                    let wait = retry;
                    retry = (retry * 2).min(LAST_RETRY);
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn look(&self, held: &mut Option<Held>) -> Result<(), KeepError> {
        let pems = self.pems().await?;
        let same = |held: &Held| {
            let (a, b) = (&held.pems, &pems);
            (&a.certificate, &a.key, &a.roots) == (&b.certificate, &b.key, &b.roots)
        };
        if !held.as_ref().is_some_and(same) {
            let now = SystemTime::now();
            let authority = Authority::open(&pems, self.life, now)
                .map_err(|error| KeepError::Unusable(self.shown(), error))?;
            let authority = Arc::new(authority);
            let believed = match held.take() {
                None => Believed::new(&authority),
                Some(mut before) => match before.believed.admit(&authority, now) {
                    Ok(()) => before.believed,
                    Err(error) => {
                        *held = Some(before);
                        return Err(KeepError::NotYet(self.shown(), error));
                    }
                },
            };
            self.authorities.send_replace(Some(authority));
            info!(
                secret = self.shown(),
                "certificates are signed by the authority of this Secret"
            );
            *held = Some(Held {
                pems,
                believed,
                renew_at: now,
            });
        }
        self.renew(held)
    }

    /// A new certificate of this operator after half of the last one's life.
    fn renew(&self, held: &mut Option<Held>) -> Result<(), KeepError> {
        let (now, authority) = (SystemTime::now(), self.authorities.borrow().clone());
        let Some((held, authority)) = held.as_mut().zip(authority) else {
            return Ok(());
        };
        if now < held.renew_at {
            return Ok(());
        }
        let material = Material::signed(&authority, &self.identity, &self.namespace, now)
            .map_err(|error| KeepError::Unusable(self.shown(), error))?;
        let current = Current::new(&material)?;
        held.renew_at = now + current.renew_in(now);
        self.publisher.put(current);
        let left = authority.not_after().duration_since(now).unwrap_or_default();
        if left < ENDS_SOON.max(2 * self.life) {
            warn!(
                secret = self.shown(),
                "the certificate authority ends in {} s: put another one in its place by the steps of docs/operations.md",
                left.as_secs()
            );
        }
        Ok(())
    }

    /// What the Secret holds; it is made where it is not there.
    pub(super) async fn pems(&self) -> Result<Pems, KeepError> {
        let api = Api::<Secret>::namespaced(self.client.clone(), &self.namespace);
        if let Some(found) = self.within(api.get_opt(&self.name)).await? {
            return self.read(&found);
        }
        if !self.leadership.is_held() {
            return Err(KeepError::NotMade(self.shown()));
        }
        let pems = authority::generate(SystemTime::now())
            .map_err(|error| KeepError::Unusable(self.shown(), error))?;
        match self
            .within(api.create(&PostParams::default(), &self.secret(&pems)))
            .await
        {
            Ok(_) => {
                info!(secret = self.shown(), "made a certificate authority");
                Ok(pems)
            }
            // Somebody else was faster: theirs counts.
            Err(KeepError::Api(_, kube::Error::Api(status))) if status.is_already_exists() => {
                self.read(&self.within(api.get(&self.name)).await?)
            }
            Err(error) => Err(error),
        }
    }

    fn secret(&self, pems: &Pems) -> Secret {
        let labels = [
            (labels::APP_MANAGED_BY, labels::FIELD_MANAGER),
            (labels::APP_PART_OF, labels::PART_OF),
        ];
        let entry = |name: &str, text: &String| (name.to_owned(), ByteString(text.clone().into_bytes()));
        let data: BTreeMap<_, _> = [
            entry("tls.crt", &pems.certificate),
            entry("tls.key", &pems.key),
            entry("ca.crt", &pems.roots),
        ]
        .into();
        Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(
                    labels
                        .map(|(key, value)| (key.to_owned(), value.to_owned()))
                        .into(),
                ),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(data),
            ..Secret::default()
        }
    }

    fn read(&self, secret: &Secret) -> Result<Pems, KeepError> {
        let entry = |name: &'static str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(name));
            bytes
                .and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
                .ok_or_else(|| KeepError::Entry(self.shown(), name))
        };
        Ok(Pems {
            certificate: entry("tls.crt")?,
            key: entry("tls.key")?,
            roots: entry("ca.crt")?,
        })
    }

    fn shown(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    async fn within<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Result<T, KeepError> {
        match tokio::time::timeout(TIMEOUT, request).await {
            Ok(answer) => answer.map_err(|error| KeepError::Api(self.shown(), error)),
            Err(_) => Err(KeepError::TimedOut(self.shown())),
        }
    }
}
