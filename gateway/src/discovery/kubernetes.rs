//! Watches `LlamaDeployments` and `LlamaGroups` of all namespaces, or of some.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{
    Stream, StreamExt,
    future::{join_all, ready},
    stream::select_all,
};
use kube::api::Api;
use kube::core::NamespaceResourceScope;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use llamero_api::deployment::condition;
use llamero_api::group::{GroupPhase, Intent, Transport};
use tokio::sync::watch as channel;

use super::objects::{Deployment, Group, GroupStatus};
use super::{Canary, DeploymentKey, Found};
use crate::Gateway;
use crate::upstream::dialler::LeaderPod;

/// Watch for as long as the process lives, publishing every change: streams that run when it is asked to end may still need another leader. While
/// the API server is away the last known state stays. `served`: the namespaces; None: all.
pub async fn watch(client: Client, served: Option<BTreeSet<String>>, gateway: Arc<Gateway>) {
    let (deployments, deployment_events) = reflect_all::<Deployment>(&client, served.as_ref());
    let (groups, group_events) = reflect_all::<Group>(&client, served.as_ref());
    let mut events = futures::stream::select(deployment_events, group_events);
    let all_listed = async {
        join_all(deployments.iter().map(Watched::listed)).await;
        join_all(groups.iter().map(Watched::listed)).await;
    };
    let mut all_listed = std::pin::pin!(all_listed);
    let mut listed = false;
    loop {
        tokio::select! {
            () = &mut all_listed, if !listed => listed = true,
            event = events.next() => if event.is_none() { return },
        }
        if listed {
            gateway.publish(collect(&state(&deployments), &state(&groups)));
        }
    }
}

/// A kind that can be watched.
pub trait Kind:
    kube::Resource<DynamicType = ()>
    + Clone
    + std::fmt::Debug
    + Send
    + Sync
    + serde::de::DeserializeOwned
    + 'static
{
}

impl<K> Kind for K where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + Send
        + Sync
        + serde::de::DeserializeOwned
        + 'static
{
}

/// What a watch has shown.
struct Watched<K: Kind> {
    store: Store<K>,
    /// The API server has refused to list a namespace.
    is_refused: channel::Receiver<bool>,
}

impl<K: Kind> Watched<K> {
    /// Returns when the first list is in, or when there is none: a namespace that is gone took its Role along, and must not keep the others from
    /// being served. It is tried further.
    async fn listed(&self) {
        let mut is_refused = self.is_refused.clone();
        tokio::select! {
            // A writer that is gone would be a stream that ended, which `events` tells.
            _ = self.store.wait_until_ready() => {}
            Ok(_) = is_refused.wait_for(|is_refused| *is_refused) => {}
        }
    }
}

/// Follow a kind in these namespaces, or in all.
fn reflect_all<K>(
    client: &Client,
    served: Option<&BTreeSet<String>>,
) -> (Vec<Watched<K>>, impl Stream<Item = ()> + Unpin + Send)
where
    K: Kind + kube::Resource<Scope = NamespaceResourceScope>,
{
    let apis: Vec<Api<K>> = match served {
        None => vec![Api::all(client.clone())],
        Some(names) => {
            let api = |name: &String| Api::namespaced(client.clone(), name);
            names.iter().map(api).collect()
        }
    };
    let reflected = apis.into_iter().map(|api| {
        let (store, events) = follow(api, watcher::Config::default());
        let (refuse, is_refused) = channel::channel(false);
        let is_one_of_many = served.is_some();
        let events = events.filter_map(move |event| {
            if is_one_of_many && event.as_ref().is_err_and(is_refusal) {
                refuse.send_replace(true);
            }
            ready(event.ok())
        });
        (Watched { store, is_refused }, Box::pin(events))
    });
    let (watched, events): (Vec<_>, Vec<_>) = reflected.unzip();
    (watched, select_all(events))
}

/// A namespace that is not there, or may not be read.
fn is_refusal(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) => matches!(status.code, 403 | 404),
        _ => false,
    }
}

fn state<K: Kind>(watched: &[Watched<K>]) -> Vec<Arc<K>> {
    watched.iter().flat_map(|watched| watched.store.state()).collect()
}

/// Follow what an API has; an item comes with every change.
pub fn reflect<K: Kind>(
    api: Api<K>,
    config: watcher::Config,
) -> (Store<K>, impl Stream<Item = ()> + Unpin + Send) {
    let (store, events) = follow(api, config);
    (store, Box::pin(events.filter_map(|event| ready(event.ok()))))
}

/// The same with what went wrong, which is logged already.
fn follow<K: Kind>(
    api: Api<K>,
    config: watcher::Config,
) -> (Store<K>, impl Stream<Item = Result<(), watcher::Error>> + Send) {
    let (store, writer) = reflector::store();
    let events = watcher(api, config)
        .default_backoff()
        .reflect(writer)
        .map(|event| match event {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, "watching the API server failed; trying again");
                Err(error)
            }
        });
    (store, events)
}

/// Deployments with the leaders of their groups.
fn collect(deployments: &[Arc<Deployment>], groups: &[Arc<Group>]) -> Vec<Found> {
    let mut leaders: BTreeMap<DeploymentKey, BTreeMap<String, String>> = BTreeMap::new();
    let mut contexts: BTreeMap<DeploymentKey, u32> = BTreeMap::new();
    let mut revisions: BTreeMap<DeploymentKey, BTreeMap<String, String>> = BTreeMap::new();
    let mut authenticated: BTreeMap<DeploymentKey, BTreeMap<String, LeaderPod>> = BTreeMap::new();
    for group in groups {
        let Some(status) = &group.status else { continue };
        let serves = status.phase == GroupPhase::Serving && status.ready && group.spec.intent == Intent::Run;
        if let (true, Some(address)) = (serves, &status.leader_address) {
            let key = DeploymentKey {
                namespace: group.namespace().unwrap_or_default(),
                name: group.spec.deployment.clone(),
            };
            let name = group.spec.template.model_name.clone();
            // Of groups of two revisions the shorter one holds for both.
            let context = u32::try_from(group.spec.template.max_context_length).unwrap_or(u32::MAX);
            let known = contexts.entry(key.clone()).or_insert(context);
            *known = context.min(*known);
            let revision = group.spec.revision.clone();
            revisions
                .entry(key.clone())
                .or_default()
                .insert(address.clone(), revision);
            if group.spec.template.inference_transport() == Transport::Mutual {
                let pods = authenticated.entry(key.clone()).or_default();
                pods.insert(address.clone(), leader_pod(group, status));
            }
            leaders.entry(key).or_default().insert(address.clone(), name);
        }
    }
    let found = |deployment: &Arc<Deployment>| {
        let key = DeploymentKey {
            namespace: deployment.namespace().unwrap_or_default(),
            name: deployment.name_any(),
        };
        let model = deployment.model_name().to_owned();
        let asked = || u32::try_from(deployment.spec.model.max_context_length?).ok();
        let leaders = leaders.remove(&key).unwrap_or_default();
        let former = leaders.values().filter(|name| **name != model).cloned().collect();
        Found {
            model,
            former,
            created: deployment
                .creation_timestamp()
                .map_or(0, |time| time.0.as_second()),
            max_context: contexts.get(&key).copied().or_else(asked),
            problem: problem(deployment),
            adapters: deployment
                .spec
                .adapters
                .iter()
                .map(|adapter| adapter.name.clone())
                .collect(),
            canary: revisions
                .remove(&key)
                .and_then(|revisions| canary(deployment, revisions)),
            leaders,
            authenticated: authenticated.remove(&key).unwrap_or_default(),
            key,
        }
    };
    deployments.iter().map(found).collect()
}

/// The pod of rank 0, which must show its certificate. Nobody's certificate names a pod without a name.
fn leader_pod(group: &Group, status: &GroupStatus) -> LeaderPod {
    let first = status.ranks.iter().find(|rank| rank.rank == 0);
    LeaderPod {
        group: group.name_any(),
        pod: first.map(|rank| rank.pod.clone()).unwrap_or_default(),
    }
}

/// The leaders of the revision that is rolled out, while others serve too and it is to have a share of its own. `revisions`: by address.
fn canary(deployment: &Deployment, revisions: BTreeMap<String, String>) -> Option<Canary> {
    let percent = deployment.spec.rollout.canary_percent?;
    let target = &deployment.status.as_ref()?.revision;
    let all = revisions.len();
    let of_target = revisions.into_iter().filter(|(_, revision)| revision == target);
    let leaders: BTreeSet<String> = of_target.map(|(address, _)| address).collect();
    let beside_others = !leaders.is_empty() && leaders.len() < all;
    beside_others.then_some(Canary {
        leaders,
        percent: u32::try_from(percent).unwrap_or(0),
    })
}

/// Why waiting is pointless.
fn problem(deployment: &Deployment) -> Option<String> {
    let spec = &deployment.spec;
    if spec.autoscaling.is_none() && spec.replicas == 0 && !spec.hold_at_zero {
        let name = deployment.name_any();
        return Some(format!(
            "The deployment is scaled to 0 replicas and does not hold requests meanwhile; run: kubectl scale llamadeployment {name} --replicas=1, or set spec.holdAtZero"
        ));
    }
    let conditions = deployment
        .status
        .as_ref()
        .map_or(&[][..], |status| &status.conditions);
    let refused = conditions
        .iter()
        .find(|found| found.type_ == condition::ACCEPTED && found.status == "False")?;
    Some(format!("The deployment cannot be served: {}", refused.message))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::extract::{RawQuery, State};
    use axum::http::StatusCode;
    use axum::response::{IntoResponse as _, Response};
    use axum::routing::get;
    use axum::{Json, Router};
    use tokio::sync::Semaphore;

    use super::*;

    fn deployment(json: serde_json::Value) -> Arc<Deployment> {
        Arc::new(serde_json::from_value(object(json)).unwrap())
    }

    fn object(json: serde_json::Value) -> serde_json::Value {
        let mut whole = serde_json::json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
            "metadata": {"name": "smol", "namespace": "ns", "creationTimestamp": "2025-01-01T00:00:00Z"},
            "spec": {"model": {"source": {"hostPath": {"path": "/m"}}}, "parallelism": {"tensor": 1}},
        });
        merge(&mut whole, json);
        whole
    }

    fn group(name: &str, phase: &str, ready: bool, intent: &str, address: &str) -> Arc<Group> {
        let json = serde_json::json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaGroup",
            "metadata": {"name": name, "namespace": "ns"},
            "spec": {
                "deployment": "smol", "revision": "r", "generation": 1, "members": [], "intent": intent,
                "template": {"modelName": "m", "source": {"hostPath": {"path": "/m"}}, "maxContextLength": 128,
                    "tensor": 1, "pipeline": 1, "ranksPerPod": 1, "kvBytesPerRank": 1, "weightBytesPerRank": 1,
                    "stallTimeout": "30s"},
            },
            "status": {"phase": phase, "ready": ready, "leaderAddress": address},
        });
        Arc::new(serde_json::from_value(json).unwrap())
    }

    fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
        match (into, from) {
            (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(serde_json::Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    /// Lists nothing, and tells of one deployment when it is let.
    async fn deployments(State(let_on): State<Arc<Semaphore>>, RawQuery(query): RawQuery) -> Response {
        if !query.unwrap_or_default().contains("watch=") {
            return empty("LlamaDeploymentList");
        }
        let object = object(serde_json::json!({"metadata": {"resourceVersion": "2"}}));
        let event = serde_json::json!({"type": "ADDED", "object": object}).to_string() + "\n";
        let told = async move {
            let_on.acquire().await.unwrap().forget();
            Ok::<_, std::io::Error>(event)
        };
        Body::from_stream(futures::stream::once(told).chain(futures::stream::pending())).into_response()
    }

    async fn groups(RawQuery(query): RawQuery) -> Response {
        if query.unwrap_or_default().contains("watch=") {
            return Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>())
                .into_response();
        }
        empty("LlamaGroupList")
    }

    async fn refused() -> Response {
        let status = serde_json::json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403});
        (StatusCode::FORBIDDEN, Json(status)).into_response()
    }

    fn empty(kind: &str) -> Response {
        let list = serde_json::json!({"apiVersion": "llamero.dev/v1alpha1", "kind": kind, "metadata": {"resourceVersion": "1"}, "items": []});
        Json(list).into_response()
    }

    #[tokio::test]
    async fn changes_are_published_while_the_last_streams_run() {
        let let_on = Arc::new(Semaphore::new(0));
        let server = Router::new()
            .route("/apis/llamero.dev/v1alpha1/llamadeployments", get(deployments))
            .route("/apis/llamero.dev/v1alpha1/llamagroups", get(groups))
            .with_state(Arc::clone(&let_on));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, server).await });
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();

        let gateway = Gateway::new(crate::Settings::default());
        let mut snapshots = gateway.directory.subscribe();
        let watching = tokio::spawn(watch(client, None, Arc::clone(&gateway)));
        snapshots.wait_for(|snapshot| snapshot.complete).await.unwrap();
        gateway.stopping.cancel();
        let_on.add_permits(1);
        let known = snapshots.wait_for(|snapshot| snapshot.deployments().any(|found| found.model == "smol"));
        known.await.unwrap();
        assert!(!watching.is_finished());
        watching.abort();
    }

    #[tokio::test]
    async fn only_the_namespaces_that_are_served_are_watched() {
        let one = |name: &str, kind: &str| {
            let path = format!("/apis/llamero.dev/v1alpha1/namespaces/{name}/{kind}");
            (path, name.to_owned())
        };
        let mut server = Router::new();
        for (path, namespace) in ["a", "b"].map(|name| one(name, "llamadeployments")) {
            let listed = move |RawQuery(query): RawQuery| {
                let metadata = serde_json::json!({"name": "smol", "namespace": namespace});
                let spec = serde_json::json!({"model": {"name": namespace}});
                let item = object(serde_json::json!({"metadata": metadata, "spec": spec}));
                async move {
                    if query.unwrap_or_default().contains("watch=") {
                        return Body::from_stream(
                            futures::stream::pending::<Result<Vec<u8>, std::io::Error>>(),
                        )
                        .into_response();
                    }
                    let list = serde_json::json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeploymentList",
                        "metadata": {"resourceVersion": "1"}, "items": [item]});
                    Json(list).into_response()
                }
            };
            server = server.route(&path, get(listed));
        }
        for (path, _) in ["a", "b"].map(|name| one(name, "llamagroups")) {
            server = server.route(&path, get(groups));
        }
        for (path, _) in ["llamadeployments", "llamagroups"].map(|kind| one("gone", kind)) {
            server = server.route(&path, get(refused));
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, server).await });
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let gateway = Gateway::new(crate::Settings::default());
        let mut snapshots = gateway.directory.subscribe();
        // The path of all namespaces is not there: who asked for it would never be complete. One of the namespaces is gone.
        let served = ["a", "b", "gone"].map(str::to_owned).into();
        let watching = tokio::spawn(watch(client, Some(served), Arc::clone(&gateway)));
        let complete = snapshots.wait_for(|snapshot| snapshot.complete).await.unwrap();
        let mut models: Vec<String> = complete.deployments().map(|found| found.model.clone()).collect();
        models.sort();
        assert_eq!(models, ["a", "b"]);
        watching.abort();
    }

    #[test]
    fn only_groups_that_serve_count() {
        let groups = [
            group("a", "Serving", true, "Run", "10.0.0.1:18051"),
            group("b", "Serving", false, "Run", "10.0.0.2:18051"),
            group("c", "Recovering", true, "Run", "10.0.0.3:18051"),
            group("d", "Serving", true, "Drain", "10.0.0.4:18051"),
        ];
        let found = collect(&[deployment(serde_json::json!({}))], &groups);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].model, "smol");
        assert_eq!(found[0].created, 1_735_689_600);
        assert_eq!(
            found[0].leaders,
            [("10.0.0.1:18051".to_owned(), "m".to_owned())].into()
        );
        assert_eq!((&found[0].problem, found[0].max_context), (&None, Some(128)));
        // The groups were made when the model had another name.
        assert_eq!(found[0].former.iter().collect::<Vec<_>>(), ["m"]);
    }

    #[test]
    fn leaders_must_show_who_they_are_where_the_snapshot_of_their_group_says_so() {
        let mut group = group("smol-0", "Serving", true, "Run", "10.0.0.1:18051");
        let found = |group: &Arc<Group>| {
            collect(&[deployment(serde_json::json!({}))], std::slice::from_ref(group))[0]
                .authenticated
                .clone()
        };
        assert!(found(&group).is_empty());
        let changed = Arc::make_mut(&mut group);
        changed.spec.template.transport = Transport::Mutual;
        let ranks = serde_json::json!([{"rank": 0, "pod": "smol-0-0-3"}, {"rank": 1, "pod": "smol-0-1-0"}]);
        changed.status.as_mut().unwrap().ranks = serde_json::from_value(ranks).unwrap();
        let expected = LeaderPod {
            group: "smol-0".to_owned(),
            pod: "smol-0-0-3".to_owned(),
        };
        assert_eq!(found(&group), [("10.0.0.1:18051".to_owned(), expected)].into());
        // A mesh knows who calls.
        let open = serde_json::json!({"inference": {"auth": "None"}});
        Arc::make_mut(&mut group).spec.template.worker = serde_json::from_value(open).unwrap();
        assert!(found(&group).is_empty());
    }

    #[test]
    fn groups_of_a_new_revision_get_their_share_while_older_ones_serve_too() {
        let of = |address: &str, revision: &str| {
            let mut group = group(address, "Serving", true, "Run", address);
            Arc::make_mut(&mut group).spec.revision = revision.to_owned();
            group
        };
        let canary = |percent: Option<i32>, groups: &[Arc<Group>]| {
            let object = deployment(
                serde_json::json!({"spec": {"rollout": {"canaryPercent": percent}}, "status": {"revision": "new"}}),
            );
            collect(&[object], groups)[0].canary.clone()
        };
        let both = [
            of("10.0.0.1:1", "old"),
            of("10.0.0.2:1", "new"),
            of("10.0.0.3:1", "old"),
        ];
        let found = canary(Some(10), &both).unwrap();
        assert_eq!((found.percent, found.leaders.len()), (10, 1));
        assert!(found.leaders.contains("10.0.0.2:1"));
        assert_eq!(canary(None, &both), None);
        assert_eq!(canary(Some(10), &both[..1]), None);
        assert_eq!(canary(Some(10), &both[1..2]), None);
    }

    #[test]
    fn the_model_has_its_own_name_and_hopeless_deployments_say_why() {
        let named = deployment(serde_json::json!({"spec": {"model": {"name": "org/smol"}, "replicas": 0}}));
        let found = collect(&[named], &[]);
        assert_eq!(found[0].model, "org/smol");
        assert!(found[0].problem.as_ref().unwrap().contains("--replicas=1"));
        let held = deployment(serde_json::json!({"spec": {"replicas": 0, "holdAtZero": true}}));
        assert_eq!(collect(&[held], &[])[0].problem, None);

        let refused = deployment(
            serde_json::json!({"status": {"conditions": [{"type": "Accepted", "status": "False",
            "reason": "DoesNotFit", "message": "tensor 10 is more than 9 q heads",
            "lastTransitionTime": "2025-01-01T00:00:00Z"}]}}),
        );
        assert!(
            collect(&[refused], &[])[0]
                .problem
                .as_ref()
                .unwrap()
                .contains("9 q heads")
        );
    }
}
