//! What is kept of a pod. Most pods of a cluster are not ours, and of those only what they take from their node matters.

use std::{
    collections::HashSet,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::ResourceExt as _;
use llamero_api::labels;
use llamero_core::{
    Key,
    observed::{self, PodPhase},
    resources::{self, Resources},
};

use super::pods;
use crate::{build::parts::namespace_of, options::LabelSelector, watch::Scope};

/// What a pod takes from a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Name of the node.
    pub node: Arc<str>,
    /// The pod's priority.
    pub priority: i32,
    /// What it asks for.
    pub request: Arc<Resources>,
}

/// A pod in short form.
#[derive(Clone, Debug, PartialEq)]
pub enum SeenPod {
    /// Of a group, or one that looks at a checkpoint.
    Ours(Arc<OwnPod>),
    /// Somebody else's.
    Other {
        /// What it takes.
        taken: Option<Taken>,
    },
    /// A gateway's.
    Gateway {
        /// What it takes.
        taken: Option<Taken>,
        /// UID and address, while it is ready.
        ready: Option<Arc<(String, String)>>,
    },
}

/// A pod of ours.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnPod {
    /// Namespace and name.
    pub key: Key,
    /// UID of its controller.
    pub owner: Option<String>,
    /// The group's name that its label says.
    pub group: Option<String>,
    /// As a member of a group; absent when its labels do not say which one. Without a report.
    pub member: Option<observed::Pod>,
    /// As one that holds room for a member.
    pub placeholder: Option<observed::Placeholder>,
    /// As one that looks at a checkpoint.
    pub inspect: Option<observed::InspectPod>,
    /// What it takes.
    pub taken: Option<Taken>,
    /// What of the object its binding is written from, while it is gated.
    pub gated: Option<Arc<Pod>>,
}

impl SeenPod {
    /// What it takes from its node.
    #[must_use]
    pub fn taken(&self) -> Option<&Taken> {
        match self {
            Self::Ours(pod) => pod.taken.as_ref(),
            Self::Other { taken } | Self::Gateway { taken, .. } => taken.as_ref(),
        }
    }
}

/// How pods become short, with the values that many of them share.
pub struct Projection {
    gateway_namespace: String,
    gateways: LabelSelector,
    served: Scope,
    nodes: Interner<str>,
    requests: Interner<Resources>,
}

impl Projection {
    /// Gateways are the pods of this namespace with these labels.
    #[must_use]
    pub fn new(gateway_namespace: &str, gateways: LabelSelector) -> Self {
        Self {
            gateway_namespace: gateway_namespace.to_owned(),
            gateways,
            served: Scope::Cluster,
            nodes: Interner::default(),
            requests: Interner::default(),
        }
    }

    /// Only pods of these namespaces are ours: another operator may look after others.
    #[must_use]
    pub fn serving(self, served: Scope) -> Self {
        Self { served, ..self }
    }

    /// The pod in short form.
    #[must_use]
    pub fn pod(&self, pod: &Pod) -> SeenPod {
        let is_ours =
            pod.labels().contains_key(labels::DEPLOYMENT) && self.served.contains(&namespace_of(pod));
        let taken = self.taken(pod, is_ours);
        if is_ours {
            return SeenPod::Ours(Arc::new(own(pod, taken)));
        }
        let is_gateway = pod.metadata.namespace.as_deref() == Some(self.gateway_namespace.as_str())
            && self.gateways.matches(pod.metadata.labels.as_ref());
        if !is_gateway {
            return SeenPod::Other { taken };
        }
        let runs = pods::phase(pod) == PodPhase::Running && pods::condition(pod, "Ready");
        let ready = pod.uid().zip(pods::ip(pod).map(str::to_owned)).filter(|_| runs);
        SeenPod::Gateway {
            taken,
            ready: ready.map(Arc::new),
        }
    }

    /// What bound pods take until they have ended, and what pods nominated to a node are about to take. Members of groups that are not bound
    /// yet are left out: their reservations are in the groups.
    fn taken(&self, pod: &Pod, is_ours: bool) -> Option<Taken> {
        let spec = pod.spec.as_ref()?;
        if pods::raw_phase(pod).ended() {
            return None;
        }
        let named = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        let nominated = || {
            let name = pod.status.as_ref().map(|status| &status.nominated_node_name);
            name.and_then(named)
                .filter(|_| !is_ours || !pod.labels().contains_key(labels::GROUP_NAME))
        };
        let node = named(&spec.node_name).or_else(nominated)?;
        Some(Taken {
            node: self.nodes.of(node.as_str(), |name| Arc::from(name)),
            priority: spec.priority.unwrap_or(0),
            request: self
                .requests
                .of(&resources::of_pod(spec), |request| Arc::new(request.clone())),
        })
    }
}

fn own(pod: &Pod, taken: Option<Taken>) -> OwnPod {
    let gated = pod
        .spec
        .as_ref()
        .filter(|spec| {
            spec.scheduling_gates
                .as_ref()
                .is_some_and(|gates| !gates.is_empty())
        })
        .map(|spec| {
            Arc::new(Pod {
                metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                    name: pod.metadata.name.clone(),
                    namespace: pod.metadata.namespace.clone(),
                    uid: pod.metadata.uid.clone(),
                    ..Default::default()
                },
                spec: Some(PodSpec {
                    affinity: spec.affinity.clone(),
                    scheduling_gates: spec.scheduling_gates.clone(),
                    ..PodSpec::default()
                }),
                status: None,
            })
        });
    let inspects = pod.labels().contains_key(labels::INSPECT);
    let mut owners = pod.owner_references().iter();
    OwnPod {
        key: Key {
            namespace: namespace_of(pod),
            name: pod.name_any(),
        },
        owner: owners.find(|o| o.controller == Some(true)).map(|o| o.uid.clone()),
        group: [labels::GROUP_NAME, labels::PLACEHOLDER_OF]
            .iter()
            .find_map(|label| pod.labels().get(*label).cloned()),
        member: pods::member(pod),
        placeholder: pods::placeholder(pod),
        inspect: inspects.then(|| pods::inspect_pod(pod)),
        taken,
        gated,
    }
}

/// Values that many share, each kept once while anybody has it.
struct Interner<T: ?Sized>(Mutex<(HashSet<Arc<T>>, usize)>);

impl<T: ?Sized> Default for Interner<T> {
    fn default() -> Self {
        Self(Mutex::new((HashSet::new(), Self::FIRST_SWEEP)))
    }
}

impl<T: ?Sized> Interner<T> {
    /// Number of values at which those that nobody has any more are dropped; then twice what is left.
    const FIRST_SWEEP: usize = 1024;
}

impl<T: Eq + Hash + ?Sized> Interner<T> {
    fn of(&self, value: &T, make: impl FnOnce(&T) -> Arc<T>) -> Arc<T> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (values, sweep) = &mut *known;
        if let Some(value) = values.get(value) {
            return Arc::clone(value);
        }
        if values.len() >= *sweep {
            values.retain(|value| Arc::strong_count(value) > 1);
            *sweep = (values.len() * 2).max(Self::FIRST_SWEEP);
        }
        let value = make(value);
        values.insert(Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn projection() -> Projection {
        Projection::new("system", "app=gateway".parse().unwrap())
    }

    fn pod(node: Option<&str>, labels: Value, status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "system", "uid": "u", "labels": labels},
            "spec": {"nodeName": node, "priority": 7,
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "500m"}}}]},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn bound_and_nominated_pods_take_room_until_they_have_ended() {
        let taken = |node, labels, status| {
            let seen = projection().pod(&pod(node, labels, status));
            seen.taken().map(|taken| (taken.node.to_string(), taken.priority))
        };
        let running = || json!({"phase": "Running"});
        let nominated = || json!({"phase": "Pending", "nominatedNodeName": "b"});
        let ours = || json!({"llamero.dev/deployment": "d", "llamero.dev/group": "g"});
        assert_eq!(taken(Some("a"), json!({}), running()), Some(("a".into(), 7)));
        assert_eq!(taken(Some("a"), ours(), running()), Some(("a".into(), 7)));
        assert_eq!(taken(Some("a"), json!({}), json!({"phase": "Succeeded"})), None);
        assert_eq!(taken(None, json!({}), nominated()), Some(("b".into(), 7)));
        assert_eq!(taken(None, ours(), nominated()), None);
        assert_eq!(taken(None, json!({}), json!({"phase": "Pending"})), None);
    }

    #[test]
    fn members_of_another_operator_are_foreign_and_take_room() {
        let served = |namespace: &str| Scope::of(Some([namespace.to_owned()].into()));
        let nominated = json!({"phase": "Pending", "nominatedNodeName": "b"});
        let labels = json!({"llamero.dev/deployment": "d", "llamero.dev/group": "g"});
        let seen = |scope: Scope| {
            let pod = pod(None, labels.clone(), nominated.clone());
            projection().serving(scope).pod(&pod)
        };
        assert!(matches!(seen(served("system")), SeenPod::Ours(pod) if pod.taken.is_none()));
        let foreign = seen(served("elsewhere"));
        assert!(
            matches!(&foreign, SeenPod::Other { taken: Some(_) }),
            "{foreign:?}"
        );
    }

    #[test]
    fn requests_and_nodes_are_kept_once() {
        let projection = projection();
        let one = projection.pod(&pod(Some("a"), json!({}), json!({})));
        let other = projection.pod(&pod(Some("a"), json!({"x": "y"}), json!({})));
        let (one, other) = (one.taken().unwrap(), other.taken().unwrap());
        assert!(Arc::ptr_eq(&one.node, &other.node) && Arc::ptr_eq(&one.request, &other.request));
    }

    #[test]
    fn a_ready_gateway_has_an_address() {
        let status = json!({"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]});
        let seen = projection().pod(&pod(None, json!({"app": "gateway"}), status));
        let SeenPod::Gateway {
            ready: Some(ready), ..
        } = seen
        else {
            panic!("{seen:?}")
        };
        assert_eq!(*ready, ("u".to_owned(), "10.0.0.1".to_owned()));
        let silent = projection().pod(&pod(None, json!({"app": "gateway"}), json!({"phase": "Running"})));
        assert!(matches!(silent, SeenPod::Gateway { ready: None, .. }));
    }
}
