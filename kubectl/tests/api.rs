//! The commands against a stand-in of the API server and of a gateway, over real HTTP. The real ones are asked in the end-to-end tests.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{Method, StatusCode, Uri},
};
use kube::{Client, Config};
use kubectl_llamero::{
    cluster::{Cluster, list},
    exit::Code,
    options::{Cli, Command},
    paint::Paint,
    plan::file,
    restart, revisions, run,
};
use llamero_api::LlamaDeployment;
use serde_json::{Value, json};

type Answer = fn(&Method, &Uri, &Value) -> (u16, String);

#[derive(Clone)]
struct StandIn {
    answer: Answer,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl StandIn {
    async fn start(answer: Answer) -> (SocketAddr, Self) {
        let stand_in = Self {
            answer,
            asked: Arc::default(),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answered).with_state(stand_in.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (address, stand_in)
    }

    fn asked(&self) -> Vec<(String, Value)> {
        self.asked.lock().unwrap().clone()
    }
}

async fn answered(
    State(this): State<StandIn>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> (StatusCode, String) {
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    this.asked
        .lock()
        .unwrap()
        .push((format!("{method} {uri}"), body.clone()));
    let (code, text) = (this.answer)(&method, &uri, &body);
    (StatusCode::from_u16(code).unwrap(), text)
}

fn cluster(address: SocketAddr) -> Cluster {
    let config = Config::new(format!("http://{address}").parse().unwrap());
    Cluster {
        client: Client::try_from(config).unwrap(),
        namespace: "chat".into(),
    }
}

fn object(name: &str) -> Value {
    json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment", "metadata": {"name": name, "namespace": "chat", "uid": "u"},
        "spec": {"model": {"source": {"hostPath": {"path": "/m"}}}, "parallelism": {"tensor": 1}}})
}

fn refusal(code: u16, message: &str) -> (u16, String) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "R", "message": message});
    (code, status.to_string())
}

fn args(line: &str) -> Command {
    let words = ["kubectl-llamero"]
        .into_iter()
        .chain(line.split_ascii_whitespace());
    <Cli as clap::Parser>::try_parse_from(words).unwrap().command
}

#[tokio::test]
async fn lists_are_read_to_their_last_page() {
    let (address, _) = StandIn::start(|_, uri, _| {
        let more = !uri.query().unwrap_or_default().contains("continue=two");
        let (name, token) = if more { ("a", "two") } else { ("b", "") };
        let page = json!({"kind": "LlamaDeploymentList", "apiVersion": "llamero.dev/v1alpha1", "metadata": {"continue": token}, "items": [object(name)]});
        (200, page.to_string())
    })
    .await;
    let api = cluster(address).api::<LlamaDeployment>(true);
    let names: Vec<_> = list::all(&api, "llamadeployments").await.unwrap();
    let names: Vec<_> = names
        .into_iter()
        .filter_map(|object| object.metadata.name)
        .collect();
    assert_eq!(names, ["a", "b"]);
}

#[tokio::test]
async fn a_file_is_checked_by_the_api_server_and_changes_nothing() {
    let (address, stand_in) = StandIn::start(|_, uri, _| match uri.path().rsplit('/').next() {
        Some("good") => (200, object("good").to_string()),
        Some("forbidden") => refusal(403, "no"),
        _ => refusal(422, "spec.parallelism.tensor: Invalid value: 0"),
    })
    .await;
    let cluster = cluster(address);
    let checked = file::checked(&cluster, vec![object("good"), object("forbidden")])
        .await
        .unwrap();
    assert_eq!(checked.len(), 2);
    let (line, _) = &stand_in.asked()[0];
    assert!(
        line.contains("dryRun=All") && line.contains("fieldValidation=Strict"),
        "{line}"
    );
    let refused = file::checked(&cluster, vec![object("wrong")]).await.unwrap_err();
    assert!(refused.to_string().contains("Invalid value"), "{refused}");
}

#[tokio::test]
async fn rollback_and_restart_write_one_field_each() {
    let (address, stand_in) = StandIn::start(|method, uri, _| match (method.as_str(), uri.path().rsplit('/').next()) {
        ("GET", Some("controllerrevisions")) => {
            let template = json!({"modelName": "m", "source": {"hostPath": {"path": "/m"}}, "maxContextLength": 2048, "tensor": 1,
                "pipeline": 1, "ranksPerPod": 1, "kvBytesPerRank": 1, "weightBytesPerRank": 1, "stallTimeout": "30s"});
            let owner = json!([{"apiVersion": "v1", "kind": "LlamaDeployment", "name": "llama", "uid": "u", "controller": true}]);
            let one = json!({"metadata": {"name": "llama-abc", "labels": {"llamero.dev/revision": "abc"}, "ownerReferences": owner},
                "revision": 1, "data": {"template": template}});
            (200, json!({"kind": "ControllerRevisionList", "apiVersion": "apps/v1", "metadata": {}, "items": [one]}).to_string())
        }
        ("GET", Some("llamagroups")) => {
            (200, json!({"kind": "LlamaGroupList", "apiVersion": "llamero.dev/v1alpha1", "metadata": {}, "items": []}).to_string())
        }
        _ => (200, object("llama").to_string()),
    })
    .await;
    let cluster = cluster(address);
    let Command::Rollback(to) = args("rollback llama --to 1") else {
        panic!()
    };
    assert_eq!(
        revisions::run(&cluster, &to, Paint::plain()).await.unwrap(),
        Code::Done
    );
    let Command::Rollback(forward) = args("rollback llama --forward --dry-run") else {
        panic!()
    };
    revisions::run(&cluster, &forward, Paint::plain()).await.unwrap();
    let Command::Restart(again) = args("restart llama") else {
        panic!()
    };
    restart::run(&cluster, &again).await.unwrap();
    let patches: Vec<_> = stand_in
        .asked()
        .into_iter()
        .filter(|(line, _)| line.starts_with("PATCH"))
        .collect();
    assert_eq!(patches[0].1, json!({"spec": {"rollout": {"revision": "abc"}}}));
    assert_eq!(patches[1].1, json!({"spec": {"rollout": {"revision": null}}}));
    assert!(patches[1].0.contains("dryRun=All"), "{}", patches[1].0);
    let at = patches[2].1["spec"]["rollout"]["restartedAt"].as_str().unwrap();
    assert!(at.ends_with('Z'), "{at}");
}

#[test]
fn a_chat_asks_the_gateway_by_the_name_that_is_nobody_elses() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (api, _) = runtime.block_on(StandIn::start(|_, _, _| (200, object("llama").to_string())));
    let (gateway, asked) = runtime.block_on(StandIn::start(|_, _, body| {
        if body["messages"][0]["content"] == "refuse" {
            return (401, json!({"error": {"message": "an API key is missing"}}).to_string());
        }
        let events = "data: {\"choices\":[{\"delta\":{\"content\":\"a kind of camel\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
        (200, events.to_owned())
    }));
    let ask = |prompt: &str| {
        let Command::Chat(args) = args(&format!("chat llama --url http://{gateway} -p {prompt}")) else {
            panic!()
        };
        kubectl_llamero::chat::run(&runtime, &cluster_in(&runtime, api), &args)
    };
    assert_eq!(ask("llama").unwrap(), Code::Done);
    let (line, body) = asked.asked().remove(0);
    assert_eq!(line, "POST /v1/chat/completions");
    assert_eq!(
        (&body["model"], &body["stream"]),
        (&json!("chat/llama"), &json!(true))
    );
    let refused = ask("refuse").unwrap_err().to_string();
    assert!(
        refused.contains("an API key is missing") && refused.contains("--api-key-file"),
        "{refused}"
    );
}

fn cluster_in(runtime: &tokio::runtime::Runtime, address: SocketAddr) -> Cluster {
    let _entered = runtime.enter();
    cluster(address)
}

#[test]
fn completion_needs_no_cluster() {
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let words = ["kubectl-llamero", "completion", shell];
        let cli = <Cli as clap::Parser>::try_parse_from(words).unwrap();
        assert_eq!(run::run(&cli).unwrap(), Code::Done);
    }
}
