//! Whether an operator is there at all: its lease tells.

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use llamero_core::time::Millis;

use crate::cluster::Cluster;

/// Name of the lease, as the chart installs the operator.
const LEASE: &str = "llamero-operator";

/// What is known of the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The lease cannot be read, and why.
    Unknown(String),
    /// There is no lease in this namespace.
    Absent(String),
    /// It has a holder.
    Held {
        /// Who.
        by: String,
        /// When it was renewed last.
        renewed: Option<Millis>,
        /// How long it lasts without.
        seconds: i32,
    },
}

/// Looks for the lease.
pub async fn find(cluster: &Cluster, namespace: &str) -> Operator {
    let api: Api<Lease> = Api::namespaced(cluster.client.clone(), namespace);
    match api.get_opt(LEASE).await {
        Ok(Some(lease)) => held(lease),
        Ok(None) => Operator::Absent(format!("{namespace}/{LEASE}")),
        Err(error) => Operator::Unknown(error.to_string()),
    }
}

fn held(lease: Lease) -> Operator {
    let spec = lease.spec.unwrap_or_default();
    Operator::Held {
        by: spec.holder_identity.unwrap_or_default(),
        renewed: spec.renew_time.map(|time| time.0.as_millisecond()),
        seconds: spec.lease_duration_seconds.unwrap_or(15),
    }
}

impl Operator {
    /// What is wrong with it, if anything is: in a sentence, with the way out.
    #[must_use]
    pub fn trouble(&self, now: Millis) -> Option<(String, String)> {
        match self {
            Self::Unknown(_) => None,
            Self::Absent(lease) => Some((
                format!("no operator has ever held the lease {lease}"),
                "install the chart, or name the operator's namespace with --operator-namespace".to_owned(),
            )),
            Self::Held { by, renewed, seconds } => {
                let since = renewed.map_or(i64::MAX, |at| (now - at) / 1000);
                let late = by.is_empty() || since > i64::from(*seconds).saturating_mul(2);
                late.then(|| {
                    let words = match renewed {
                        Some(_) => format!("its operator {by} last renewed its lease {since} s ago"),
                        None => "nobody holds the operator's lease".to_owned(),
                    };
                    let way =
                        "see kubectl get pods -A -l app.kubernetes.io/name=llamero-operator, and their logs";
                    (words, way.to_owned())
                })
            }
        }
    }
}
