//! The present state of all deployments.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use llamero_identity::connect::Link;
use tokio::sync::watch;

use crate::keys::Scope;
use crate::upstream::Leader;
use crate::upstream::dialler::{Dialler, LeaderPod};

/// Namespace and name of a `LlamaDeployment`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeploymentKey {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl DeploymentKey {
    /// The name in `namespace/name`, if that is the namespace of this one.
    fn own<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(self.namespace.as_str())?.strip_prefix('/')
    }
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
    /// Longest context in tokens, if it is known.
    pub max_context: Option<u32>,
    /// Why no group will ever be ready unless somebody changes something; a request is then refused, not held.
    pub problem: Option<String>,
    /// `ip:port` of leaders that serve, and the name that each has of its model: groups of an older revision keep theirs.
    pub leaders: BTreeMap<String, String>,
    /// Of those, by address, the ones that must show who they are; the others are reached in plain text.
    pub authenticated: BTreeMap<String, LeaderPod>,
    /// Groups of a new revision that are to have a share of the requests of their own.
    pub canary: Option<Canary>,
    /// Names of the adapters that its groups have from their start.
    pub adapters: Vec<String>,
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
    /// Longest context in tokens, if it is known.
    pub max_context: Option<u32>,
    /// See [`Found::problem`].
    pub problem: Option<String>,
    /// Leaders that serve, by address.
    pub leaders: Vec<Arc<Leader>>,
    /// See [`Found::canary`].
    pub canary: Option<Canary>,
    /// See [`Found::adapters`].
    pub first_adapters: Vec<String>,
}

impl Deployment {
    /// The adapters that it is to have, and those that a group was given while it ran. A leader that lacks one says so, and another is asked.
    #[must_use]
    pub fn adapters(&self) -> BTreeSet<String> {
        let told = self
            .leaders
            .iter()
            .filter_map(|leader| leader.adapters())
            .flatten();
        self.first_adapters.iter().cloned().chain(told).collect()
    }

    /// How it comes to a name; the least has it. Its own name in its namespace is nobody else's; then whoever has the name now goes before
    /// who had it, and the older before the younger. Not whether it is ready: requests never cross to another deployment.
    fn claim(&self, model: &str) -> Option<Claim> {
        let how = if self.key.own(model) == Some(self.model.as_str()) {
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

    /// The same of an adapter's name.
    fn claim_of_adapter(&self, adapter: &String) -> (bool, i64) {
        (!self.first_adapters.contains(adapter), self.created)
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
        self.by_model_in(model, &Scope::default())
    }

    /// The same among those that are in a scope, whose namespaces have an order of their own.
    #[must_use]
    pub fn by_model_in(&self, model: &str, scope: &Scope) -> Option<&Deployment> {
        let candidates = self
            .deployments
            .values()
            .filter(|deployment| scope.has_model(model) || scope.has_model(&deployment.model))
            .filter_map(|deployment| {
                let place = scope.place(&deployment.key.namespace)?;
                let claim = deployment.claim(model)?;
                // Who asks for a namespace means it.
                Some(((claim.0 != Name::Qualified, place, claim), deployment))
            });
        let first = candidates.min_by_key(|(claim, _)| *claim);
        first.map(|(_, deployment)| deployment)
    }

    /// The deployment and the adapter that a name stands for, where it is no model's. Of several deployments as with models; who declares an
    /// adapter has its name before who was given one while it ran, also while no group serves it: requests never cross to another deployment.
    #[must_use]
    pub fn by_adapter_in(&self, name: &str, scope: &Scope) -> Option<(&Deployment, String)> {
        let candidates = self.deployments.values().filter_map(|deployment| {
            let place = scope.place(&deployment.key.namespace)?;
            let adapters = deployment.adapters();
            let sees = |adapter: &&String| scope.has_model(name) || scope.has_model(adapter);
            let find = |wanted: &str| adapters.get(wanted).filter(sees);
            let (is_qualified, adapter) = match deployment.key.own(name).and_then(find) {
                Some(adapter) => (true, adapter),
                None => (false, find(name)?),
            };
            let claim = (!is_qualified, place, deployment.claim_of_adapter(adapter));
            Some((claim, (deployment, adapter.clone())))
        });
        let first = candidates.min_by_key(|(claim, _)| *claim);
        first.map(|(_, found)| found)
    }

    /// All adapters in a scope by names that stand for nothing else, as [`Self::by_model_in`] and [`Self::by_adapter_in`] have it. Every
    /// deployment is looked at once, but for names that more than one of them may mean.
    #[must_use]
    pub fn adapters_in(&self, scope: &Scope) -> BTreeMap<String, &Deployment> {
        let mut found = BTreeMap::new();
        let mut models = HashSet::new();
        for deployment in self.deployments.values() {
            models.insert(deployment.model.as_str());
            models.extend(deployment.former.iter().map(String::as_str));
            let Some(place) = scope.place(&deployment.key.namespace) else {
                continue;
            };
            for adapter in deployment.adapters() {
                if scope.has_model(&adapter) {
                    let claim = (place, deployment.claim_of_adapter(&adapter));
                    let first = found.entry(adapter).or_insert((claim, deployment));
                    if claim < first.0 {
                        *first = (claim, deployment);
                    }
                }
            }
        }
        found.retain(|name, (_, deployment)| {
            // In front of a slash may stand the namespace of somebody else's model or adapter.
            if !name.contains('/') {
                return !models.contains(name.as_str()) || self.by_model_in(name, scope).is_none();
            }
            let means = self.by_adapter_in(name, scope);
            self.by_model_in(name, scope).is_none()
                && means.is_some_and(|(found, adapter)| found.key == deployment.key && adapter == *name)
        });
        let adapters = found.into_iter();
        adapters
            .map(|(name, (_, deployment))| (name, deployment))
            .collect()
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
    dialler: Option<Dialler>,
}

impl Default for Directory {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Directory {
    /// An empty directory that is not complete. Without a `dialler` only leaders in plain text are reached.
    #[must_use]
    pub fn new(dialler: Option<Dialler>) -> Self {
        Self {
            dialler,
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

    fn dial(
        &self,
        namespace: &str,
        address: &str,
        model: &str,
        expected: Option<&LeaderPod>,
    ) -> Option<Arc<Leader>> {
        let link = match (expected, &self.dialler) {
            (None, _) => Link::Plain,
            (Some(leader), Some(dialler)) => dialler.leader(namespace, leader),
            (Some(leader), None) => {
                let group = &leader.group;
                tracing::warn!(%address, %group, "links of the group are authenticated, and this gateway was started without --enrolment");
                return None;
            }
        };
        match Leader::dial(address, model, &link, expected.cloned()) {
            Ok(leader) => Some(leader),
            Err(error) => {
                tracing::warn!(%address, %error, "a group has an address that cannot be dialled");
                None
            }
        }
    }

    /// Replace the state. Addresses that cannot be dialled are left out with a warning.
    pub fn publish(&self, found: Vec<Found>) {
        let before = self.snapshot();
        // Addresses are given out again, to pods of other namespaces too.
        let known: HashMap<(&str, &str), &Arc<Leader>> = before
            .deployments()
            .flat_map(|deployment| {
                let namespace = deployment.key.namespace.as_str();
                let leaders = deployment.leaders.iter();
                leaders.map(move |leader| ((namespace, leader.address()), leader))
            })
            .collect();
        let live = |found: &Found, address: &String, model: &String| {
            let expected = found.authenticated.get(address);
            match known.get(&(found.key.namespace.as_str(), address.as_str())) {
                Some(leader) if leader.expected() == expected && leader.model() == model => {
                    Some(Arc::clone(leader))
                }
                _ => self.dial(&found.key.namespace, address, model, expected),
            }
        };
        let deployments = found
            .into_iter()
            .map(|found| {
                let leaders = found.leaders.iter();
                let leaders = leaders
                    .filter_map(|(address, model)| live(&found, address, model))
                    .collect();
                let Found {
                    key,
                    model,
                    former,
                    created,
                    max_context,
                    problem,
                    canary,
                    adapters,
                    ..
                } = found;
                (
                    key.clone(),
                    Deployment {
                        key,
                        model,
                        former,
                        created,
                        max_context,
                        problem,
                        leaders,
                        canary,
                        first_adapters: adapters,
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
            max_context: None,
            problem: None,
            canary: None,
            adapters: Vec::new(),
            authenticated: BTreeMap::new(),
            leaders: leaders
                .iter()
                .map(|&address| (address.to_owned(), model.to_owned()))
                .collect(),
        }
    }

    #[tokio::test]
    async fn leaders_outlive_snapshots_by_address() {
        let directory = Directory::default();
        directory.publish(vec![found("a", "m", 1, &["127.0.0.1:9", "127.0.0.1:10"])]);
        let first = directory.snapshot().by_model("m").unwrap().leaders.clone();
        directory.publish(vec![found("a", "m", 1, &["127.0.0.1:9", "not an address"])]);
        let second = directory.snapshot().by_model("m").unwrap().leaders.clone();
        assert_eq!(second.len(), 1);
        assert!(first.iter().any(|leader| Arc::ptr_eq(leader, &second[0])));
    }

    #[tokio::test]
    async fn an_address_that_went_to_another_namespace_is_dialled_anew() {
        let directory = Directory::default();
        let leader_in = |namespace: &str| {
            let mut found = found("a", "m", 1, &["127.0.0.1:9"]);
            found.key.namespace = namespace.to_owned();
            directory.publish(vec![found]);
            directory.snapshot().by_model("m").unwrap().leaders[0].clone()
        };
        let all = ["ns", "ns", "other"].map(leader_in);
        assert!(Arc::ptr_eq(&all[0], &all[1]) && !Arc::ptr_eq(&all[1], &all[2]));
    }

    #[tokio::test]
    async fn an_address_that_went_to_another_pod_is_dialled_anew() {
        let (_publisher, credentials) = llamero_identity::credentials::pair();
        let dialler = Dialler {
            credentials,
            trust_domain: "d".to_owned(),
            installation: "system".to_owned(),
        };
        let leader_of = |directory: &Directory, pod: Option<&str>| {
            let mut found = found("a", "m", 1, &["127.0.0.1:9"]);
            let expected = pod.map(|pod| LeaderPod {
                group: "a-0".to_owned(),
                pod: pod.to_owned(),
            });
            found.authenticated = expected
                .map(|one| ("127.0.0.1:9".to_owned(), one))
                .into_iter()
                .collect();
            directory.publish(vec![found]);
            directory
                .snapshot()
                .by_model("m")
                .unwrap()
                .leaders
                .first()
                .cloned()
        };
        let directory = Directory::new(Some(dialler));
        let all = [None, Some("a-0-0-0"), Some("a-0-0-0"), Some("a-0-0-1")];
        let all = all.map(|pod| leader_of(&directory, pod).unwrap());
        let same = |one: usize, other: usize| Arc::ptr_eq(&all[one], &all[other]);
        assert!(!same(0, 1) && same(1, 2) && !same(2, 3));
        // A gateway that cannot show who it is does not fall back to plain text.
        assert!(leader_of(&Directory::default(), Some("a-0-0-0")).is_none());
    }

    #[tokio::test]
    async fn a_name_belongs_to_the_older_deployment_whoever_is_ready() {
        let directory = Directory::default();
        directory.publish(vec![
            found("a", "m", 3, &["127.0.0.1:9"]),
            found("b", "m", 2, &[]),
            found("c", "m", 2, &[]),
        ]);
        assert_eq!(directory.snapshot().by_model("m").unwrap().key.name, "b");
        assert!(directory.snapshot().by_model("n").is_none());
    }

    #[tokio::test]
    async fn a_name_is_looked_up_in_the_namespaces_of_a_key_in_their_order() {
        let directory = Directory::default();
        let other = Found {
            key: DeploymentKey {
                namespace: "team".to_owned(),
                name: "b".to_owned(),
            },
            ..found("b", "m", 9, &[])
        };
        directory.publish(vec![found("a", "m", 1, &["127.0.0.1:9"]), other]);
        let snapshot = directory.snapshot();
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let name = |namespaces: &[&str], models: &[&str]| {
            let scope = Scope::new(words(namespaces), words(models));
            snapshot
                .by_model_in("m", &scope)
                .map(|found| found.key.name.clone())
        };
        assert_eq!(name(&[], &[]).as_deref(), Some("a"));
        // Its own namespace goes before another, though that one is older.
        assert_eq!(name(&["team", "*"], &["m"]).as_deref(), Some("b"));
        assert_eq!(name(&["ns"], &["m"]).as_deref(), Some("a"));
        assert_eq!((name(&["none"], &[]), name(&[], &["n*"])), (None, None));
    }

    #[tokio::test]
    async fn a_name_in_its_namespace_is_nobody_else_s() {
        let directory = Directory::default();
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
    async fn adapters_are_listed_by_the_names_that_stand_for_them() {
        let directory = Directory::default();
        let with = |name: &str, namespace: &str, created, adapters: &[&str]| {
            let mut found = found(name, name, created, &[]);
            found.key.namespace = namespace.to_owned();
            found.adapters = adapters.iter().map(|&adapter| adapter.to_owned()).collect();
            found
        };
        directory.publish(vec![
            with("a", "ns", 3, &["sql", "b", "team/poet", "ns/c", "x/y"]),
            with("b", "team", 2, &["sql", "poet"]),
            with("c", "ns", 4, &["x/y", "law"]),
        ]);
        let snapshot = directory.snapshot();
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let listed = |namespaces: &[&str], models: &[&str]| {
            let scope = Scope::new(words(namespaces), words(models));
            let listed = snapshot.adapters_in(&scope);
            for (name, deployment) in &listed {
                let (found, adapter) = snapshot.by_adapter_in(name, &scope).unwrap();
                assert_eq!((&found.key, &adapter), (&deployment.key, name));
                assert!(snapshot.by_model_in(name, &scope).is_none());
            }
            let listed = listed.iter();
            let listed = listed.map(|(name, deployment)| format!("{name} of {}", deployment.key.name));
            listed.collect::<Vec<_>>().join(", ")
        };
        assert_eq!(listed(&[], &[]), "law of c, poet of b, sql of b, x/y of a");
        assert_eq!(listed(&["ns", "team"], &["s*", "l*"]), "law of c, sql of a");
        assert_eq!(listed(&["other"], &[]), "");
    }

    #[tokio::test]
    async fn a_renamed_model_answers_to_both_names_while_groups_serve_under_the_former() {
        let directory = Directory::default();
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
