//! Effects against an API server that refuses, conflicts, and answers late to who is faster.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use llamero_api::{LlamaDeploymentStatus, LlamaGroupStatus, group::GroupPhase};
use llamero_core::{Action, Key, Step, observed::Settings, plan::EventKind, status::Reports};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use super::{
    Failure, Outcome, Refusals, Subject, Writer,
    calls::Channels,
    effects::{self, Tools},
    error::Remedy,
    peers::Peers,
    statuses::Statuses,
};
use crate::{
    events::Events,
    form_keys::FormKeys,
    lease::Leadership,
    links::Links,
    metrics::Metrics,
    mock::{Answer, ApiServer, failure},
    observe::{Model, seen_pod::Projection},
    wake::Wake,
    watch::{Caches, Change, Changes, Scope, Scopes},
};

const GROUP: &str = "/apis/llamero.dev/v1alpha1/namespaces/n/llamagroups/d-0";
const SCALE: &str = "/apis/llamero.dev/v1alpha1/namespaces/n/llamadeployments/d/scale";
const PODS: &str = "/api/v1/namespaces/n/pods";

fn key(name: &str) -> Key {
    Key {
        namespace: "n".into(),
        name: name.into(),
    }
}

fn owner(kind: &str, name: &str, uid: &str) -> Value {
    json!([{"apiVersion": "llamero.dev/v1alpha1", "kind": kind, "name": name, "uid": uid, "controller": true}])
}

fn group_json(version: &str) -> Value {
    json!({
        "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaGroup",
        "metadata": {"name": "d-0", "namespace": "n", "uid": "g", "resourceVersion": version,
            "ownerReferences": owner("LlamaDeployment", "d", "d-uid")},
        "spec": {"deployment": "d", "revision": "r", "generation": 0,
            "members": [{"index": 0, "attempt": 0, "node": "a", "placedAt": "2026-01-01T00:00:00Z"}],
            "template": {"modelName": "m", "source": {"hostPath": {"path": "/w"}}, "maxContextLength": 1, "tensor": 1, "pipeline": 1,
                "ranksPerPod": 1, "kvBytesPerRank": 1, "weightBytesPerRank": 1, "stallTimeout": "1s", "worker": {"image": "w"}}},
    })
}

/// A deployment with one placed group whose pod is still to be made.
fn model() -> Model {
    let deployment = json!({
        "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
        "metadata": {"name": "d", "namespace": "n", "uid": "d-uid", "resourceVersion": "3"},
        "spec": {"model": {"source": {"hostPath": {"path": "/w"}}}, "parallelism": {"tensor": 1},
            "placement": {"deadline": "999999h"}},
    });
    let mut model = Model::default();
    model.take(Changes {
        deployments: vec![Change {
            before: None,
            after: Some(std::sync::Arc::new(serde_json::from_value(deployment).unwrap())),
        }],
        groups: vec![Change {
            before: None,
            after: Some(std::sync::Arc::new(
                serde_json::from_value(group_json("7")).unwrap(),
            )),
        }],
        ..Changes::default()
    });
    model
}

fn caches(client: &kube::Client) -> Caches {
    let pods = Projection::new("system", "app=gateway".parse().unwrap());
    let scopes = Scopes {
        served: Scope::of(Some(["n".to_owned()].into())),
        gateways: "system".to_owned(),
        reads_cluster: true,
        reads_volumes: false,
    };
    Caches::start(client, &scopes, pods, &Wake::default())
}

/// All chains of these steps, one after another.
async fn apply(tools: &Tools<'_>, steps: Vec<Step>) -> Outcome {
    let mut all = Outcome::default();
    for chain in effects::chains(tools.index, steps) {
        let one = effects::run_chain(tools, chain).await;
        all.applied.extend(one.applied);
        all.failures.extend(one.failures);
    }
    all
}

async fn run(answers: Vec<Answer>, actions: Vec<Action>) -> (Outcome, ApiServer) {
    let (outcomes, server, _) = run_all(answers, vec![actions]).await;
    (outcomes.into_iter().next().unwrap(), server)
}

/// Passes of one operator.
async fn run_all(answers: Vec<Answer>, passes: Vec<Vec<Action>>) -> (Vec<Outcome>, ApiServer, Peers) {
    let (client, server) = ApiServer::start(answers).await;
    let leadership = Leadership::held_for_tests();
    let writer = Writer::new(client.clone(), leadership.clone(), caches(&client));
    let events = Events::start(client, "test".into());
    let metrics = Metrics::register(&mut Registry::default());
    let peers = Peers::new(leadership, metrics.clone(), Wake::default());
    let model = model();
    let tools = Tools {
        writer: &writer,
        index: model.index(),
        channels: &Channels::new(),
        peers: &peers,
        events: &events,
        metrics: &metrics,
        settings: &Settings::default(),
        keys: &FormKeys::new([1; 32]),
    };
    let mut outcomes = Vec::new();
    for actions in passes {
        let steps: Vec<Step> = actions
            .into_iter()
            .map(|action| Step {
                action,
                reason: "Test",
                message: "test".into(),
                event: EventKind::None,
            })
            .collect();
        outcomes.push(apply(&tools, steps).await);
    }
    (outcomes, server, peers)
}

fn scale() -> Action {
    Action::ScaleDeployment {
        deployment: key("d"),
        deployment_uid: "d-uid".into(),
        resource_version: "3".into(),
        replicas: 4,
    }
}

fn write_group() -> Action {
    let mut group: llamero_api::LlamaGroup = serde_json::from_value(group_json("7")).unwrap();
    group.spec.generation = 1;
    Action::WriteGroup {
        group: key("d-0"),
        resource_version: "7".into(),
        spec: Box::new(group.spec),
        confirm: llamero_core::plan::Confirm::default(),
    }
}

fn create_pod() -> Action {
    Action::CreatePod {
        group: key("d-0"),
        name: "d-0-0-0".into(),
        index: 0,
        attempt: 0,
    }
}

fn remedies(outcome: &Outcome) -> Vec<Remedy> {
    outcome.failures.iter().map(|failure| failure.remedy).collect()
}

#[tokio::test]
async fn the_number_of_groups_is_written_through_scale_with_the_version_that_was_read() {
    let written = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d", "resourceVersion": "4"}});
    let (outcome, server) = run(vec![("PUT", SCALE, 200, written)], vec![scale()]).await;
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    let asked = server.asked();
    let asked = asked.iter().find(|asked| asked.path == SCALE).unwrap();
    assert_eq!(asked.body["spec"]["replicas"], 4);
    assert_eq!(
        (
            &asked.body["metadata"]["resourceVersion"],
            &asked.body["metadata"]["uid"]
        ),
        (&json!("3"), &json!("d-uid"))
    );
    let conflict = failure(409, "Conflict", "the object has been modified");
    let (outcome, _) = run(vec![("PUT", SCALE, 409, conflict)], vec![scale()]).await;
    assert_eq!(remedies(&outcome), [Remedy::Decide]);
}

#[tokio::test]
async fn a_group_is_patched_where_it_differs_and_a_lost_race_is_decided_again() {
    let (outcome, server) = run(vec![("PATCH", GROUP, 200, group_json("8"))], vec![write_group()]).await;
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    let asked = server.asked();
    let asked = asked.iter().find(|asked| asked.path == GROUP).unwrap();
    assert_eq!(asked.content_type, "application/json-patch+json");
    assert_eq!(
        asked.body,
        json!([
            {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
            {"op": "replace", "path": "/spec/generation", "value": 1},
        ])
    );
    let lost = failure(
        422,
        "Invalid",
        "the server rejected our request due to an error in our request",
    );
    let (outcome, _) = run(vec![("PATCH", GROUP, 422, lost)], vec![write_group()]).await;
    assert_eq!(remedies(&outcome), [Remedy::Decide]);
    let mut invalid = failure(
        422,
        "Invalid",
        "LlamaGroup is invalid: spec.generation only grows",
    );
    invalid["details"] =
        json!({"causes": [{"reason": "FieldValueInvalid", "message": "only grows", "field": "spec"}]});
    let (outcome, _) = run(vec![("PATCH", GROUP, 422, invalid)], vec![write_group()]).await;
    assert_eq!(remedies(&outcome), [Remedy::User]);
}

#[tokio::test]
async fn a_quota_s_refusal_is_input_of_the_next_decision_and_releases_the_room() {
    let quota = failure(
        403,
        "Forbidden",
        "pods \"d-0-0-0\" is forbidden: exceeded quota: gpus",
    );
    let (outcome, _) = run(
        vec![("POST", PODS, 403, quota)],
        vec![create_pod(), write_group()],
    )
    .await;
    let [
        Failure {
            subject,
            target,
            remedy,
            ..
        },
    ] = outcome.failures.as_slice()
    else {
        panic!("one failure ends the chain: {:?}", outcome.failures)
    };
    assert_eq!(
        (subject, target.as_str(), *remedy),
        (&Subject::Group(key("d-0")), "CreatePod d-0-0-0", Remedy::User)
    );

    let now = Timestamp::now();
    let mut refusals = Refusals::default();
    refusals.record(&outcome, now.as_millisecond());
    let mut model = model();
    let now = now.as_millisecond();
    model.refresh(
        &mut Links::new(&Wake::default(), None),
        &Settings::default(),
        &refusals,
        now,
    );
    let plan = model.pass(now);
    let rolled_back = plan
        .steps
        .iter()
        .find(|step| step.reason == "RolledBack")
        .unwrap();
    assert!(
        rolled_back.message.contains("exceeded quota: gpus"),
        "{}",
        rolled_back.message
    );
    assert!(
        plan.steps
            .iter()
            .all(|step| !matches!(step.action, Action::CreatePod { .. }))
    );
    let status = model.report(&plan, now);
    let degraded = status
        .deployments
        .values()
        .flat_map(|status| &status.conditions)
        .find(|c| c.type_ == "Degraded")
        .unwrap();
    assert_eq!(
        (degraded.status.as_str(), degraded.reason.as_str()),
        ("True", "Refused")
    );
}

#[tokio::test]
async fn outages_are_tried_again_and_remembered_by_nobody() {
    for (code, reason) in [(500, "InternalError"), (429, "TooManyRequests")] {
        let (outcome, _) = run(
            vec![("POST", PODS, code, failure(code, reason, "later"))],
            vec![create_pod()],
        )
        .await;
        assert_eq!(remedies(&outcome), [Remedy::Retry], "{code}");
        let mut refusals = Refusals::default();
        refusals.record(&outcome, 0);
        assert!(refusals.of(&Subject::Group(key("d-0"))).is_empty());
    }
}

#[tokio::test]
async fn a_pod_of_our_group_that_exists_already_is_success_and_a_foreign_one_is_not() {
    let exists = || failure(409, "AlreadyExists", "pods \"d-0-0-0\" already exists");
    let pod = |uid: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "d-0-0-0", "namespace": "n", "uid": "p",
            "resourceVersion": "9", "ownerReferences": owner("LlamaGroup", "d-0", uid)}})
    };
    let found = "/api/v1/namespaces/n/pods/d-0-0-0";
    let (outcome, _) = run(
        vec![("POST", PODS, 409, exists()), ("GET", found, 200, pod("g"))],
        vec![create_pod()],
    )
    .await;
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    let (outcome, _) = run(
        vec![("POST", PODS, 409, exists()), ("GET", found, 200, pod("x"))],
        vec![create_pod()],
    )
    .await;
    assert_eq!(remedies(&outcome), [Remedy::User]);
}

const LIST: &str = "GET";

fn pod_json(name: &str, uid: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "n", "uid": uid,
        "resourceVersion": "9", "ownerReferences": owner("LlamaGroup", "d-0", "g")}})
}

/// Records the pod with this UID, or replaces one that is gone.
fn confirmed(present: &[&str], gone: &[&str]) -> Action {
    let own = |uids: &[&str]| uids.iter().map(|uid| (*uid).to_owned()).collect();
    let Action::WriteGroup {
        group,
        resource_version,
        spec,
        ..
    } = write_group()
    else {
        panic!()
    };
    Action::WriteGroup {
        group,
        resource_version,
        spec,
        confirm: llamero_core::plan::Confirm {
            present: own(present),
            gone: own(gone),
        },
    }
}

#[tokio::test]
async fn the_answer_to_a_creation_proves_that_the_pod_exists_and_a_restart_asks() {
    let list = |uids: &[&str]| {
        let items: Vec<Value> = uids.iter().map(|uid| pod_json("d-0-0-0", uid)).collect();
        (
            LIST,
            PODS,
            200,
            json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items}),
        )
    };
    let written = || ("PATCH", GROUP, 200, group_json("8"));
    let lists = |server: &ApiServer| {
        let asked = server.asked();
        asked
            .iter()
            .filter(|a| a.method == LIST && a.path == PODS)
            .count()
    };
    // What was created by this process needs no question.
    let created = ("POST", PODS, 201, pod_json("d-0-0-0", "p"));
    let passes = vec![vec![create_pod()], vec![confirmed(&["p"], &[])]];
    let (outcomes, server, _) = run_all(vec![created.clone(), written()], passes).await;
    assert!(outcomes.iter().all(|o| o.failures.is_empty()), "{outcomes:?}");
    assert_eq!(lists(&server), 0);
    // A new process does not know it, and asks; so does one that lost a pod.
    for (present, gone, there, remedies_wanted) in [
        (&["p"][..], &[][..], &["p"][..], vec![]),
        (&["p"][..], &[][..], &[][..], vec![Remedy::Decide]),
        (&[][..], &["p"][..], &["p"][..], vec![Remedy::Decide]),
        (&[][..], &["p"][..], &[][..], vec![]),
    ] {
        let (outcome, server) = run(vec![list(there), written()], vec![confirmed(present, gone)]).await;
        assert_eq!(
            remedies(&outcome),
            remedies_wanted,
            "{present:?} {gone:?} {there:?}"
        );
        assert_eq!(lists(&server), 1);
    }
    // A pod that was deleted again is proved no longer.
    let delete = Action::DeletePod {
        owner: key("d-0"),
        pod: llamero_core::plan::PodRef {
            key: key("d-0-0-0"),
            uid: "p".into(),
        },
        grace_seconds: None,
    };
    let passes = vec![vec![create_pod()], vec![delete], vec![confirmed(&["p"], &[])]];
    let (outcomes, server, _) = run_all(vec![created, list(&[])], passes).await;
    assert_eq!(remedies(&outcomes[2]), [Remedy::Decide]);
    assert_eq!(lists(&server), 1);
}

#[tokio::test]
async fn a_pod_that_does_not_answer_form_holds_up_no_other_step() {
    // It takes connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let form = Action::Form {
        group: key("d-0"),
        group_uid: "g".into(),
        generation: 1,
        lost: vec![],
        members: vec![],
        targets: vec![llamero_core::plan::FormTarget {
            pod_uid: "dead".into(),
            ip: "127.0.0.1".into(),
        }],
    };
    let written = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d", "resourceVersion": "4"}});
    let (client, server) = ApiServer::start(vec![
        ("PUT", SCALE, 200, written),
        ("POST", PODS, 201, pod_json("d-0-0-0", "p")),
    ])
    .await;
    let leadership = Leadership::held_for_tests();
    let writer = Writer::new(client.clone(), leadership.clone(), caches(&client));
    let metrics = Metrics::register(&mut Registry::default());
    let peers = Peers::new(leadership, metrics.clone(), Wake::default());
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let channel = tonic::transport::Endpoint::from_shared(endpoint)
        .unwrap()
        .connect_lazy();
    let model = model();
    let tools = Tools {
        writer: &writer,
        index: model.index(),
        channels: &[("dead".to_owned(), channel)].into(),
        peers: &peers,
        events: &Events::start(client, "test".into()),
        metrics: &metrics,
        settings: &Settings::default(),
        keys: &FormKeys::new([1; 32]),
    };
    let steps: Vec<Step> = [form, create_pod(), scale()]
        .map(|action| Step {
            action,
            reason: "Test",
            message: "test".into(),
            event: EventKind::None,
        })
        .into();
    let outcome = apply(&tools, steps).await;
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    // Everything else is done, in the same group too, while the call still hangs.
    assert_eq!(server.asked().len(), 2);
    assert_eq!(peers.underway(), 1);
}

#[tokio::test]
async fn the_master_key_is_made_once_and_a_faster_operator_s_counts() {
    let secrets = "/api/v1/namespaces/system/secrets";
    let (client, server) = ApiServer::start(vec![(
        "POST",
        secrets,
        201,
        json!({"metadata": {"name": "keys"}}),
    )])
    .await;
    let made = FormKeys::load(&client, "system", "keys").await;
    let body = server.asked()[0].body.clone();
    let secret: k8s_openapi::api::core::v1::Secret = serde_json::from_value(body).unwrap();
    let bytes = secret.data.unwrap().remove("master-key").unwrap().0;
    let master: [u8; 32] = bytes.try_into().unwrap();
    assert_ne!(master, [0; 32]);
    assert_eq!(
        made.of_generation("g", 1),
        FormKeys::new(master).of_generation("g", 1)
    );

    let one = "/api/v1/namespaces/system/secrets/keys";
    let theirs = json!({"metadata": {"name": "keys"}, "data": {"master-key": "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="}});
    let (client, _) = ApiServer::start(vec![
        ("GET", one, 404, failure(404, "NotFound", "")),
        ("POST", secrets, 409, failure(409, "AlreadyExists", "exists")),
        ("GET", one, 200, theirs),
    ])
    .await;
    let taken = FormKeys::load(&client, "system", "keys").await;
    assert_eq!(
        taken.of_generation("g", 1),
        FormKeys::new([2; 32]).of_generation("g", 1)
    );
}

/// Also when the write of the group fails: the deployment is not said to be ready before its group names the leader.
#[tokio::test]
async fn a_deployment_is_told_after_its_groups() {
    const OF_GROUP: &str = "/apis/llamero.dev/v1alpha1/namespaces/n/llamagroups/d-0/status";
    const OF_DEPLOYMENT: &str = "/apis/llamero.dev/v1alpha1/namespaces/n/llamadeployments/d/status";
    let model = model();
    let serving = LlamaGroupStatus {
        phase: GroupPhase::Serving,
        ready: true,
        leader_address: Some("10.0.0.1:18051".into()),
        ..LlamaGroupStatus::default()
    };
    let ready = LlamaDeploymentStatus {
        ready_replicas: 1,
        ..LlamaDeploymentStatus::default()
    };
    let reports = Reports {
        groups: [(key("d-0"), serving)].into(),
        deployments: [(key("d"), ready)].into(),
    };
    let start = async |answers| {
        let (client, server) = ApiServer::start(answers).await;
        let writer = Writer::new(client.clone(), Leadership::held_for_tests(), caches(&client));
        let (metrics, wake) = (Metrics::register(&mut Registry::default()), Wake::default());
        (
            Statuses::new(Arc::new(writer), metrics, wake.clone()),
            server,
            wake,
        )
    };
    let written = async |(statuses, server, wake): &mut (Statuses, ApiServer, Wake)| {
        let later = statuses.begin(model.index(), reports.clone());
        if statuses.is_writing() {
            wake.woken().await;
        }
        let failed = statuses.settle();
        let asked = server.asked().into_iter().filter(|asked| asked.method == "PATCH");
        let paths: Vec<String> = asked.map(|asked| asked.path).collect();
        (paths, !later.is_empty() || !failed.is_empty())
    };
    let deployment = || {
        let object = serde_json::to_value(&**model.index().deployment(&key("d")).unwrap()).unwrap();
        ("PATCH", OF_DEPLOYMENT, 200, object)
    };
    let outage = || ("PATCH", OF_GROUP, 500, failure(500, "InternalError", "later"));

    let mut failing = start(vec![outage(), outage(), deployment()]).await;
    let (paths, again) = written(&mut failing).await;
    assert_eq!((paths.as_slice(), again), (&[OF_GROUP.to_owned()][..], true));
    // A moment later the group's turn is not tried again yet, or in vain on a slow machine.
    let (paths, again) = written(&mut failing).await;
    assert!(!paths.contains(&OF_DEPLOYMENT.to_owned()) && again, "{paths:?}");

    let group = ("PATCH", OF_GROUP, 200, group_json("8"));
    let mut well = start(vec![deployment(), group]).await;
    assert_eq!(
        written(&mut well).await,
        (vec![OF_GROUP.into(), OF_DEPLOYMENT.into()], false)
    );
}
