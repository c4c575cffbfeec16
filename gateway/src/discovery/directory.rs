//! The present state of all deployments.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::watch;

use crate::upstream::Leader;

/// Namespace and name of a `LlamaDeployment`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeploymentKey {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl std::fmt::Display for DeploymentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A deployment as discovery found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which one.
    pub key: DeploymentKey,
    /// The name clients ask for.
    pub model: String,
    /// Names that groups of older revisions still serve under: the model was renamed, and clients have not all heard of it.
    pub former: BTreeSet<String>,
    /// Unix seconds.
    pub created: i64,
    /// Why no group will ever be ready unless somebody changes something; a request is then refused, not held.
    pub problem: Option<String>,
    /// `ip:port` of leaders that serve.
    pub leaders: BTreeSet<String>,
    /// Groups of a new revision that are to have a share of the requests of their own.
    pub canary: Option<Canary>,
}

/// Groups of a new revision beside those of older ones, and how much of the requests they get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// `ip:port` of their leaders.
    pub leaders: BTreeSet<String>,
    /// Share of the requests, in percent.
    pub percent: u32,
}

/// A deployment with its live leaders.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// Which one.
    pub key: DeploymentKey,
    /// The name clients ask for.
    pub model: String,
    /// Names that groups of older revisions still serve under: the model was renamed, and clients have not all heard of it.
    pub former: BTreeSet<String>,
    /// Unix seconds.
    pub created: i64,
    /// See [`Found::problem`].
    pub problem: Option<String>,
    /// Leaders that serve, by address.
    pub leaders: Vec<Arc<Leader>>,
    /// See [`Found::canary`].
    pub canary: Option<Canary>,
}

impl Deployment {
    /// How it comes to a name; the least has it. Its own name in its namespace is nobody else's; then whoever has the name now goes before
    /// who had it, and the older before the younger. Not whether it is ready: requests never cross to another deployment.
    fn claim(&self, model: &str) -> Option<Claim> {
        let qualified = model
            .strip_prefix(self.key.namespace.as_str())
            .and_then(|rest| rest.strip_prefix('/'));
        let how = if qualified == Some(self.model.as_str()) {
            Name::Qualified
        } else if self.model == model {
            Name::Present
        } else if self.former.contains(model) {
            Name::Former
        } else {
            return None;
        };
        Some((how, self.created))
    }
}

/// How a deployment comes to a name, and since when it is there.
type Claim = (Name, i64);

/// How a deployment comes to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    /// `namespace/model`.
    Qualified,
    /// It has it now.
    Present,
    /// Groups of older revisions still serve under it.
    Former,
}

/// All deployments at one time.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    deployments: BTreeMap<DeploymentKey, Deployment>,
    /// Whether discovery has seen everything once.
    pub complete: bool,
}

impl Snapshot {
    /// The deployment with this key.
    #[must_use]
    pub fn get(&self, key: &DeploymentKey) -> Option<&Deployment> {
        self.deployments.get(key)
    }

    /// The deployment that a model's name belongs to, by its name alone or as `namespace/model`. Of several the oldest; of those made in one
    /// second the first by namespace and name.
    #[must_use]
    pub fn by_model(&self, model: &str) -> Option<&Deployment> {
        let candidates = self
            .deployments
            .values()
            .filter_map(|deployment| Some((deployment.claim(model)?, deployment)));
        let first = candidates.min_by_key(|(claim, _)| *claim);
        first.map(|(_, deployment)| deployment)
    }

    /// All, by namespace and name.
    pub fn deployments(&self) -> impl Iterator<Item = &Deployment> {
        self.deployments.values()
    }
}

/// Publishes snapshots. Leaders live on from one to the next while their address stays.
#[derive(Debug)]
pub struct Directory {
    snapshot: watch::Sender<Arc<Snapshot>>,
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

impl Directory {
    /// An empty directory that is not complete.
    #[must_use]
    pub fn new() -> Self {
        Self {
            snapshot: watch::Sender::new(Arc::default()),
        }
    }

    /// The present state.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// Changes of the state.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }

    /// Replace the state. Addresses that cannot be dialled are left out with a warning.
    pub fn publish(&self, found: Vec<Found>) {
        let before = self.snapshot();
        let known: HashMap<&str, &Arc<Leader>> = before
            .deployments()
            .flat_map(|deployment| deployment.leaders.iter())
            .map(|leader| (leader.address(), leader))
            .collect();
        let live = |address: &String| match known.get(address.as_str()) {
            Some(leader) => Some(Arc::clone(leader)),
            None => match Leader::connect(address) {
                Ok(leader) => Some(leader),
                Err(error) => {
                    tracing::warn!(%address, %error, "a group has an address that cannot be dialled");
                    None
                }
            },
        };
        let deployments = found
            .into_iter()
            .map(|found| {
                let leaders = found.leaders.iter().filter_map(live).collect();
                let Found {
                    key,
                    model,
                    former,
                    created,
                    problem,
                    canary,
                    ..
                } = found;
                (
                    key.clone(),
                    Deployment {
                        key,
                        model,
                        former,
                        created,
                        problem,
                        leaders,
                        canary,
                    },
                )
            })
            .collect();
        self.snapshot.send_replace(Arc::new(Snapshot {
            deployments,
            complete: true,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, model: &str, created: i64, leaders: &[&str]) -> Found {
        Found {
            key: DeploymentKey {
                namespace: "ns".to_owned(),
                name: name.to_owned(),
            },
            model: model.to_owned(),
            former: BTreeSet::new(),
            created,
            problem: None,
            canary: None,
            leaders: leaders.iter().map(|&address| address.to_owned()).collect(),
        }
    }

    #[tokio::test]
    async fn leaders_outlive_snapshots_by_address() {
        let directory = Directory::new();
        directory.publish(vec![found("a", "m", 1, &["127.0.0.1:9", "127.0.0.1:10"])]);
        let first = directory.snapshot().by_model("m").unwrap().leaders.clone();
        directory.publish(vec![found("a", "m", 1, &["127.0.0.1:9", "not an address"])]);
        let second = directory.snapshot().by_model("m").unwrap().leaders.clone();
        assert_eq!(second.len(), 1);
        assert!(first.iter().any(|leader| Arc::ptr_eq(leader, &second[0])));
    }

    #[tokio::test]
    async fn a_name_belongs_to_the_older_deployment_whoever_is_ready() {
        let directory = Directory::new();
        directory.publish(vec![
            found("a", "m", 3, &["127.0.0.1:9"]),
            found("b", "m", 2, &[]),
            found("c", "m", 2, &[]),
        ]);
        assert_eq!(directory.snapshot().by_model("m").unwrap().key.name, "b");
        assert!(directory.snapshot().by_model("n").is_none());
    }

    #[tokio::test]
    async fn a_name_in_its_namespace_is_nobody_else_s() {
        let directory = Directory::new();
        let elsewhere = |name: &str, model: &str, created| {
            let mut found = found(name, model, created, &[]);
            found.key.namespace = "team".to_owned();
            found
        };
        directory.publish(vec![
            found("a", "m", 3, &[]),
            elsewhere("b", "m", 2),
            // It took a name that looks like another's.
            elsewhere("c", "ns/m", 1),
            found("d", "meta/m", 4, &[]),
        ]);
        let snapshot = directory.snapshot();
        for (asked, name) in [
            ("m", "b"),
            ("ns/m", "a"),
            ("team/m", "b"),
            ("meta/m", "d"),
            ("team/ns/m", "c"),
            ("ns/meta/m", "d"),
        ] {
            assert_eq!(snapshot.by_model(asked).unwrap().key.name, name, "{asked}");
        }
        assert!(snapshot.by_model("other/m").is_none());
    }

    #[tokio::test]
    async fn a_renamed_model_answers_to_both_names_while_groups_serve_under_the_former() {
        let directory = Directory::new();
        let renamed = Found {
            former: ["old".to_owned()].into(),
            ..found("a", "new", 1, &["127.0.0.1:9"])
        };
        directory.publish(vec![renamed.clone(), found("b", "other", 2, &["127.0.0.1:10"])]);
        for name in ["old", "new"] {
            assert_eq!(
                directory.snapshot().by_model(name).unwrap().key.name,
                "a",
                "{name}"
            );
        }
        // Whoever has the name now goes before who had it.
        directory.publish(vec![renamed, found("b", "old", 2, &["127.0.0.1:10"])]);
        assert_eq!(directory.snapshot().by_model("old").unwrap().key.name, "b");
    }
}
