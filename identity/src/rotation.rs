//! When an authority may take the place of another. Pods learn the roots to believe with each renewal of their certificates, so one
//! that is signed by a root that some have not heard of yet would cut them off, from their renewal too.
//!
//! ```text
//! ca.crt: old        ca.crt: old + new                    ca.crt: old + new                    ca.crt: new
//! tls.*:  old   ──►  tls.*:  old        ── one life ──►   tls.*:  new        ── one life ──►   tls.*:  new
//! ```

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, UnixTime};

use crate::authority::{self, Authority, AuthorityError};
use crate::credentials::Material;
use crate::verify;
use crate::{Identity, Role};

/// Why an authority may not take its place yet; the one from before goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotYet {
    /// Pods would be cut off.
    #[error(
        "pods that serve do not believe it, so the authority from before goes on: put tls.crt and tls.key from before back and the roots of both into ca.crt, \
         and replace the two {} s later. To take it at once, restart operator and gateway and set spec.rollout.restartedAt of every LlamaDeployment", .0.as_secs()
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
}

/// What pods believe, and whose certificates they have.
pub struct Believed {
    /// Roots that every pod knows.
    everywhere: Vec<CertificateDer<'static>>,
    /// Roots that every pod knows from then on.
    spreading: Option<(Vec<CertificateDer<'static>>, SystemTime)>,
    /// Whose certificates are in use, and until when.
    signers: Vec<(Arc<Authority>, Option<SystemTime>)>,
}

impl Believed {
    /// When the operator starts: what it finds is taken for what was there before.
    #[must_use]
    pub fn new(authority: &Arc<Authority>) -> Self {
        Self {
            everywhere: authority.roots().to_vec(),
            spreading: None,
            signers: vec![(Arc::clone(authority), None)],
        }
    }

    /// Lets `next` sign from `now` on. Where what signed before has ended nobody can be cut off, and it always may.
    ///
    /// # Errors
    /// [`NotYet`].
    pub fn admit(&mut self, next: &Arc<Authority>, now: SystemTime) -> Result<(), NotYet> {
        self.settle(now);
        if self.signers.is_empty() {
            *self = Self::new(next);
            return Ok(());
        }
        if !leads(&self.everywhere, next, now) {
            return Err(match &self.spreading {
                Some((roots, until)) if leads(roots, next, now) => {
                    NotYet::Spreading(until.duration_since(now).unwrap_or_default())
                }
                _ => NotYet::NotBelieved(next.life()),
            });
        }
        let mut signers = self.signers.iter().map(|(signer, _)| signer);
        if !signers.all(|signer| leads(next.roots(), signer, now)) {
            return Err(NotYet::TakenAway(next.life()));
        }
        let known_at = now + next.life();
        for (_, until) in &mut self.signers {
            until.get_or_insert(known_at);
        }
        self.signers.push((Arc::clone(next), None));
        // A root that is gone is told to nobody who renews.
        self.everywhere.retain(|root| next.roots().contains(root));
        self.spreading = Some((next.roots().to_vec(), known_at));
        Ok(())
    }

    fn settle(&mut self, now: SystemTime) {
        if let Some((roots, _)) = self.spreading.take_if(|(_, until)| *until <= now) {
            self.everywhere = roots;
        }
        self.signers
            .retain(|(signer, until)| now < signer.not_after() && until.is_none_or(|until| now < until));
    }
}

/// Whether certificates that the authority makes lead to one of the roots.
fn leads(roots: &[CertificateDer<'static>], authority: &Authority, now: SystemTime) -> bool {
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
    use crate::authority::Pems;

    use super::*;

    const LIFE: Duration = Duration::from_secs(86_400);

    fn open(pems: &Pems, now: SystemTime) -> Arc<Authority> {
        Arc::new(Authority::open(pems, LIFE, now).unwrap())
    }

    fn with_roots(pems: &Pems, roots: &[&Pems]) -> Pems {
        Pems {
            roots: roots.iter().map(|one| one.roots.as_str()).collect(),
            ..pems.clone()
        }
    }

    #[test]
    fn an_authority_is_replaced_in_stages_and_not_at_once() {
        let start = SystemTime::now();
        let [old, new] = [(); 2].map(|()| authority::generate(start).unwrap());
        let both = [&old, &new];
        let mut believed = Believed::new(&open(&old, start));
        let mut admit = |pems: &Pems, after: Duration| believed.admit(&open(pems, start), start + after);

        assert_eq!(admit(&new, Duration::ZERO), Err(NotYet::NotBelieved(LIFE)));
        // With the old root beside it, but nobody knows the new one.
        assert_eq!(
            admit(&with_roots(&new, &both), Duration::ZERO),
            Err(NotYet::NotBelieved(LIFE))
        );
        assert_eq!(admit(&with_roots(&old, &both), Duration::ZERO), Ok(()));
        assert_eq!(
            admit(&with_roots(&new, &both), LIFE / 4),
            Err(NotYet::Spreading(LIFE / 4 * 3))
        );
        assert_eq!(admit(&with_roots(&new, &both), LIFE), Ok(()));
        assert_eq!(admit(&new, LIFE + LIFE / 2), Err(NotYet::TakenAway(LIFE)));
        assert_eq!(admit(&new, LIFE * 2), Ok(()));
    }

    #[test]
    fn one_that_has_ended_makes_way_at_once() {
        let start = SystemTime::now();
        let [old, new] = [(); 2].map(|()| authority::generate(start).unwrap());
        let mut believed = Believed::new(&open(&old, start));
        let after = start + 11 * 365 * LIFE;
        let new_then = authority::generate(after).unwrap();
        assert_eq!(
            believed.admit(&open(&new, start), start),
            Err(NotYet::NotBelieved(LIFE))
        );
        assert_eq!(believed.admit(&open(&new_then, after), after), Ok(()));
    }
}
