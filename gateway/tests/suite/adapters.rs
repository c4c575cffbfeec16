//! LoRA adapters are models of their own, by name.

use hyper::StatusCode;
use llamero_gateway::Settings;
use llamero_proto::v1::FinishReason;
use serde_json::{Value, json};
use tokio::time::{Duration, sleep, timeout};
use tonic::Status;

use crate::support::client::{get, post};
use crate::support::worker::Worker;
use crate::support::{MODEL, Served, chat, found, gateway, with_worker};

/// Far more than a sample takes; reached only by a bug.
const LONG: Duration = Duration::from_secs(60);

/// Wait until the list of models has these ids.
async fn listed(served: &Served, ids: &[&str]) -> Value {
    let asking = async {
        loop {
            let list = get(served.http, "/v1/models").await.json().await;
            let found: Vec<&str> = list["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|model| model["id"].as_str().unwrap())
                .collect();
            if found == ids {
                return list;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, asking).await.unwrap()
}

#[tokio::test]
async fn an_adapter_is_listed_with_its_model_and_answers_by_its_name() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    worker.tell_adapters(&["sql", "team/poet"]);
    let list = listed(&served, &[MODEL, "sql", "team/poet"]).await;
    let expected = json!({
        "id": "sql", "object": "model", "created": 7, "owned_by": "ns/smol", "root": MODEL, "parent": MODEL,
        "max_model_len": 4096
    });
    assert_eq!(list["data"][1], expected);
    assert_eq!(get(served.http, "/v1/models/sql").await.json().await, expected);
    for (asked, adapter) in [("sql", "sql"), ("ns/team/poet", "team/poet"), (MODEL, "")] {
        let request = post(served.http, "/v1/chat/completions", chat(json!({"model": asked})));
        let (reply, ()) = tokio::join!(request, async {
            let call = worker.call().await;
            assert_eq!(
                (call.request.model.as_str(), call.request.adapter.as_str()),
                (MODEL, adapter)
            );
            let mut answering = call.accept().await;
            answering.send("x", &[1], Some(FinishReason::Stop)).await;
        });
        let named = if adapter.is_empty() { MODEL } else { adapter };
        assert_eq!(reply.json().await["model"], named);
    }
    let body = json!({"model": "sql", "input": "text"});
    let reply = post(served.http, "/v1/embeddings", body).await;
    assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
    let error = reply.json().await;
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("adapter of org/smol"),
        "{error}"
    );

    // Unloaded, it is nobody's name any more; the model does not answer in its place.
    worker.tell_adapters(&[]);
    listed(&served, &[MODEL]).await;
    let reply = post(served.http, "/v1/chat/completions", chat(json!({"model": "sql"}))).await;
    assert_eq!(reply.status(), StatusCode::NOT_FOUND);
}

/// At zero replicas, too: a request for it wakes a group.
#[tokio::test]
async fn adapters_of_the_start_are_listed_before_a_group_serves() {
    let served = gateway(Settings::default()).await;
    let mut deployment = found(MODEL, &[]);
    deployment.adapters = vec!["sql".to_owned()];
    served.gateway.publish(vec![deployment]);
    listed(&served, &[MODEL, "sql"]).await;
}

/// A leader that lacks an adapter, or knows none, answers with the model as it is to nobody: another is asked.
#[tokio::test]
async fn a_leader_that_lacks_the_adapter_makes_way() {
    let served = gateway(Settings::default()).await;
    let (mut with, mut without, mut old) = (Worker::start(), Worker::start(), Worker::start());
    served.publish(MODEL, &[with.address, without.address, old.address]);
    with.tell_adapters(&["sql"]);
    listed(&served, &[MODEL, "sql"]).await;
    let asked = post(served.http, "/v1/chat/completions", chat(json!({"model": "sql"})));
    let workers = async {
        loop {
            tokio::select! {
                call = without.call() => call.refuse(Status::not_found("no adapter \"sql\"")),
                call = old.call() => drop(call.accept_as("base weights").await),
                call = with.call() => {
                    let mut answering = call.accept_as("base weights lora-1").await;
                    answering.send("x", &[1], Some(FinishReason::Stop)).await;
                    return;
                }
            }
        }
    };
    let (reply, ()) = tokio::join!(asked, workers);
    assert_eq!(reply.status(), StatusCode::OK);
    assert_eq!(reply.json().await["choices"][0]["message"]["content"], "x");
}

/// Also while none of its groups serves it: a request never goes to somebody else's adapter of that name.
#[tokio::test]
async fn who_declares_an_adapter_has_its_name() {
    let served = gateway(Settings::default()).await;
    let worker = Worker::start();
    let mut older = found("other", &[worker.address]);
    (older.key.namespace, older.created) = ("team".to_owned(), 1);
    let mut declares = found(MODEL, &[]);
    declares.adapters = vec!["sql".to_owned()];
    served.gateway.publish(vec![older, declares]);
    worker.tell_adapters(&["sql", "poet"]);
    let list = listed(&served, &[MODEL, "other", "poet", "sql"]).await;
    assert_eq!(list["data"][3]["parent"], MODEL, "{list}");
    assert_eq!(list["data"][2]["parent"], "other", "{list}");
}
