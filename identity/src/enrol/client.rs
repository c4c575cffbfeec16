//! Enrols a pod, and renews its certificate after half of its life for as long as the process runs. While the operator is away the
//! certificate in use stays.

use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use llamero_proto::v1::EnrolRequest;
use llamero_proto::v1::enrolment_client::EnrolmentClient;
use tokio::time::Instant;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use super::MAX_TOKEN_BYTES;
use crate::authority::{self, AuthorityError};
use crate::certificate::unix_seconds;
use crate::credentials::{self, Current, Material, MaterialError, Publisher};
use crate::verify::Expected;
use crate::{connect, explain};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause after a renewal that failed; doubles up to the last. Between them half and all of it.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// The same while there is no certificate that counts: nobody is served meanwhile.
const UNENROLLED_RETRY: Duration = Duration::from_secs(5);
/// The clock is looked at this often: it may be set, and a machine may be suspended.
const LOOK: Duration = Duration::from_secs(60);
/// What is told when a certificate ends while nothing is asked.
const ENDED: &str = "its certificate has ended and was not renewed in time";
/// No certificate is renewed sooner, however short its life.
const SHORTEST: Duration = Duration::from_millis(500);

/// Where the first roots come from; later ones come with every renewal.
#[derive(Debug, Clone)]
pub enum Roots {
    /// PEM.
    Pem(String),
    /// A file with it.
    File(PathBuf),
}

/// Where and as whom to enrol.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// `host:port` of the operator.
    pub address: String,
    /// Its namespace.
    pub installation: String,
    /// What is believed.
    pub roots: Roots,
    /// The token of this pod's service account.
    pub token_file: PathBuf,
    /// Of all identities.
    pub trust_domain: String,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A token that is none.
    #[error("{} holds {bytes} bytes, and a token has between 1 and {MAX_TOKEN_BYTES}", path.display())]
    Token {
        /// Where it lies.
        path: PathBuf,
        /// How long it is.
        bytes: usize,
    },
    /// Roots or a key cannot be used.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The address is none.
    #[error("{0} is no HOST:PORT to enrol at")]
    Address(String),
    /// The operator is away, is not who it should be, or says no.
    #[error("the operator gave no certificate: {}", refusal(.0))]
    Refused(Box<Status>),
    /// The certificate does not count by the clock of this node.
    #[error(
        "the operator's certificate does not count at {} by the clock of this node: set the clocks of this node and of the operator's",
        unix_seconds(*.0)
    )]
    Clocks(SystemTime),
    /// What came cannot be used.
    #[error("the operator's certificate cannot be used: {0}")]
    Material(#[from] MaterialError),
}

/// What the operator said, or why it is not reached.
fn refusal(status: &Status) -> String {
    match explain::unreached(status) {
        Some(why) => format!("it is not reached: {why}"),
        None => format!("{} ({:?})", status.message(), status.code()),
    }
}

impl From<Status> for EnrolError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl EnrolError {
    /// What the operator answered, if it did.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(status) => Some(status.code()),
            _ => None,
        }
    }
}

impl Enrolment {
    /// A certificate for a new key. The operator must prove that it is one; `known` are roots that came with the last certificate.
    ///
    /// # Errors
    /// [`EnrolError`].
    pub async fn enrol(&self, known: Option<&Material>) -> Result<Material, EnrolError> {
        let token = self.token().await?;
        let roots = self.roots(known).await?;
        let store = authority::store(&roots).map_err(MaterialError::from)?;
        let operator = Expected::Operator {
            trust_domain: self.trust_domain.clone(),
            namespace: self.installation.clone(),
        };
        let config = credentials::anonymous(store, operator).map_err(MaterialError::from)?;
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))
            .map_err(|_| EnrolError::Address(self.address.clone()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT);

        let (key, signing_request) = authority::new_key()?;
        let answer = EnrolmentClient::new(connect::anonymous(&endpoint, config))
            .enrol(EnrolRequest {
                signing_request,
                token,
            })
            .await?
            .into_inner();
        Ok(Material {
            certificates: answer.certificates,
            key: key.serialize_der(),
            roots: answer.roots,
            installation: self.installation.clone(),
        })
    }

    /// Enrols and renews for ever. `tell` hears why there is no certificate that counts, and None once there is one.
    pub async fn keep(self, publisher: Publisher, tell: impl Fn(Option<String>, Option<&Material>)) {
        let mut held: Option<(Material, SystemTime)> = None;
        let mut retry = FIRST_RETRY;
        loop {
            let answer = self.enrol(held.as_ref().map(|(material, _)| material)).await;
            let made = answer.and_then(|material| Ok((counting(&material, SystemTime::now())?, material)));
            let wait = match made {
                Ok((current, material)) => {
                    let wait = earlier(current.renew_in(SystemTime::now()), RENEWAL_SPREAD).max(SHORTEST);
                    tracing::info!(identity = %current.identity, renewed_in = ?wait, "enrolled");
                    held = Some((material.clone(), current.not_after));
                    publisher.put(current);
                    tell(None, Some(&material));
                    retry = FIRST_RETRY;
                    wait
                }
                Err(error) => {
                    let now = SystemTime::now();
                    let left = held.as_ref().and_then(|(_, end)| end.duration_since(now).ok());
                    let left = left.filter(|left| !left.is_zero());
                    if left.is_none() {
                        retry = retry.min(UNENROLLED_RETRY);
                        tell(Some(error.to_string()), None);
                    }
                    match left {
                        Some(left) => {
                            tracing::warn!(%error, "cannot enrol anew; the certificate in use counts for another {} s; trying again in {retry:?}", left.as_secs());
                        }
                        None => {
                            tracing::warn!(%error, "cannot enrol, and nobody is let in without a certificate; trying again in {retry:?}");
                        }
                    }
                    let wait = earlier(retry, RETRY_SPREAD);
                    retry = (retry * 2).min(LAST_RETRY);
                    wait
                }
            };
            let end = held.as_ref().map(|(_, end)| *end);
            if !wait_for(wait, end).await {
                tell(Some(ENDED.to_owned()), None);
            }
        }
    }

    async fn token(&self) -> Result<String, EnrolError> {
        let path = self.token_file.clone();
        let text = read(&path).await?;
        let token = text.trim();
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            let bytes = token.len();
            return Err(EnrolError::Token { path, bytes });
        }
        Ok(token.to_owned())
    }

    /// Those that came last, and those that we were given: the authority may have been replaced meanwhile.
    async fn roots(
        &self,
        known: Option<&Material>,
    ) -> Result<Vec<rustls_pki_types::CertificateDer<'static>>, EnrolError> {
        let given = match &self.roots {
            Roots::Pem(pem) => authority::certificates(pem, "LLAMERO_ROOTS"),
            Roots::File(path) => authority::certificates(&read(path).await?, "--roots-file"),
        }?;
        let known = known.into_iter().flat_map(|material| &material.roots);
        Ok(given.into_iter().chain(known.cloned().map(Into::into)).collect())
    }
}

/// Renewals come up to a tenth earlier, and other attempts up to half, so that pods which began together do not ask together.
const RENEWAL_SPREAD: u32 = 10;
const RETRY_SPREAD: u32 = 2;

/// Up to one part in so many less than `whole`, by chance.
fn earlier(whole: Duration, parts: u32) -> Duration {
    let chance = RandomState::new().hash_one(()) % 1000;
    let less = whole / parts * u32::try_from(chance).unwrap_or(0) / 1000;
    whole.saturating_sub(less)
}

/// Waits, by the clock of the wall too; no longer than to the end of the certificate, if that comes first. Whether it did not come.
async fn wait_for(wait: Duration, end: Option<SystemTime>) -> bool {
    let (began, due) = (Instant::now(), SystemTime::now() + wait);
    let end = end.filter(|end| *end > SystemTime::now());
    loop {
        let now = SystemTime::now();
        if end.is_some_and(|end| end <= now) {
            return false;
        }
        let left = wait.saturating_sub(began.elapsed());
        let left = pause(now, due, end).map(|pause| pause.min(left));
        let Some(left) = left.filter(|left| !left.is_zero()) else {
            return true;
        };
        tokio::time::sleep(left).await;
    }
}

/// How long to sleep before the clock is looked at again. None: it is time.
fn pause(now: SystemTime, due: SystemTime, end: Option<SystemTime>) -> Option<Duration> {
    let left = |at: SystemTime| at.duration_since(now).unwrap_or_default();
    let until_due = Some(left(due)).filter(|left| !left.is_zero())?;
    Some(end.map_or(LOOK, left).min(LOOK).min(until_due))
}

/// The material as it is used, if it counts now.
fn counting(material: &Material, now: SystemTime) -> Result<Current, EnrolError> {
    let current = Current::new(material)?;
    if current.not_before <= now && now < current.not_after {
        return Ok(current);
    }
    Err(EnrolError::Clocks(now))
}

async fn read(path: &Path) -> Result<String, EnrolError> {
    let file = path.to_owned();
    let text = tokio::task::spawn_blocking(move || std::fs::read_to_string(file)).await;
    let text = text.map_err(std::io::Error::other).and_then(|text| text);
    text.map_err(|source| EnrolError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sleep_goes_over_the_time_to_renew_or_the_end_of_a_certificate() {
        let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
        let second = Duration::from_secs(1);
        assert_eq!(pause(now, now + day / 2, Some(now + day)), Some(LOOK));
        assert_eq!(pause(now, now + second, Some(now + day)), Some(second));
        assert_eq!(pause(now, now + second * 2, Some(now + second)), Some(second));
        // The clock was set, or the machine slept.
        assert_eq!(pause(now + day, now + day / 2, Some(now + day)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_certificate_is_told_though_nothing_is_asked() {
        let day = Duration::from_secs(86_400);
        // The clock of the wall does not stand still, unlike that of the test.
        let soon = SystemTime::now() + Duration::from_millis(50);
        assert!(!wait_for(day, Some(soon)).await);
        assert!(wait_for(day, Some(SystemTime::now() + day * 30)).await);
        assert!(wait_for(Duration::from_secs(1), None).await);
    }

    #[test]
    fn pods_that_began_together_do_not_ask_together() {
        let day = Duration::from_secs(86_400);
        let waits: std::collections::BTreeSet<_> = (0..100).map(|_| earlier(day, RENEWAL_SPREAD)).collect();
        assert!(waits.len() > 50, "{}", waits.len());
        assert!(waits.iter().all(|wait| *wait <= day && *wait >= day / 10 * 9));
    }
}
