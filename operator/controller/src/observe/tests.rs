//! What is known after changes is what is known from scratch.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;
use llamero_api::LlamaDeployment;
use llamero_core::observed::{self, Settings};
use llamero_proto::v1;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Model, SeenPod, nodes, seen_pod::Projection};
use crate::{
    apply::Refusals,
    links::{Membership, Received, Streams},
    watch::{Change, Changes},
};

/// Nobody says anything.
struct Silence;

impl Streams for Silence {
    fn follow(&mut self, _: &Membership<'_>, _: i64) {}
    fn forget(&mut self, _: &str) {}
    fn report(&self, _: &str) -> Option<Received<v1::PodReport>> {
        None
    }
    fn tried_since(&self, _: &str) -> Option<Timestamp> {
        Timestamp::from_second(7).ok()
    }
    fn load(&self, _: &str) -> Option<Received<v1::LoadSample>> {
        None
    }
}

fn object<K: DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn owned(uid: &str) -> Value {
    json!([{"apiVersion": "v", "kind": "k", "name": "o", "uid": uid, "controller": true}])
}

fn deployment(name: &str, uid: &str) -> Arc<LlamaDeployment> {
    object(json!({
        "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
        "metadata": {"name": name, "namespace": "n", "uid": uid},
        "spec": {"model": {"source": {"hostPath": {"path": "/w"}}}, "parallelism": {"tensor": 1}},
    }))
}

fn group(name: &str, uid: &str, owner: &str) -> Value {
    json!({
        "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaGroup",
        "metadata": {"name": name, "namespace": "n", "uid": uid, "ownerReferences": owned(owner)},
        "spec": {"deployment": "d", "revision": "r", "generation": 1, "members": [{"index": 0, "attempt": 0, "node": "n0"}],
            "template": {"modelName": "m", "source": {"hostPath": {"path": "/w"}}, "maxContextLength": 1, "tensor": 1,
                "pipeline": 1, "ranksPerPod": 1, "kvBytesPerRank": 1, "weightBytesPerRank": 1, "stallTimeout": "1s"}},
    })
}

fn pod(name: &str, owner: &str, labels: Value, node: Option<&str>) -> SeenPod {
    let pod = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "n", "uid": name, "labels": labels, "ownerReferences": owned(owner)},
        "spec": {"nodeName": node, "containers": [{"name": "worker", "resources": {"requests": {"cpu": "1"}}}]},
    }));
    Projection::new("system", "app=gateway".parse().unwrap()).pod(&pod.unwrap())
}

fn member(group: &str) -> Value {
    json!({"llamero.dev/deployment": "d", "llamero.dev/group": group, "llamero.dev/member": "0", "llamero.dev/attempt": "0"})
}

fn new<T>(after: T) -> Change<T> {
    Change {
        before: None,
        after: Some(after),
    }
}

fn refreshed(mut model: Model, settings: &Settings) -> Model {
    model.refresh(&mut Silence, settings, &Refusals::default(), 0);
    model
}

#[test]
fn everything_belongs_to_its_owner_by_uid() {
    let inspect = json!({"llamero.dev/deployment": "d", "llamero.dev/inspect": "key"});
    let mut model = Model::default();
    model.take(Changes {
        // Owners come after what they own.
        pods: vec![
            new(pod("p", "g-uid", member("d-0"), None)),
            new(pod("same label", "somebody", member("d-0"), None)),
            new(pod("left", "gone", member("d-7"), None)),
            new(pod("i", "d-uid", inspect, None)),
        ],
        groups: vec![
            new(object(group("d-0", "g-uid", "d-uid"))),
            new(object(group("d-9", "other", "an earlier d"))),
        ],
        deployments: vec![new(deployment("d", "d-uid"))],
        services: vec![new(object(
            json!({"metadata": {"name": "d-inference", "ownerReferences": owned("d-uid")}}),
        ))],
        budgets: vec![new(object(
            json!({"metadata": {"name": "d-0", "ownerReferences": owned("g-uid")}, "spec": {"minAvailable": 1}}),
        ))],
        priority_classes: vec![new(object(
            json!({"metadata": {"name": "high"}, "value": 9, "globalDefault": true, "preemptionPolicy": "Never"}),
        ))],
        ..Changes::default()
    });
    let settings = Settings {
        worker_image: "image".into(),
        ..Settings::default()
    };
    let model = refreshed(model, &settings);
    let seen = model.planner().observed();
    let [deployment] = seen.deployments.as_slice() else {
        panic!("one deployment")
    };
    let [group] = deployment.groups.as_slice() else {
        panic!("one group")
    };
    let uids: Vec<&str> = group.pods.iter().map(|pod| pod.uid.as_str()).collect();
    assert!(group.pods.iter().all(|pod| pod.unheard_since == Some(7_000)));
    let keys: Vec<&str> = deployment.inspect.iter().map(|pod| pod.key.as_str()).collect();
    assert_eq!((uids, keys), (vec!["p"], vec!["key"]));
    assert!(group.budget.is_some() && deployment.service.is_some());
    let taken = ["d-0", "d-7", "d-9"].map(str::to_owned);
    assert_eq!(*deployment.names_in_use, BTreeSet::from(taken));
    assert_eq!(deployment.demand, None);
    let high = observed::Priority {
        value: 9,
        preempts: false,
    };
    assert_eq!(
        (seen.default_priority, seen.priority_classes["high"]),
        (high, high)
    );
    assert_eq!(seen.settings.worker_image, "image");
}

/// Something that can be there or not, in one of several forms.
#[derive(Clone, Debug)]
enum Event {
    Deployment(usize, Option<u8>),
    Group(usize, Option<(u8, u8, usize)>),
    Pod(usize, Option<(usize, u8, Option<u8>)>),
    Foreign(usize, Option<u8>),
    Node(u8, Option<bool>),
    Budget(usize, Option<u8>),
    Refresh,
}

fn event() -> impl Strategy<Value = Event> {
    let uid = || 0u8..2;
    prop_oneof![
        2 => (0usize..2, prop::option::weighted(0.8, uid())).prop_map(|(n, o)| Event::Deployment(n, o)),
        3 => (0usize..3, prop::option::weighted(0.8, (uid(), uid(), 0usize..2))).prop_map(|(n, o)| Event::Group(n, o)),
        5 => (0usize..4, prop::option::weighted(0.8, (0usize..3, uid(), prop::option::of(0u8..3)))).prop_map(|(n, o)| Event::Pod(n, o)),
        2 => (0usize..3, prop::option::weighted(0.7, 0u8..3)).prop_map(|(n, node)| Event::Foreign(n, node)),
        2 => (0u8..3, prop::option::weighted(0.8, any::<bool>())).prop_map(|(n, o)| Event::Node(n, o)),
        1 => (0usize..3, prop::option::weighted(0.7, uid())).prop_map(|(n, o)| Event::Budget(n, o)),
        2 => Just(Event::Refresh),
    ]
}

/// What is there, by kind and name.
#[derive(Default)]
struct There {
    deployments: HashMap<usize, Arc<LlamaDeployment>>,
    groups: HashMap<usize, Arc<llamero_api::LlamaGroup>>,
    pods: HashMap<String, SeenPod>,
    nodes: BTreeMap<u8, Arc<observed::Node>>,
    budgets: HashMap<usize, Arc<k8s_openapi::api::policy::v1::PodDisruptionBudget>>,
    version: u32,
}

fn changed<N: std::hash::Hash + Eq, T: Clone>(
    there: &mut HashMap<N, T>,
    name: N,
    after: Option<T>,
) -> Vec<Change<T>> {
    let before = match &after {
        Some(value) => there.insert(name, value.clone()),
        None => there.remove(&name),
    };
    vec![Change { before, after }]
}

impl There {
    fn happens(&mut self, event: Event) -> Changes {
        let mut changes = Changes::default();
        self.version += 1;
        match event {
            Event::Deployment(n, uid) => {
                let after = uid.map(|uid| deployment(&format!("d{n}"), &format!("d{n}.{uid}")));
                changes.deployments = changed(&mut self.deployments, n, after);
            }
            Event::Group(n, of) => {
                let after = of.map(|(uid, owner, d)| {
                    let mut value = group(&format!("g{n}"), &format!("g{n}.{uid}"), &format!("d{d}.{owner}"));
                    value["metadata"]["resourceVersion"] = self.version.to_string().into();
                    object(value)
                });
                changes.groups = changed(&mut self.groups, n, after);
            }
            Event::Pod(n, of) => {
                let after = of.map(|(g, uid, node)| {
                    let node = node.map(|node| format!("n{node}"));
                    pod(
                        &format!("p{n}"),
                        &format!("g{g}.{uid}"),
                        member(&format!("g{g}")),
                        node.as_deref(),
                    )
                });
                changes.pods = changed(&mut self.pods, format!("p{n}"), after);
            }
            Event::Foreign(n, node) => {
                let after = node.map(|node| pod(&format!("f{n}"), "x", json!({}), Some(&format!("n{node}"))));
                changes.pods = changed(&mut self.pods, format!("f{n}"), after);
            }
            Event::Node(n, cordoned) => {
                let after = cordoned.map(|cordoned| {
                    Arc::new(nodes::node(
                        serde_json::from_value(json!({"metadata": {"name": format!("n{n}")},
                            "spec": {"unschedulable": cordoned}, "status": {"allocatable": {"cpu": "4"}}}))
                        .unwrap(),
                    ))
                });
                let before = match &after {
                    Some(node) => self.nodes.insert(n, Arc::clone(node)),
                    None => self.nodes.remove(&n),
                };
                changes.nodes = vec![Change { before, after }];
            }
            Event::Budget(n, owner) => {
                let after = owner.map(|uid| {
                    object(json!({"metadata": {"name": format!("g{n}"), "ownerReferences": owned(&format!("g{n}.{uid}"))}}))
                });
                changes.budgets = changed(&mut self.budgets, n, after);
            }
            Event::Refresh => {}
        }
        changes
    }

    fn all(&self) -> Changes {
        Changes {
            deployments: self.deployments.values().cloned().map(new).collect(),
            groups: self.groups.values().cloned().map(new).collect(),
            pods: self.pods.values().cloned().map(new).collect(),
            nodes: self.nodes.values().cloned().map(new).collect(),
            budgets: self.budgets.values().cloned().map(new).collect(),
            ..Changes::default()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever came, changed hands and went, in whichever order: what is known is what is there.
    #[test]
    fn changes_lead_to_what_is_there(events in prop::collection::vec(event(), 0..60)) {
        let (mut there, mut model, settings) = (There::default(), Model::default(), Settings::default());
        for event in events {
            let refresh = matches!(event, Event::Refresh);
            model.take(there.happens(event));
            if refresh {
                model = refreshed(model, &settings);
            }
        }
        let model = refreshed(model, &settings);
        let mut scratch = Model::default();
        scratch.take(there.all());
        let scratch = refreshed(scratch, &settings);
        let (known, wanted) = (model.planner().observed(), scratch.planner().observed());
        prop_assert_eq!(&known.nodes, &wanted.nodes);
        prop_assert_eq!(format!("{:?}", known.deployments), format!("{:?}", wanted.deployments));
        prop_assert_eq!(model.planner().reservations(), scratch.planner().reservations());
        let indexed = |model: &Model| {
            let groups = there.groups.values();
            groups.filter(|g| model.index().group(&crate::apply::index::key_of(g.as_ref())).is_ok()).count()
        };
        prop_assert_eq!(indexed(&model), there.groups.len());
    }
}
