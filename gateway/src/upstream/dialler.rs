//! How leaders and other gateways are reached: in plain text, or with certificates on both sides.

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

    /// Whether there is a certificate to show.
    #[must_use]
    pub fn is_enrolled(&self) -> bool {
        self.credentials.current().is_some()
    }
}
