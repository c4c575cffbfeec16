//! API keys and their limits, at one gateway and at several.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::unfold;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::{Method, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use llamero_gateway::Settings;
use llamero_gateway::keys::KeyStore;
use llamero_identity::connect::Link;
use llamero_proto::v1::FinishReason;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;

use crate::support::client::{Reply, get, send_with};
use crate::support::worker::Worker;
use crate::support::{MODEL, Served, chat, found, gateway, soon, streamed};

const ALICE: &str = "sk-alice-0123456789";
const BOB: &str = "sk-bob-0123456789ab";

/// A file with two keys, the first of which has these fields besides.
struct Keys {
    _folder: TempDir,
    path: PathBuf,
}

impl Keys {
    fn new(fields: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        let keys = Self {
            _folder: folder,
            path,
        };
        keys.write(fields);
        keys
    }

    fn write(&self, fields: &str) {
        let text = format!("keys:\n- {{name: alice, key: {ALICE}{fields}}}\n- {{name: bob, key: {BOB}}}\n");
        std::fs::write(&self.path, text).unwrap();
    }
}

fn settings(path: &Path) -> Settings {
    Settings {
        keys: Some(Arc::new(KeyStore::load(path).unwrap())),
        quota_patience: Duration::from_secs(20),
        ..Settings::default()
    }
}

async fn ask(served: &Served, key: &str, body: Value) -> Reply {
    let key = format!("Bearer {key}");
    let headers = [("authorization", key.as_str())];
    let path = "/v1/chat/completions";
    send_with(served.http, Method::POST, path, &headers, body.to_string()).await
}

/// The status of a request, which the worker answers with so many tokens if it is let in.
async fn status(served: &Served, worker: &mut Worker, key: &str, tokens: usize) -> StatusCode {
    let request = ask(served, key, streamed(false));
    let answering = async {
        let call = worker.call().await;
        call.answer(&vec!["x"; tokens]).await;
    };
    tokio::pin!(request, answering);
    let reply = tokio::select! {
        reply = &mut request => reply,
        () = &mut answering => request.await,
    };
    reply.status()
}

#[tokio::test]
async fn only_holders_of_keys_are_served() {
    let keys = Keys::new("");
    let served = gateway(settings(&keys.path)).await;
    let mut worker = Worker::start();
    served.publish(MODEL, &[worker.address]);
    let missing = get(served.http, "/v1/models").await;
    assert_eq!(
        (missing.status(), missing.header("www-authenticate")),
        (StatusCode::UNAUTHORIZED, Some("Bearer"))
    );
    assert_eq!(missing.json().await["error"]["code"], "invalid_api_key");
    let wrong = ask(&served, "sk-nobody", streamed(false)).await;
    let message = wrong.json().await["error"]["message"].to_string();
    assert!(
        message.contains("not known") && !message.contains("nobody"),
        "{message}"
    );
    assert_eq!(status(&served, &mut worker, ALICE, 3).await, StatusCode::OK);
    // The page, which asks for a key, is open.
    assert_eq!(get(served.http, "/").await.status(), StatusCode::OK);
    let header = [("x-api-key", BOB)];
    let models = send_with(served.http, Method::GET, "/v1/models", &header, "").await;
    assert_eq!(models.status(), StatusCode::OK);

    let metrics = get(served.health, "/metrics").await.text().await;
    for line in [
        "llamero_gateway_key_requests_total{key=\"alice\",model=\"org/smol\",status=\"200\"} 1",
        "llamero_gateway_key_tokens_total{key=\"alice\",model=\"org/smol\",kind=\"prompt\"} 5",
        "llamero_gateway_key_tokens_total{key=\"alice\",model=\"org/smol\",kind=\"output\"} 3",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert!(!metrics.contains("sk-"), "{metrics}");
    // A key that is gone is refused, and what was counted of it is forgotten.
    keys.write("");
    std::fs::write(&keys.path, format!("keys: [{{name: bob, key: {BOB}}}]")).unwrap();
    let book = served.gateway.settings.keys.clone().unwrap();
    assert!(book.reload().unwrap());
    served.gateway.keys_changed(&book);
    let reply = ask(&served, ALICE, streamed(false)).await;
    assert_eq!(reply.status(), StatusCode::UNAUTHORIZED);
    let metrics = get(served.health, "/metrics").await.text().await;
    assert!(!metrics.contains("alice"), "{metrics}");
}

/// A client that sends its body while it is refused hears why: nothing resets its stream.
#[tokio::test]
async fn over_http2_a_refused_request_may_still_be_sent() {
    let keys = Keys::new("");
    let served = gateway(settings(&keys.path)).await;
    let stream = tokio::net::TcpStream::connect(served.http).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut client, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let mut refused = async || {
        let (body, frames) = tokio::sync::mpsc::channel(1);
        let frames = Box::pin(unfold(frames, async |mut frames: Receiver<_>| {
            Some((frames.recv().await?, frames))
        }));
        let request = hyper::Request::post(format!("http://{}/v1/completions", served.http));
        let request = request.body(StreamBody::new(frames)).unwrap();
        client.ready().await.unwrap();
        let reply = client.send_request(request).await.unwrap();
        assert_eq!(reply.status(), StatusCode::UNAUTHORIZED);
        assert!(!reply.into_body().collect().await.unwrap().to_bytes().is_empty());
        body
    };
    let body = refused().await;
    // Whatever the gateway sent behind its first answer has come when the second one has.
    let _second = refused().await;
    for _ in 0..3 {
        let frame = Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"{}")));
        body.send(frame).await.expect("the stream was reset");
    }
}

#[tokio::test]
async fn a_key_sees_its_own_models_and_namespaces() {
    let keys = Keys::new(", namespaces: [team, '*'], models: ['org/*']");
    let served = gateway(settings(&keys.path)).await;
    let mut worker = Worker::start();
    let mut own = found(MODEL, &[worker.address]);
    own.key.namespace = "team".to_owned();
    let mut other = found(MODEL, &[]);
    other.created = 1;
    let mut secret = found("secret", &[]);
    secret.key.name = "secret".to_owned();
    served.gateway.publish(vec![own, other, secret]);
    assert_eq!(status(&served, &mut worker, ALICE, 1).await, StatusCode::OK);
    let list = async |key: &str| {
        let headers = [("x-api-key", key)];
        let reply = send_with(served.http, Method::GET, "/v1/models", &headers, "").await;
        let data = reply.json().await["data"].clone();
        let ids: Vec<Value> = data
            .as_array()
            .unwrap()
            .iter()
            .map(|model| model["id"].clone())
            .collect();
        ids
    };
    assert_eq!(list(ALICE).await, [json!(MODEL)]);
    assert_eq!(list(BOB).await, [json!(MODEL), json!("secret")]);
    let mut body = streamed(false);
    body["model"] = json!("secret");
    let hidden = ask(&served, ALICE, body).await;
    assert_eq!(hidden.status(), StatusCode::NOT_FOUND);
    assert_eq!(hidden.json().await["error"]["code"], "model_not_found");
}

#[tokio::test]
async fn requests_a_minute_are_limited_and_told() {
    let keys = Keys::new(", limits: {requestsPerMinute: 2, tokensPerMinute: 100000}");
    let served = gateway(settings(&keys.path)).await;
    let mut worker = Worker::start();
    served.publish(MODEL, &[worker.address]);
    let (reply, ()) = tokio::join!(ask(&served, ALICE, streamed(false)), async {
        worker.call().await.answer(&["x"]).await;
    });
    let told = |name: &str| reply.header(name).unwrap_or_default().to_owned();
    assert_eq!(told("x-ratelimit-limit-requests"), "2");
    assert_eq!(told("x-ratelimit-remaining-requests"), "1");
    assert_eq!(told("x-ratelimit-limit-tokens"), "100000");
    assert!(told("x-ratelimit-reset-requests").ends_with('s'));
    assert_eq!(status(&served, &mut worker, ALICE, 1).await, StatusCode::OK);
    let refused = ask(&served, ALICE, streamed(true)).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=61).contains(&wait), "{wait}");
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), Some("0"));
    let error = refused.json().await["error"].clone();
    assert_eq!(
        (&error["code"], &error["type"]),
        (&json!("rate_limit_exceeded"), &json!("requests"))
    );
    // Others are not touched, and who has no limits is told none.
    let (reply, ()) = tokio::join!(ask(&served, BOB, streamed(false)), async {
        worker.call().await.answer(&["x"]).await;
    });
    assert_eq!(
        (reply.status(), reply.header("x-ratelimit-limit-requests")),
        (StatusCode::OK, None)
    );
}

#[tokio::test]
async fn tokens_are_corrected_when_the_answer_ends() {
    // A request counts some 257 tokens before its answer is known, and 6 when it is.
    let keys = Keys::new(", limits: {tokensPerMinute: 600}");
    let served = gateway(settings(&keys.path)).await;
    let mut worker = Worker::start();
    served.publish(MODEL, &[worker.address]);
    for _ in 0..5 {
        assert_eq!(status(&served, &mut worker, ALICE, 1).await, StatusCode::OK);
    }
    // The answer is longer than anybody knew.
    assert_eq!(status(&served, &mut worker, ALICE, 580).await, StatusCode::OK);
    let refused = ask(&served, ALICE, streamed(false)).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.json().await["error"]["type"], "tokens");
}

#[tokio::test]
async fn a_place_is_free_again_when_its_request_ends() {
    let keys = Keys::new(", limits: {concurrency: 1}");
    let served = gateway(settings(&keys.path)).await;
    let mut worker = Worker::start();
    served.publish(MODEL, &[worker.address]);
    let (mut reply, mut answering) = tokio::join!(ask(&served, ALICE, streamed(true)), async {
        let mut answering = worker.call().await.accept().await;
        answering.send("a", &[1], None).await;
        answering
    });
    assert_eq!(reply.piece().await.unwrap(), "a");
    let refused = ask(&served, ALICE, streamed(false)).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.json().await["error"]["type"], "concurrency");
    answering.send("b", &[2], Some(FinishReason::Stop)).await;
    while reply.event().await.is_some() {}
    assert_eq!(status(&served, &mut worker, ALICE, 1).await, StatusCode::OK);
    // A client that goes away gives its place back too.
    let (reply, answering) = tokio::join!(ask(&served, ALICE, streamed(true)), async {
        let mut answering = worker.call().await.accept().await;
        answering.send("a", &[1], None).await;
        answering
    });
    reply.hang_up();
    answering.cancelled().await;
    assert_eq!(status(&served, &mut worker, ALICE, 1).await, StatusCode::OK);
}

/// Three gateways that know each other.
async fn three(keys: &Keys, worker: &Worker) -> Vec<Served> {
    let mut all = Vec::new();
    for _ in 0..3 {
        let served = gateway(settings(&keys.path)).await;
        served.publish(MODEL, &[worker.address]);
        all.push(served);
    }
    let addresses: Vec<String> = all.iter().map(|served| served.grpc.to_string()).collect();
    for (served, own) in all.iter().zip(&addresses) {
        served.gateway.quotas.set_peers(own, &addresses);
    }
    all
}

#[tokio::test]
async fn limits_hold_over_all_gateways() {
    let keys = Keys::new(", limits: {requestsPerMinute: 100, concurrency: 4}");
    let mut worker = Worker::start();
    let all = three(&keys, &worker).await;
    // What the gateways did before they knew each other is unknown, so the first minute counts as spent.
    for served in &all {
        let refused = ask(served, ALICE, streamed(false)).await;
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    }
    // The keeper's books are cleared, as a minute would.
    for served in &all {
        served.gateway.quotas.ledger.forget_others();
    }
    let mut statuses = Vec::new();
    for turn in 0..150 {
        statuses.push(status(&all[turn % 3], &mut worker, ALICE, 1).await);
    }
    let served = statuses
        .iter()
        .filter(|status| **status == StatusCode::OK)
        .count();
    assert_eq!(served, 100, "of 150 requests in a minute, 100 are allowed");
    assert!(statuses[..100].iter().all(|status| *status == StatusCode::OK));
}

#[tokio::test]
async fn tokens_a_minute_hold_over_all_gateways_that_are_asked_at_once() {
    const LIMIT: u64 = 1000;
    let keys = Keys::new(&format!(", limits: {{tokensPerMinute: {LIMIT}}}"));
    let mut worker = Worker::start();
    let all = three(&keys, &worker).await;
    for served in &all {
        served.gateway.quotas.ledger.forget_others();
    }
    let answering = tokio::spawn(async move {
        while let Some(call) = worker.next_call().await {
            call.answer(&["x"; 5]).await;
        }
    });
    // Clients at every gateway race for what is left, and an answer has more tokens than is known when it is let in.
    let clients = (0..6).map(|client| {
        let served = &all[client % 3];
        async move {
            let (mut tokens, mut refused) = (0, 0);
            for _ in 0..40 {
                let reply = ask(served, ALICE, chat(json!({"max_tokens": 5}))).await;
                if reply.status() == StatusCode::TOO_MANY_REQUESTS {
                    refused += 1;
                    continue;
                }
                assert_eq!(reply.status(), StatusCode::OK);
                tokens += reply.json().await["usage"]["total_tokens"].as_u64().unwrap();
            }
            (tokens, refused)
        }
    });
    let counted = join_all(clients).await;
    let tokens: u64 = counted.iter().map(|(tokens, _)| tokens).sum();
    assert!(
        (LIMIT * 9 / 10..=LIMIT * 11 / 10).contains(&tokens),
        "{tokens} tokens of {LIMIT}: {counted:?}"
    );
    assert!(counted.iter().all(|(_, refused)| *refused > 0), "{counted:?}");
    answering.abort();
}

#[tokio::test]
async fn requests_at_once_are_counted_over_all_gateways() {
    let keys = Keys::new(", limits: {concurrency: 4}");
    let mut worker = Worker::start();
    let all = three(&keys, &worker).await;
    let mut running = Vec::new();
    for turn in 0..4 {
        let (mut reply, answering) = tokio::join!(ask(&all[turn % 3], ALICE, streamed(true)), async {
            let mut answering = worker.call().await.accept().await;
            answering.send("a", &[1], None).await;
            answering
        });
        assert_eq!(reply.piece().await.unwrap(), "a");
        running.push((reply, answering));
    }
    for served in &all {
        let refused = ask(served, ALICE, streamed(false)).await;
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    }
    let (mut reply, mut answering) = running.pop().unwrap();
    answering.send("b", &[2], Some(FinishReason::Stop)).await;
    while reply.event().await.is_some() {}
    // The keeper is told in the background.
    soon(async {
        loop {
            let request = ask(&all[1], ALICE, streamed(false));
            let answering = async { worker.call().await.answer(&["x"]).await };
            tokio::pin!(request, answering);
            let reply = tokio::select! {
                reply = &mut request => reply,
                () = &mut answering => request.await,
            };
            if reply.status() == StatusCode::OK {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_gateway_whose_keeper_is_gone_admits_its_share() {
    let keys = Keys::new(", limits: {requestsPerMinute: 9}");
    let mut worker = Worker::start();
    let served = gateway(settings(&keys.path)).await;
    served.publish(MODEL, &[worker.address]);
    // Two gateways that are not there; one of the names makes one of them the keeper of the key.
    let own = served.grpc.to_string();
    let gone: Vec<String> = (0..2).map(|port| format!("127.0.0.1:{}", 1 + port)).collect();
    let keeper_is_gone = |own: &str| {
        use llamero_gateway::quota::peers::{Keeper, Peers};
        matches!(
            Peers::new(own, &gone, &Peers::default(), &Link::Plain).keeper("alice"),
            Keeper::There(_)
        )
    };
    let own = (0..)
        .map(|index| format!("{own}{index}"))
        .find(|own| keeper_is_gone(own))
        .unwrap();
    served.gateway.quotas.set_peers(&own, &gone);
    served.gateway.quotas.ledger.forget_others();
    let mut allowed = 0;
    for _ in 0..6 {
        allowed += usize::from(status(&served, &mut worker, ALICE, 1).await == StatusCode::OK);
    }
    assert_eq!(allowed, 3, "a third of the limit");
}
