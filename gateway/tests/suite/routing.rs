//! Which leader a request goes to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::{Method, StatusCode};
use llamero_gateway::Settings;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vllm_proto::inference_client::InferenceClient;
use vllm_proto::{GenerateRequest, generate_request::Prompt};

use crate::support::client::{post, send_with};
use crate::support::worker::Worker;
use crate::support::{MODEL, Served, ask, asking, begun, chat, found, gateway, patient, soon, with_worker};

#[tokio::test]
async fn requests_spread_over_leaders() {
    let served = gateway(Settings::default()).await;
    let (mut a, mut b) = (Worker::start(), Worker::start());
    served.publish(MODEL, &[a.address, b.address]);
    let clients: Vec<_> = (0..4).map(|_| asking(&served, false)).collect();
    // All four run at once, so each leader must have exactly two.
    let calls = [a.call().await, a.call().await, b.call().await, b.call().await];
    assert!(!a.has_call() && !b.has_call());
    for call in calls {
        call.answer(&["x"]).await;
    }
    for client in clients {
        assert_eq!(soon(client).await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn the_load_that_others_cause_counts() {
    let served = gateway(Settings::default()).await;
    let (busy, mut idle) = (Worker::start(), Worker::start());
    served.publish(MODEL, &[busy.address, idle.address]);
    let leaders = served
        .gateway
        .directory
        .snapshot()
        .by_model(MODEL)
        .unwrap()
        .leaders
        .clone();
    let known = leaders
        .iter()
        .find(|leader| leader.address() == busy.address.to_string())
        .unwrap();
    for _ in 0..3 {
        // What is known of a leader's load is believed for a while only.
        busy.tell_load(3, 2);
        soon(async {
            while known.load(tokio::time::Instant::now()) != 5 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let (reply, ()) = tokio::join!(ask(&served, false), async {
            idle.call().await.answer(&["x"]).await
        });
        assert_eq!(reply.status(), StatusCode::OK);
    }
}

/// Asks by a name again and again; every answer is whole. Told how often, and when to stop.
fn asking_on(
    served: &Served,
    model: &'static str,
    stop: &CancellationToken,
) -> (Arc<AtomicUsize>, JoinHandle<()>) {
    let (address, stop, count) = (served.http, stop.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    let asking = tokio::spawn(async move {
        while !stop.is_cancelled() {
            let body = json!({"model": model, "messages": [{"role": "user", "content": "hi"}]});
            let reply = post(address, "/v1/chat/completions", body).await;
            let (status, answer) = (reply.status(), reply.json().await);
            let text = &answer["choices"][0]["message"]["content"];
            assert_eq!(
                (status, text),
                (StatusCode::OK, &json!("xy")),
                "{model}: {answer}"
            );
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (count, asking)
}

/// Some more answers have come.
async fn more(count: &AtomicUsize) {
    let before = count.load(Ordering::SeqCst);
    soon(async {
        while count.load(Ordering::SeqCst) < before + 5 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_answer_all_the_time_while_a_model_is_renamed_and_its_groups_are_replaced() {
    let served = gateway(Settings::default()).await;
    let answering = |mut worker: Worker| {
        tokio::spawn(async move {
            while let Some(call) = worker.next_call().await {
                call.answer(&["x", "y"]).await;
            }
        })
    };
    let (former, latter) = (Worker::start(), Worker::start());
    let (first, second) = (former.address.to_string(), latter.address.to_string());
    let workers = [answering(former), answering(latter)];
    let publish = |model: &str, former: &[&str], leaders: &[(&String, &str)]| {
        let mut found = found(model, &[]);
        found.former = former.iter().map(|name| (*name).to_owned()).collect();
        let leader = |(address, name): &(&String, &str)| ((*address).clone(), (*name).to_owned());
        found.leaders = leaders.iter().map(leader).collect();
        served.gateway.publish(vec![found]);
    };
    publish("old", &[], &[(&first, "old")]);
    let (old, new) = (CancellationToken::new(), CancellationToken::new());
    let (by_old, asking_old) = asking_on(&served, "old", &old);
    more(&by_old).await;
    // The deployment has another name; its groups serve under the former one.
    publish("new", &["old"], &[(&first, "old")]);
    let (by_new, asking_new) = asking_on(&served, "new", &new);
    for leaders in [
        &[(&first, "old")][..],
        &[(&first, "old"), (&second, "new")],
        &[(&second, "new")],
    ] {
        publish("new", &["old"], leaders);
        more(&by_old).await;
        more(&by_new).await;
    }
    old.cancel();
    soon(asking_old).await.unwrap();
    // Nobody serves under the former name any more, which ends with it.
    publish("new", &[], &[(&second, "new")]);
    more(&by_new).await;
    new.cancel();
    soon(asking_new).await.unwrap();
    let gone = post(
        served.http,
        "/v1/chat/completions",
        json!({"model": "old", "messages": [{"role": "user", "content": "hi"}]}),
    )
    .await;
    assert_eq!(gone.status(), StatusCode::NOT_FOUND);
    workers.iter().for_each(JoinHandle::abort);
}

fn full() -> tonic::Status {
    let mut full = tonic::Status::resource_exhausted("the queue is full");
    full.metadata_mut()
        .insert("retry-after-ms", "2990".parse().unwrap());
    full
}

#[tokio::test]
async fn a_full_queue_sends_a_request_to_another_leader_or_away() {
    let served = gateway(patient()).await;
    let (mut a, mut b) = (Worker::start(), Worker::start());
    // The load decides who is asked first.
    served.publish(MODEL, &[a.address]);
    let request = asking(&served, false);
    let call = a.call().await;
    served.publish(MODEL, &[a.address, b.address]);
    call.refuse(full());
    b.call().await.answer(&["x"]).await;
    assert_eq!(soon(request).await.unwrap().status(), StatusCode::OK);

    let request = asking(&served, true);
    let (first, second) = tokio::join!(a_or_b(&mut a), a_or_b(&mut b));
    assert!(first && second);
    let reply = soon(request).await.unwrap();
    assert_eq!(
        (reply.status(), reply.header("retry-after")),
        (StatusCode::TOO_MANY_REQUESTS, Some("3"))
    );
    assert_eq!(reply.json().await["error"]["code"], "overloaded");
}

async fn a_or_b(worker: &mut Worker) -> bool {
    worker.call().await.refuse(full());
    true
}

#[tokio::test]
async fn a_stream_waits_for_room_when_it_has_begun() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let (request, answering) = begun(&served, &mut worker, false).await;
    answering.fail(tonic::Status::unavailable("gone")).await;
    let mut full = tonic::Status::resource_exhausted("the queue is full");
    full.metadata_mut().insert("retry-after-ms", "5".parse().unwrap());
    worker.call().await.refuse(full);
    worker.call().await.answer(&["b"]).await;
    let answer = soon(request).await.unwrap().json().await;
    assert_eq!(answer["choices"][0]["message"]["content"], "ab");
}

#[tokio::test]
async fn requests_that_belong_together_go_to_the_same_leader() {
    let served = gateway(Settings::default()).await;
    let mut workers = [Worker::start(), Worker::start(), Worker::start()];
    let addresses: Vec<_> = workers.iter().map(|worker| worker.address).collect();
    served.publish(MODEL, &addresses);
    let mut went = std::collections::BTreeSet::new();
    for turn in 0..6 {
        let body = match turn {
            0..3 => chat(json!({"prompt_cache_key": "k"})),
            _ => chat(json!({})),
        };
        let headers: &[(&str, &str)] = if turn < 3 { &[] } else { &[("x-session-id", "k")] };
        let path = "/v1/chat/completions";
        let asking = tokio::spawn({
            let (address, body) = (served.http, body.to_string());
            let headers: Vec<_> = headers.to_vec();
            async move { send_with(address, Method::POST, path, &headers, body).await }
        });
        let at = soon(async {
            loop {
                if let Some(at) = workers.iter().position(Worker::has_call) {
                    return at;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        went.insert(at);
        workers[at].call().await.answer(&["x"]).await;
        assert_eq!(soon(asking).await.unwrap().status(), StatusCode::OK);
    }
    assert_eq!(went.len(), 1, "one session went to the leaders {went:?}");
}

#[tokio::test]
async fn questions_of_grpc_and_embeddings_that_belong_together_go_to_the_same_leader() {
    let served = gateway(Settings::default()).await;
    let workers = [Worker::start(), Worker::start(), Worker::start()];
    let addresses: Vec<_> = workers.iter().map(|worker| worker.address).collect();
    served.publish(MODEL, &addresses);
    let url = format!("http://{}", served.http);
    let mut client = InferenceClient::connect(url).await.unwrap();
    let long = "once upon a time ".repeat(200);
    let mut went = BTreeMap::new();
    for (kind, session, prompt) in [("session", Some("k"), "hum"), ("prompt", None, long.as_str())] {
        for _ in 0..4 {
            let request = GenerateRequest {
                model: MODEL.to_owned(),
                prompt: Some(Prompt::Text(prompt.to_owned())),
                session_id: session.map(str::to_owned),
                ..GenerateRequest::default()
            };
            client.generate(request).await.unwrap();
            went.entry(kind)
                .or_insert_with(Vec::new)
                .push(workers.each_ref().map(Worker::asked));
        }
    }
    for _ in 0..4 {
        let reply = post(
            served.http,
            "/v1/embeddings",
            json!({"model": MODEL, "input": long}),
        )
        .await;
        assert_eq!(reply.status(), StatusCode::OK);
        went.entry("embeddings")
            .or_default()
            .push(workers.each_ref().map(Worker::asked));
    }
    let mut before = [0; 3];
    for kind in ["session", "prompt", "embeddings"] {
        let after = *went[kind].last().unwrap();
        let more: Vec<usize> = (0..3).map(|at| after[at] - before[at]).collect();
        assert!(more.contains(&4), "{kind}: {went:?}");
        before = after;
    }
}

#[tokio::test]
async fn a_group_is_asked_by_the_name_that_it_serves_under() {
    let served = gateway(Settings::default()).await;
    let (mut old, mut new) = (Worker::start(), Worker::start());
    let mut renamed = found(MODEL, &[old.address, new.address]);
    renamed
        .leaders
        .insert(old.address.to_string(), "before".to_owned());
    renamed.former.insert("before".to_owned());
    served.gateway.publish(vec![renamed]);
    // Both run at once, so each leader has one.
    let clients = [asking(&served, false), asking(&served, false)];
    for (worker, name) in [(&mut old, "before"), (&mut new, MODEL)] {
        let call = worker.call().await;
        assert_eq!(call.request.model, name);
        call.answer(&["x"]).await;
    }
    for client in clients {
        let answer = soon(client).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.json().await["model"], MODEL);
    }
}
