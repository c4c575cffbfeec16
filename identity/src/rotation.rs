//! When an authority may take the place of another. Pods learn the roots to believe with each renewal of their certificates, so one
//! that is signed by a root that some have not heard of yet would cut them off, from their renewal too.
//!
//! ```text
//! ca.crt: old        ca.crt: old + new                    ca.crt: old + new                    ca.crt: new
//! tls.*:  old   ──►  tls.*:  old        ── one life ──►   tls.*:  new        ── one life ──►   tls.*:  new
//! ```
//!
//! What was signed with, what is believed, and how long certificates live is kept as a [`Record`], so that an operator which starts anew, or another
//! replica of it, goes on with the same authority.

use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};

use crate::authority::{self, Authority, AuthorityError, Pems};
use crate::certificate::unix_seconds;
use crate::credentials::Material;
use crate::{Identity, Role, certificate, verify};

/// Authorities from before that are remembered.
const MOST_FORMER: usize = 16;
/// The end of a PEM block.
const END: &str = "-----END CERTIFICATE-----";

/// Why an authority may not take its place yet; the one from before goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotYet {
    /// Pods would be cut off.
    #[error(
        "pods that serve do not believe it, so the authority from before goes on: delete the Secret, and the operator writes the one from before there again; then put the \
         roots of both into ca.crt, and replace tls.crt and tls.key {} s later. To take it at once, which ends all links, follow docs/operations.md", .0.as_secs()
    )]
    NotBelieved(Duration),
    /// The root is told and not yet known everywhere.
    #[error("its root is known to all pods in {} s at the latest, and until then the authority from before goes on", .0.as_secs())]
    Spreading(Duration),
    /// It takes away the root that certificates in use lead to.
    #[error(
        "ca.crt lacks the root that certificates in use lead to, so the authority from before goes on: put that root back, and take it out {} s after tls.crt \
         and tls.key were replaced", .0.as_secs()
    )]
    TakenAway(Duration),
    /// Nobody replaces authorities that often on purpose.
    #[error("{MOST_FORMER} authorities from before are still in use, so the one in use goes on: wait {} s", .0.as_secs())]
    TooOften(Duration),
}

/// Which authority signs, what pods believe, and whose certificates they have. It holds private keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    trust_domain: String,
    /// The authority that signs.
    current: Pems,
    /// Those from before whose certificates are in use.
    former: Vec<Former>,
    /// Roots that every pod knows, in PEM.
    everywhere: String,
    /// Roots that every pod knows from then on.
    spreading: Option<Spreading>,
    /// Life of new certificates, in seconds.
    life: u64,
    /// Certificates from before it was shortened.
    longer: Option<Longer>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Former {
    authority: Pems,
    /// Unix seconds.
    until: u64,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Spreading {
    roots: String,
    /// Unix seconds.
    until: u64,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Longer {
    /// In seconds.
    life: u64,
    /// Unix seconds.
    until: u64,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Record(..)")
    }
}

/// How often replicas look at the record at least: what one has written the others know after that.
#[must_use]
pub fn look_period(life: Duration) -> Duration {
    (life / 4).clamp(Duration::from_secs(1), Duration::from_secs(60))
}

impl Record {
    /// Of an installation that has none: this authority is taken for what was there before.
    #[must_use]
    pub fn new(authority: Pems, trust_domain: String, life: Duration) -> Self {
        Self {
            trust_domain,
            everywhere: authority.roots.clone(),
            current: authority,
            former: Vec::new(),
            spreading: None,
            life: life.as_secs(),
            longer: None,
        }
    }

    /// Of all identities.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The authority that signs.
    #[must_use]
    pub const fn current(&self) -> &Pems {
        &self.current
    }

    /// No certificate in use lives longer than that.
    #[must_use]
    pub fn longest_life(&self) -> Duration {
        let longer = self.longer.as_ref().map_or(0, |longer| longer.life);
        Duration::from_secs(self.life.max(longer))
    }

    /// New certificates live for `life`; those from before may live longer. Whether that is another life than before.
    pub fn set_life(&mut self, life: Duration, now: SystemTime) -> bool {
        self.settle(now);
        let (before, life) = (self.longest_life(), life.as_secs());
        if life == self.life {
            return false;
        }
        // Twice: another replica may go on with the longer life for a while.
        self.longer = (before.as_secs() > life).then(|| Longer {
            life: before.as_secs(),
            until: unix_seconds(now + before * 2),
        });
        self.life = life;
        true
    }

    /// Lets `next`, which was opened from `pems`, sign from `now` on. Where what signed before has ended nobody can be cut off, and it always may.
    ///
    /// # Errors
    /// [`NotYet`].
    pub fn admit(&mut self, pems: &Pems, next: &Authority, now: SystemTime) -> Result<(), NotYet> {
        self.settle(now);
        let life = Duration::from_secs(self.life);
        if self.former.is_empty() && has_ended(&self.current, now) {
            *self = Self::new(pems.clone(), self.trust_domain.clone(), life);
            return Ok(());
        }
        // A certificate may have been asked for of a replica that has not looked since.
        let wait = self.longest_life() + look_period(life) * 2;
        if !leads(&self.everywhere, next, now) {
            return Err(match &self.spreading {
                Some(Spreading { roots, until }) if leads(roots, next, now) => {
                    NotYet::Spreading(Duration::from_secs(until.saturating_sub(unix_seconds(now))))
                }
                _ => NotYet::NotBelieved(wait),
            });
        }
        let former = self.former.iter().map(|former| &former.authority);
        let believes = |signer: &Pems| match Authority::open(signer, life, now) {
            Ok(signer) => leads(&pems.roots, &signer, now),
            Err(_) => has_ended(signer, now),
        };
        if !former.chain([&self.current]).all(believes) {
            return Err(NotYet::TakenAway(wait));
        }
        if self.former.len() >= MOST_FORMER {
            return Err(NotYet::TooOften(wait));
        }
        let until = unix_seconds(now + wait);
        let before = std::mem::replace(&mut self.current, pems.clone());
        if (&before.certificate, &before.key) != (&pems.certificate, &pems.key) {
            let authority = before;
            self.former.push(Former { authority, until });
        }
        // A root that is gone is told to nobody who renews.
        self.everywhere = kept(&self.everywhere, next.roots());
        let roots = pems.roots.clone();
        self.spreading = Some(Spreading { roots, until });
        Ok(())
    }

    fn settle(&mut self, now: SystemTime) {
        let at = unix_seconds(now);
        if let Some(spread) = self.spreading.take_if(|spreading| spreading.until <= at) {
            self.everywhere = spread.roots;
        }
        self.longer.take_if(|longer| longer.until <= at);
        self.former
            .retain(|former| at < former.until && !has_ended(&former.authority, now));
    }
}

/// Whether nothing that it signed counts any more. One that cannot be read has signed nothing that does.
fn has_ended(pems: &Pems, now: SystemTime) -> bool {
    let own = authority::certificates(&pems.certificate, "tls.crt");
    let own = own
        .ok()
        .and_then(|chain| certificate::not_after(chain.first()?).ok());
    own.is_none_or(|end| end <= now)
}

/// Those certificates of a PEM that are among `roots`.
fn kept(pem: &str, roots: &[CertificateDer<'static>]) -> String {
    let is_kept = |block: &&str| {
        let read = authority::certificates(block, "ca.crt");
        read.is_ok_and(|read| read.iter().all(|one| roots.contains(one)))
    };
    let blocks = pem.split_inclusive(END).filter(is_kept);
    blocks.map(|block| format!("{}\n", block.trim())).collect()
}

/// Whether certificates that the authority makes lead to one of the roots.
fn leads(roots: &str, authority: &Authority, now: SystemTime) -> bool {
    let roots = authority::certificates(roots, "ca.crt");
    roots.is_ok_and(|roots| is_led_to(&roots, authority, now))
}

/// The same, for roots in DER.
pub(crate) fn is_led_to(roots: &[CertificateDer<'static>], authority: &Authority, now: SystemTime) -> bool {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let made = example(authority, now).ok().zip(authority::store(roots).ok());
    made.is_some_and(|(chain, roots)| {
        verify::believed(&roots, &chain, UnixTime::since_unix_epoch(since)).is_ok()
    })
}

/// A certificate of the authority, for nobody.
fn example(authority: &Authority, now: SystemTime) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let nobody = Identity {
        trust_domain: "invalid".to_owned(),
        namespace: "invalid".to_owned(),
        role: Role::Operator,
        pod: "invalid".to_owned(),
    };
    let material = Material::signed(authority, &nobody, "invalid", now)?;
    Ok(material
        .certificates
        .into_iter()
        .map(CertificateDer::from)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(86_400);
    /// What one writes the other replicas know after that.
    const MARGIN: Duration = Duration::from_secs(120);
    const WAIT: Duration = Duration::from_secs(86_400 + 120);

    /// Whole seconds, as records hold them.
    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(unix_seconds(SystemTime::now()))
    }

    fn two(at: SystemTime) -> [Pems; 2] {
        [(); 2].map(|()| authority::generate(at).unwrap())
    }

    fn record(pems: &Pems) -> Record {
        Record::new(pems.clone(), "cluster.local".to_owned(), LIFE)
    }

    /// What an operator that has just started reads.
    fn again(record: &Record) -> Record {
        serde_json::from_str(&serde_json::to_string(record).unwrap()).unwrap()
    }

    fn admit(record: &mut Record, pems: &Pems, now: SystemTime) -> Result<(), NotYet> {
        let next = Authority::open(pems, LIFE, now).unwrap();
        record.admit(pems, &next, now)
    }

    fn with_roots(pems: &Pems, roots: &[&Pems]) -> Pems {
        Pems {
            roots: roots.iter().map(|one| one.roots.as_str()).collect(),
            ..pems.clone()
        }
    }

    #[test]
    fn an_authority_is_replaced_in_stages_and_not_at_once_whatever_is_restarted_between() {
        let start = start();
        let [old, new] = two(start);
        let both = [&old, &new];
        let mut record = record(&old);
        let mut admit = |pems: &Pems, after: Duration| {
            record = again(&record);
            admit(&mut record, pems, start + after)
        };

        assert_eq!(admit(&new, Duration::ZERO), Err(NotYet::NotBelieved(WAIT)));
        // With the old root beside it, but nobody knows the new one.
        assert_eq!(
            admit(&with_roots(&new, &both), Duration::ZERO),
            Err(NotYet::NotBelieved(WAIT))
        );
        assert_eq!(admit(&with_roots(&old, &both), Duration::ZERO), Ok(()));
        assert_eq!(
            admit(&with_roots(&new, &both), LIFE / 4),
            Err(NotYet::Spreading(LIFE / 4 * 3 + MARGIN))
        );
        assert_eq!(admit(&with_roots(&new, &both), WAIT), Ok(()));
        assert_eq!(admit(&new, WAIT + LIFE / 2), Err(NotYet::TakenAway(WAIT)));
        assert_eq!(admit(&new, WAIT * 2), Ok(()));
        assert_eq!(record.current().certificate, new.certificate);
    }

    #[test]
    fn one_that_has_ended_makes_way_at_once() {
        let start = start();
        let [old, new] = two(start);
        let mut record = record(&old);
        let after = start + 11 * 365 * LIFE;
        let new_then = authority::generate(after).unwrap();
        assert_eq!(admit(&mut record, &new, start), Err(NotYet::NotBelieved(WAIT)));
        assert_eq!(admit(&mut record, &new_then, after), Ok(()));
        assert_eq!(record.trust_domain(), "cluster.local");
    }

    #[test]
    fn certificates_from_before_their_life_was_shortened_are_waited_for() {
        let start = start();
        let [old, new] = two(start);
        let mut record = record(&old);
        assert!(record.set_life(LIFE / 24, start) && !record.set_life(LIFE / 24, start));
        assert_eq!(record.longest_life(), LIFE);
        let both = with_roots(&old, &[&old, &new]);
        assert_eq!(admit(&mut record, &both, start), Ok(()));
        let next = with_roots(&new, &[&old, &new]);
        let early = admit(&mut record, &next, start + LIFE / 2);
        assert!(matches!(early, Err(NotYet::Spreading(_))), "{early:?}");
        assert_eq!(admit(&mut record, &next, start + WAIT), Ok(()));
        // They are over.
        assert!(!record.set_life(LIFE / 24, start + LIFE * 2));
        assert_eq!(record.longest_life(), LIFE / 24);
    }

    #[test]
    fn a_root_that_is_gone_is_not_known_everywhere() {
        let start = start();
        let [one, other] = two(start);
        let both = format!("{}{}", one.roots, other.roots);
        let roots = authority::certificates(&other.roots, "ca.crt").unwrap();
        let left = kept(&both, &roots);
        assert_eq!(authority::certificates(&left, "ca.crt").unwrap(), roots);
    }
}
