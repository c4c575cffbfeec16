//! Who somebody is, as a SPIFFE ID: <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>.
//!
//! | part | ID |
//! |---|---|
//! | operator | `spiffe://<trust domain>/ns/<namespace>/operator/pod/<pod>` |
//! | gateway | `spiffe://<trust domain>/ns/<namespace>/gateway/pod/<pod>` |
//! | worker | `spiffe://<trust domain>/ns/<namespace>/group/<group>/pod/<pod>` |

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest SPIFFE ID, from the standard.
const MAX_LENGTH: usize = 2048;
/// Longest name of an object of Kubernetes.
const MAX_NAME: usize = 253;

/// Which part of Llamero.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// An operator pod.
    Operator,
    /// A gateway pod.
    Gateway,
    /// A worker pod of this `LlamaGroup`.
    Worker {
        /// Name of the group.
        group: String,
    },
}

/// A pod of Llamero.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    /// Whose names these are; one for everything that trusts each other.
    pub trust_domain: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Which part of Llamero.
    pub role: Role,
    /// Name of the pod.
    pub pod: String,
}

/// A text that names no part of Llamero.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no part of Llamero")]
pub struct BadIdentity(String);

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/", self.trust_domain, self.namespace)?;
        match &self.role {
            Role::Operator => write!(f, "operator")?,
            Role::Gateway => write!(f, "gateway")?,
            Role::Worker { group } => write!(f, "group/{group}")?,
        }
        write!(f, "/pod/{}", self.pod)
    }
}

impl FromStr for Identity {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        parse(text).ok_or_else(|| BadIdentity(text.chars().take(200).collect()))
    }
}

fn parse(text: &str) -> Option<Identity> {
    let path = text
        .strip_prefix("spiffe://")
        .filter(|_| text.len() <= MAX_LENGTH)?;
    let segments: Vec<&str> = path.split('/').collect();
    let (trust_domain, namespace, role, pod) = match segments.as_slice() {
        [domain, "ns", namespace, "operator", "pod", pod] => (domain, namespace, Role::Operator, pod),
        [domain, "ns", namespace, "gateway", "pod", pod] => (domain, namespace, Role::Gateway, pod),
        [domain, "ns", namespace, "group", group, "pod", pod] if is_name(group) => {
            let group = (*group).to_owned();
            (domain, namespace, Role::Worker { group }, pod)
        }
        _ => return None,
    };
    let all_names = [trust_domain, namespace, pod]
        .into_iter()
        .all(|name| is_name(name));
    all_names.then(|| Identity {
        trust_domain: (*trust_domain).to_owned(),
        namespace: (*namespace).to_owned(),
        role,
        pod: (*pod).to_owned(),
    })
}

/// Whether it may name an object of Kubernetes (RFC 1123 subdomain) or a trust domain.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= MAX_NAME && ends(bytes.first()) && ends(bytes.last()) && bytes.iter().copied().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_written_and_read() {
        for text in [
            "spiffe://cluster.local/ns/llamero-system/operator/pod/llamero-operator-5c-x",
            "spiffe://cluster.local/ns/llamero-system/gateway/pod/llamero-gateway-5c-x",
            "spiffe://cluster.local/ns/team/group/llama-0/pod/llama-0-1-2",
        ] {
            assert_eq!(text.parse::<Identity>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn nothing_else_is_read() {
        let long = format!("spiffe://d/ns/n/operator/pod/{}", "a".repeat(300));
        for text in [
            "",
            "spiffe://d/ns/n/operator/pod/",
            "spiffe://d/ns/n/operator/pod/p/",
            "spiffe://d/ns/n/group/g/pod/p?x",
            "spiffe://d/ns/n/group/../pod/p",
            "spiffe://d/ns/n/group/g/pod/p/pod/q",
            "spiffe://d/ns/N/group/g/pod/p",
            "spiffe:///ns/n/group/g/pod/p",
            "https://d/ns/n/operator/pod/p",
            "spiffe://d/ns/n/worker/pod/p",
            long.as_str(),
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }
}
