//! Keeps the authority that signs, and this operator's own certificate. What signs is always what the record says: every replica reads it, also when
//! it starts, and the lease holder writes it. What lies in the authority's Secret is a proposal, which is taken up once it cuts nobody off.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use llamero_identity::{
    Identity,
    authority::{self, Authority},
    certificate::unix_seconds,
    credentials::{Current, Material, Publisher},
    rotation::{self, Record},
};
use tokio::sync::watch;
use tracing::{info, warn};

use super::secret::{KeepError, Kept, Secrets};
use crate::{events::Events, health::Health, lease::Leadership, metrics::Metrics};

/// Pause before it is looked for again; doubles up to the last.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// An authority that ends sooner is warned of.
const ENDS_SOON: Duration = Duration::from_secs(30 * 86_400);

/// Keeps authority and own certificate.
pub struct Keeper {
    /// What they are kept in.
    pub secrets: Secrets,
    /// Of certificates.
    pub life: Duration,
    /// Whether this process may write.
    pub leadership: Leadership,
    /// This operator.
    pub identity: Identity,
    /// Whoever signs.
    pub authorities: watch::Sender<Option<Arc<Authority>>>,
    /// Whoever dials and serves.
    pub publisher: Publisher,
    /// Whoever wants to know how it stands.
    pub watched: Watched,
}

/// Where it is told how the authority stands.
pub struct Watched {
    /// Why no certificates can be given out, where somebody must do something about it.
    pub unenrollable: watch::Sender<Option<String>>,
    /// Probes.
    pub health: Health,
    /// Metrics.
    pub metrics: Metrics,
    /// Events about the Secret.
    pub events: Events,
}

/// What is in use.
pub(super) struct Held {
    record: Record,
    life: Duration,
    renew_at: SystemTime,
}

impl Keeper {
    /// Keeps them for ever; what is in use stays while the API server is away.
    pub async fn keep(self) {
        let (mut held, mut retry) = (None, FIRST_RETRY);
        loop {
            let looked = self.look(&mut held).await;
            self.tell(looked.as_ref().err());
            let wait = match looked {
                Ok(()) => {
                    retry = FIRST_RETRY;
                    let left = held
                        .as_ref()
                        .and_then(|held: &Held| held.renew_at.duration_since(SystemTime::now()).ok());
                    let period = rotation::look_period(self.life).max(FIRST_RETRY);
                    left.map_or(FIRST_RETRY, |left| left.clamp(FIRST_RETRY, period))
                }
                Err(error) => {
                    // Its own certificate does not need the API server.
                    if let Err(error) = self.renew(&mut held, SystemTime::now()) {
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

    /// Tells how it stands after a look.
    pub(super) fn tell(&self, error: Option<&KeepError>) {
        let now = SystemTime::now();
        let authority = self.authorities.borrow().clone();
        let own = self.publisher.credentials().current();
        let ends = authority.as_ref().map(|authority| authority.not_after());
        let is_usable = ends.is_some_and(|end| end > now) && own.as_ref().is_some_and(|own| own.counts(now));
        let for_the_user = error.filter(|error| error.is_for_the_user());

        let why = for_the_user.filter(|_| !is_usable).map(ToString::to_string);
        let Watched {
            unenrollable,
            health,
            metrics,
            events,
        } = &self.watched;
        health.set_unenrollable(why.clone());
        unenrollable.send_replace(why);
        metrics.enrollable.set(i64::from(is_usable));
        metrics.authority_end.set(seconds(ends));
        metrics.certificate_end.set(seconds(own.map(|own| own.not_after)));
        let is_told = |error: &&KeepError| self.leadership.is_held() && !error.is_a_stage();
        if let Some(error) = for_the_user.filter(is_told) {
            let about = self.secrets.reference();
            events.warn_about(about, "AuthorityNotUsed", "Enrol", &error.to_string());
        }
    }

    /// Reads the record and uses it; the lease holder then takes up what was put into the authority's Secret.
    pub(super) async fn look(&self, held: &mut Option<Held>) -> Result<(), KeepError> {
        let kept = match self.secrets.record().await? {
            Some(kept) => kept,
            None => self.begin(held.as_ref()).await?,
        };
        let (found, own) = (kept.record.trust_domain(), &self.identity.trust_domain);
        if found != own {
            let shown = self.secrets.shown_record();
            return Err(KeepError::TrustDomain(shown, found.to_owned(), own.clone()));
        }
        let used = self.apply(&kept.record, held);
        let taken_up = match self.leadership.is_held() {
            true => self.take_up(kept, held).await?,
            false => false,
        };
        // One that has ended may just have been replaced.
        if taken_up { Ok(()) } else { used }
    }

    /// Of an installation that has no record.
    async fn begin(&self, held: Option<&Held>) -> Result<Kept, KeepError> {
        let may_write = self.leadership.is_held();
        let found = match held {
            // Somebody deleted it.
            Some(held) => Some(held.record.clone()),
            None => self.secrets.pems().await?.map(|pems| self.record_of(pems)),
        };
        let record = match found {
            Some(record) => record,
            None if may_write => self.record_of(self.generate().await?),
            None => return Err(KeepError::NotMade(self.secrets.shown_authority())),
        };
        let version = None;
        let kept = Kept { record, version };
        // Nothing is signed by an authority that is not recorded; other replicas go by what was there before there were records.
        if may_write {
            self.open(&kept.record)?;
            return self.secrets.write(kept).await;
        }
        Ok(kept)
    }

    fn record_of(&self, pems: authority::Pems) -> Record {
        Record::new(pems, self.identity.trust_domain.clone(), self.life)
    }

    async fn generate(&self) -> Result<authority::Pems, KeepError> {
        let shown = self.secrets.shown_authority();
        if let Some(group) = self.secrets.authenticated_group().await? {
            return Err(KeepError::Lost(shown, group));
        }
        let pems = authority::generate(SystemTime::now())
            .map_err(|error| KeepError::Unusable(shown.clone(), error))?;
        let made = self.secrets.make(pems).await?;
        info!(secret = shown, "made a certificate authority");
        Ok(made)
    }

    fn open(&self, record: &Record) -> Result<Authority, KeepError> {
        // A longer life is recorded before certificates have it.
        let life = self.life.min(record.longest_life());
        Authority::open(record.current(), life, SystemTime::now())
            .map_err(|error| KeepError::Unusable(self.secrets.shown_authority(), error))
    }

    /// Signs from now on as the record says.
    fn apply(&self, record: &Record, held: &mut Option<Held>) -> Result<(), KeepError> {
        let life = self.life.min(record.longest_life());
        match held {
            Some(held) if held.life == life && held.record.current() == record.current() => {
                held.record = record.clone();
            }
            _ => {
                let authority = self.open(record)?;
                self.authorities.send_replace(Some(Arc::new(authority)));
                info!(
                    secret = self.secrets.shown_authority(),
                    "certificates are signed by the authority of this Secret"
                );
                *held = Some(Held {
                    record: record.clone(),
                    life,
                    renew_at: SystemTime::now(),
                });
            }
        }
        self.renew(held, SystemTime::now())
    }

    /// Takes up what was put into the authority's Secret and writes that down; whether there was anything.
    async fn take_up(&self, mut kept: Kept, held: &mut Option<Held>) -> Result<bool, KeepError> {
        let now = SystemTime::now();
        let mut is_changed = kept.record.set_life(self.life, now);
        let refused = match self.proposal(&kept.record).await {
            Ok(None) => Ok(()),
            Ok(Some(pems)) => self
                .admit(&mut kept.record, &pems, now)
                .map(|()| is_changed = true),
            Err(error) => Err(error),
        };
        if is_changed {
            let kept = self.secrets.write(kept).await?;
            self.apply(&kept.record, held)?;
        }
        refused.map(|()| is_changed)
    }

    fn admit(&self, record: &mut Record, pems: &authority::Pems, now: SystemTime) -> Result<(), KeepError> {
        let shown = || self.secrets.shown_authority();
        let next =
            Authority::open(pems, self.life, now).map_err(|error| KeepError::Unusable(shown(), error))?;
        record
            .admit(pems, &next, now)
            .map_err(|error| KeepError::NotYet(shown(), error))
    }

    /// What the Secret holds, where that is another authority than the one in use. It is written again where it is gone.
    async fn proposal(&self, record: &Record) -> Result<Option<authority::Pems>, KeepError> {
        let found = match self.secrets.pems().await? {
            Some(found) => found,
            None => {
                let shown = self.secrets.shown_authority();
                info!(
                    secret = shown,
                    "the Secret is gone: writing the authority in use there again"
                );
                self.secrets.make(record.current().clone()).await?
            }
        };
        Ok((found != *record.current()).then_some(found))
    }

    /// A new certificate of this operator after half of the last one's life.
    pub(super) fn renew(&self, held: &mut Option<Held>, now: SystemTime) -> Result<(), KeepError> {
        let authority = self.authorities.borrow().clone();
        let Some((held, authority)) = held.as_mut().zip(authority) else {
            return Ok(());
        };
        let own = self.publisher.credentials().current();
        if now < held.renew_at && own.is_some_and(|own| is_of_this_time(&own, held, now)) {
            return Ok(());
        }
        let material = Material::signed(&authority, &self.identity, &self.secrets.namespace, now)
            .map_err(|error| KeepError::Unusable(self.secrets.shown_authority(), error))?;
        let current = Current::new(&material)?;
        held.renew_at = now + current.renew_in(now);
        self.publisher.put(current);
        let left = authority.not_after().duration_since(now).unwrap_or_default();
        if left < ENDS_SOON.max(2 * self.life) {
            warn!(
                secret = self.secrets.shown_authority(),
                "the certificate authority ends in {} s: put another one in its place by the steps of docs/operations.md",
                left.as_secs()
            );
        }
        Ok(())
    }
}

/// Whether a certificate was made by a clock that is still believed: one that was far ahead left a certificate that does not count yet, to be
/// renewed much later.
fn is_of_this_time(own: &Current, held: &Held, now: SystemTime) -> bool {
    own.counts(now) && held.renew_at <= now + held.life
}

/// As Unix seconds, 0 where there is none.
fn seconds(time: Option<SystemTime>) -> i64 {
    i64::try_from(time.map_or(0, unix_seconds)).unwrap_or(i64::MAX)
}
