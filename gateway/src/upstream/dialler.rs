//! How leaders and other gateways are reached: in plain text, or with certificates on both sides.

use std::time::SystemTime;

use llamero_identity::connect::Link;
use llamero_identity::credentials::Credentials;
use llamero_identity::verify::Expected;
use llamero_identity::{Identity, Role, Serving};

/// Whose certificate a leader must show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderPod {
    /// Name of its `LlamaGroup`.
    pub group: String,
    /// Name of the pod.
    pub pod: String,
}

/// How links are authenticated.
#[derive(Debug, Clone)]
pub struct Dialler {
    /// This gateway's certificate.
    pub credentials: Credentials,
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// Namespace of the operator and the gateways.
    pub installation: String,
}

impl Dialler {
    /// To the leader of a group in `namespace`.
    #[must_use]
    pub fn leader(&self, namespace: &str, leader: &LeaderPod) -> Link {
        let expected = Expected::Pod(Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: namespace.to_owned(),
            role: Role::Worker {
                group: leader.group.clone(),
            },
            pod: leader.pod.clone(),
        });
        Link::Mutual(self.credentials.clone(), expected)
    }

    /// To another gateway.
    #[must_use]
    pub fn gateway(&self) -> Link {
        let expected = Expected::Gateway {
            trust_domain: self.trust_domain.clone(),
            namespace: self.installation.clone(),
        };
        Link::Mutual(self.credentials.clone(), expected)
    }

    /// How operator and other gateways reach this one.
    #[must_use]
    pub fn serving(&self) -> Serving {
        Serving::mutual(self.credentials.clone(), self.installation.clone())
    }

    /// Why nobody can be reached yet.
    #[must_use]
    pub fn not_ready(&self) -> Option<&'static str> {
        let has = self.credentials.current().is_some();
        (!has).then_some("has no certificate yet from the operator, with which it reaches leaders")
    }

    /// Whether leaders let this gateway in. Those that do not may close the connection before they tell why.
    #[must_use]
    pub fn counts(&self, now: SystemTime) -> bool {
        self.credentials
            .current()
            .is_some_and(|current| current.counts(now))
    }

    /// What is said to whoever asks how it is. A gateway whose certificate has ended stays ready: the connections that it has go on, groups with plain
    /// text are reached, and an operator that is away would otherwise take every gateway out of its Service.
    #[must_use]
    pub fn warning(&self, now: SystemTime) -> Option<&'static str> {
        let ended = self.ends().is_some_and(|end| end <= now);
        ended.then_some(
            "its certificate has ended, so that only connections from before reach leaders with authenticated links: look for `cannot enrol` in its log",
        )
    }

    /// When its certificate ends.
    #[must_use]
    pub fn ends(&self) -> Option<SystemTime> {
        self.credentials.current().map(|current| current.not_after)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use llamero_identity::authority::{self, Authority};
    use llamero_identity::credentials::{Current, Material, pair};

    use super::*;

    #[test]
    fn a_certificate_that_has_ended_is_told_and_is_no_reason_to_be_unready() {
        let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
        let (publisher, credentials) = pair();
        let dialler = Dialler {
            credentials,
            trust_domain: "d".to_owned(),
            installation: "system".to_owned(),
        };
        assert!(dialler.not_ready().unwrap().contains("no certificate yet"));
        let identity = Identity {
            trust_domain: "d".to_owned(),
            namespace: "system".to_owned(),
            role: Role::Gateway,
            pod: "gateway-0".to_owned(),
        };
        let pems = authority::generate(now).unwrap();
        let authority = Authority::open(&pems, day, now).unwrap();
        let material = Material::signed(&authority, &identity, "system", now).unwrap();
        publisher.put(Current::new(&material).unwrap());
        assert_eq!((dialler.not_ready(), dialler.warning(now)), (None, None));
        assert!(dialler.counts(now) && !dialler.counts(now + day * 2));
        assert!(dialler.warning(now + day * 2).unwrap().contains("has ended"));
        assert!(dialler.ends().is_some_and(|end| end > now));
    }
}
