//! The listener's bounds, over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use hyper::StatusCode;
use llamero_gateway::Settings;
use llamero_gateway::listener::Limits;
use llamero_proto::v1::FinishReason;
use prost::Message as _;
use serde_json::{Value, json};
use support::client::{Http2, Reply, get, post};
use support::worker::Worker;
use support::{MODEL, Served, gateway, soon, streamed, with_worker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tonic::Code;
use vllm_proto::GenerateRequest;
use vllm_proto::generate_request::Prompt;

const SHORT: Duration = Duration::from_millis(50);
/// After which a client that does not read is cut off: time enough for others to be looked at before.
const STALL: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(3600);

fn limits(change: impl FnOnce(&mut Limits)) -> Settings {
    let mut settings = Settings::default();
    change(&mut settings.limits);
    settings
}

async fn send(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Ask for a stream and never read it.
async fn ask_and_not_read(address: SocketAddr) -> TcpStream {
    post_and_not_read(address, "/v1/chat/completions", &streamed(true)).await
}

/// The client's kernel takes little of the answer, so that the rest piles up before it.
async fn post_and_not_read(address: SocketAddr, path: &str, body: &Value) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let body = body.to_string();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: g\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// All that comes until the gateway closes the connection.
async fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = soon(stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn silent_connections_and_slow_headers_are_closed() {
    let served = gateway(limits(|limits| limits.header_timeout = SHORT)).await;
    for begin in [
        "",
        "G",
        "GET /v1/models HTTP/1.1\r\nhost: g\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let stream = send(served.http, begin.as_bytes()).await;
        let answer = rest(stream).await;
        assert!(!answer.contains("200 OK"), "{answer}");
    }
}

#[tokio::test]
async fn idle_connections_are_closed_but_not_those_with_an_answer_under_way() {
    let served = gateway(limits(|limits| {
        limits.header_timeout = Duration::from_secs(10);
        limits.idle_timeout = SHORT;
    }))
    .await;
    let mut worker = Worker::start();
    served.publish(MODEL, &[worker.address]);
    let idle = send(served.http, b"GET /v1/models HTTP/1.1\r\nhost: g\r\n\r\n").await;
    let mut busy = {
        let request = tokio::spawn(post(served.http, "/v1/chat/completions", streamed(true)));
        let mut answering = worker.call().await.accept().await;
        answering.send("a", &[1], None).await;
        (soon(request).await.unwrap(), answering)
    };
    assert!(
        rest(idle).await.contains("200 OK"),
        "answered, then closed for idleness"
    );
    // On HTTP/2 as well.
    let client = Http2::connect(served.http).await;
    assert_eq!(client.post("/version", json!({})).await.status().as_u16(), 405);
    client.closed().await;
    busy.1.send("b", &[2], Some(FinishReason::Stop)).await;
    assert_eq!(busy.0.piece().await.unwrap(), "a");
    assert_eq!(busy.0.piece().await.unwrap(), "b");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let served = gateway(limits(|limits| limits.body_timeout = SHORT)).await;
    let stream = send(
        served.http,
        b"POST /v1/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{\"model\"",
    )
    .await;
    let answer = rest(stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_comes() {
    let served = gateway(Settings::default()).await;
    let request = "POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 8388609\r\n\r\n";
    let mut stream = send(served.http, request.as_bytes()).await;
    let mut answer = vec![0; 2048];
    let read = soon(stream.read(&mut answer)).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn a_request_too_large_for_memory_is_refused_not_retried() {
    let served = gateway(Settings::default()).await;
    let worker = Worker::start();
    served.publish(MODEL, &[worker.address]);
    // Each answer's message is small enough, but not the two together.
    let content = "x".repeat(5 << 20);
    let body = json!({"model": MODEL, "n": 2, "messages": [{"role": "user", "content": content}]});
    let reply = post(served.http, "/v1/chat/completions", body).await;
    assert_eq!(reply.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let error = reply.json().await;
    assert_eq!(error["error"]["code"], "request_too_large");
    assert!(!worker.has_call());
}

#[tokio::test]
async fn connections_are_bounded() {
    let served = gateway(limits(|limits| limits.connections = 1)).await;
    served.publish(MODEL, &[]);
    let mut first = send(served.http, b"GET /v1/models HTTP/1.1\r\nhost: g\r\n\r\n").await;
    let mut answer = [0; 15];
    soon(first.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    let turned_away = rest(TcpStream::connect(served.http).await.unwrap()).await;
    assert!(
        turned_away.starts_with("HTTP/1.1 503") && turned_away.contains("too_many_connections"),
        "{turned_away}"
    );
    drop(first);
    soon(async {
        loop {
            let again = send(
                served.http,
                b"GET /v1/models HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n",
            )
            .await;
            if rest(again).await.contains("200 OK") {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn requests_are_bounded_over_all_connections() {
    let served = gateway(limits(|limits| limits.requests = 1)).await;
    let mut worker = Worker::start();
    served.publish(MODEL, &[worker.address]);
    let running = tokio::spawn(post(served.http, "/v1/chat/completions", streamed(false)));
    let call = worker.call().await;
    let refused = get(served.http, "/v1/models").await;
    assert_eq!(
        (refused.status(), refused.header("retry-after")),
        (StatusCode::SERVICE_UNAVAILABLE, Some("1"))
    );
    assert_eq!(refused.json().await["error"]["code"], "too_many_requests");
    call.answer(&["x"]).await;
    soon(running).await.unwrap().json().await;
    soon(async { while get(served.http, "/v1/models").await.status() != StatusCode::OK {} }).await;
}

/// Settings of HTTP/2 by their number, as the gateway's first frame tells them.
async fn http2_settings(address: SocketAddr) -> Vec<(u16, u32)> {
    let mut stream = send(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let mut head = [0; 9];
    soon(stream.read_exact(&mut head)).await.unwrap();
    assert_eq!(head[3], 4, "SETTINGS comes first");
    let mut body = vec![0; usize::from(head[2])];
    soon(stream.read_exact(&mut body)).await.unwrap();
    let setting = |entry: &[u8]| {
        let number = u16::from_be_bytes(entry[..2].try_into().unwrap());
        (number, u32::from_be_bytes(entry[2..].try_into().unwrap()))
    };
    body.chunks(6).map(setting).collect()
}

#[tokio::test]
async fn http2_clients_are_told_their_bounds() {
    let served = gateway(Settings::default()).await;
    let settings = http2_settings(served.http).await;
    for expected in [(3, 256), (4, 256 << 10), (6, 32 << 10)] {
        assert!(settings.contains(&expected), "{settings:?}");
    }
}

/// Fills every buffer between the worker and a client that does not read.
async fn flood(worker: &mut Worker) -> tokio::task::JoinHandle<()> {
    let mut answering = worker.call().await.accept().await;
    tokio::spawn(async move {
        let text = "x".repeat(16 << 10);
        loop {
            if !answering.try_send(&text, &[1]).await {
                return;
            }
        }
    })
}

#[tokio::test]
async fn clients_that_do_not_read_hold_up_nobody_at_the_same_leader() {
    // Nobody is cut off meanwhile, and nothing is sent while an answer hangs.
    let settings = Settings {
        keep_alive: Duration::from_secs(3600),
        ..limits(|limits| limits.stall_timeout = Duration::from_secs(3600))
    };
    let (served, mut worker) = with_worker(settings).await;
    let mut stalled = Vec::new();
    for _ in 0..12 {
        let stream = ask_and_not_read(served.http).await;
        stalled.push((stream, flood(&mut worker).await));
    }
    // While the floods come as far as they can, and afterwards, answers flow as if nothing was.
    worker.quiet().await;
    for _ in 0..50 {
        let request = post(served.http, "/v1/chat/completions", streamed(true));
        let (mut reply, ()) = tokio::join!(request, async {
            worker.call().await.answer(&["a", "b"]).await;
        });
        assert_eq!(reply.piece().await.unwrap(), "a");
        assert_eq!(reply.piece().await.unwrap(), "b");
    }
    drop(stalled);
}

#[tokio::test]
async fn a_stream_that_is_not_read_holds_up_no_other_of_its_connection() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let client = Http2::connect(served.http).await;
    let unread = client.post("/v1/chat/completions", streamed(true));
    let (unread, _flood) = tokio::join!(unread, flood(&mut worker));
    worker.quiet().await;
    let request = client.post("/v1/chat/completions", streamed(true));
    let (mut reply, mut answering) = tokio::join!(request, async {
        let mut answering = worker.call().await.accept().await;
        answering.send("a", &[1], None).await;
        answering
    });
    assert_eq!(reply.piece().await.unwrap(), "a");
    answering.send("b", &[2], Some(FinishReason::Stop)).await;
    assert_eq!(reply.piece().await.unwrap(), "b");
    drop(unread);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_and_its_answer_cancelled() {
    let settings = Settings {
        keep_alive: Duration::from_millis(10),
        ..limits(|limits| limits.stall_timeout = Duration::from_secs(2))
    };
    let (served, mut worker) = with_worker(settings).await;
    let stalled = ask_and_not_read(served.http).await;
    let flood = flood(&mut worker).await;
    // The flood ends when the gateway drops the answer.
    soon(flood).await.unwrap();
    drop(stalled);

    // On HTTP/2 the same, but the connection lives on.
    let client = Http2::connect(served.http).await;
    let request = client.post("/v1/chat/completions", streamed(true));
    let (unread, flood) = tokio::join!(request, self::flood(&mut worker));
    soon(flood).await.unwrap();
    let request = client.post("/v1/chat/completions", streamed(true));
    let (mut reply, ()) = tokio::join!(request, async { worker.call().await.answer(&["x"]).await });
    assert_eq!(reply.piece().await.unwrap(), "x");
    drop(unread);
}

/// Wait until so much of the memory for long answers is taken.
async fn taken(served: &Served, enough: impl Fn(usize) -> bool) {
    soon(async {
        while !enough(served.gateway.answer_bytes.used()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Room for one long answer, which the next one waits for so long, and which a client that does not read gives up after this.
fn crowded(room_timeout: Duration, stall_timeout: Duration) -> Settings {
    Settings {
        answer_bytes: 10 << 20,
        waiting_answer_bytes: 8 << 20,
        ..limits(|limits| {
            limits.stall_timeout = stall_timeout;
            limits.room_timeout = room_timeout;
        })
    }
}

/// Its answer has one token of four bytes, as it is written, for each byte.
fn tokenize(bytes: usize) -> Value {
    json!({"model": MODEL, "prompt": "x".repeat(bytes)})
}

/// Status, `retry-after` and body of an answer, which is read at once, so that it keeps no room.
async fn told(reply: Reply) -> (u16, Option<String>, Value) {
    let after = reply.header("retry-after").map(str::to_owned);
    (reply.status().as_u16(), after, reply.json().await)
}

type Told = (u16, Option<String>, Value);

/// Answers that are too long beside another: as JSON, in Anthropic's form, and over gRPC.
async fn three_long_answers(served: &Served, worker: &mut Worker) -> (Told, Told, Option<(u32, String)>) {
    let json = told(post(served.http, "/tokenize", tokenize(2 << 20)).await).await;
    let asked = json!({"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]});
    let (anthropic, ()) = tokio::join!(post(served.http, "/v1/messages", asked), async {
        worker.call().await.answer(&["x".repeat(5 << 20).as_str()]).await;
    });
    let anthropic = told(anthropic).await;
    let echoed = GenerateRequest {
        model: MODEL.to_owned(),
        prompt: Some(Prompt::Text("x".repeat(3 << 20))),
        ..GenerateRequest::default()
    };
    let message = echoed.encode_to_vec();
    let prefix = [&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..]].concat();
    let client = Http2::connect(served.http).await;
    let path = "/vllm.Inference/Generate";
    (
        json,
        anthropic,
        client.grpc(path, [prefix, message].concat()).await,
    )
}

#[tokio::test]
async fn a_long_answer_without_room_is_refused_in_the_form_of_its_api_or_waits() {
    let (served, mut worker) = with_worker(crowded(SHORT, LONG)).await;
    let unread = post_and_not_read(served.http, "/tokenize", &tokenize(2 << 20)).await;
    taken(&served, |used| used >= 8 << 20).await;
    let (json, anthropic, grpc) = three_long_answers(&served, &mut worker).await;
    for (status, after, _) in [&json, &anthropic] {
        assert_eq!((*status, after.as_deref()), (503, Some("1")));
    }
    assert_eq!(json.2["error"]["code"], "too_many_requests");
    let error = anthropic.2;
    assert_eq!(
        (&error["type"], &error["error"]["type"]),
        (&json!("error"), &json!("overloaded_error")),
        "{error}"
    );
    let (code, message) = grpc.unwrap();
    assert_eq!(code, Code::Unavailable as u32, "{message}");
    assert!(message.contains("long answers"), "{message}");
    drop(unread);

    // With time, all come, although the first client reads nothing until it is cut off.
    let (served, mut worker) = with_worker(crowded(LONG, STALL)).await;
    let unread = post_and_not_read(served.http, "/tokenize", &tokenize(2 << 20)).await;
    taken(&served, |used| used >= 8 << 20).await;
    let (json, anthropic, grpc) = three_long_answers(&served, &mut worker).await;
    assert_eq!(json.2["count"], 2 << 20);
    let text = &anthropic.2["content"][0]["text"];
    assert_eq!(text.as_str().unwrap().len(), 5 << 20);
    assert_eq!(grpc.unwrap(), (Code::Ok as u32, String::new()));
    taken(&served, |used| used == 0).await;
    drop(unread);
}

#[tokio::test]
async fn long_answers_that_wait_are_counted_and_one_more_is_refused_at_once() {
    let (served, _worker) = with_worker(crowded(LONG, LONG)).await;
    let unread = post_and_not_read(served.http, "/tokenize", &tokenize(2 << 20)).await;
    taken(&served, |used| used >= 8 << 20).await;
    let next = post_and_not_read(served.http, "/tokenize", &tokenize(2 << 20)).await;
    let answers = &served.gateway.answer_bytes;
    soon(async {
        while answers.waiting() < 8 << 20 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (status, _, error) =
        soon(async { told(post(served.http, "/tokenize", tokenize(1 << 20)).await).await }).await;
    assert_eq!(
        (status, error["error"]["code"].as_str()),
        (503, Some("too_many_requests"))
    );
    // Who waits is served when the first one goes.
    drop(unread);
    soon(async {
        while answers.waiting() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(next);
    taken(&served, |used| used == 0).await;
}

#[tokio::test]
async fn a_whole_answer_that_is_not_read_is_cut_off_and_counted() {
    let (served, _worker) = with_worker(crowded(SHORT, STALL)).await;
    let long = tokenize(2 << 20);
    let unread = post_and_not_read(served.http, "/tokenize", &long).await;
    taken(&served, |used| used >= 8 << 20).await;
    // Short ones are not counted, and others find room beside it.
    assert_eq!(
        post(served.http, "/tokenize", tokenize(10)).await.json().await["count"],
        10
    );
    let (count, whole) = (300_000, post(served.http, "/tokenize", tokenize(300_000)).await);
    let length: usize = whole.header("content-length").unwrap().parse().unwrap();
    let whole = whole.text().await;
    assert_eq!(whole.len(), length);
    assert_eq!(serde_json::from_str::<Value>(&whole).unwrap()["count"], count);
    // Nothing is left of the first one, and its connection is closed.
    taken(&served, |used| used == 0).await;
    assert!(rest(unread).await.len() < 8 << 20);
    // One that is longer than all the room goes alone.
    assert_eq!(
        post(served.http, "/tokenize", tokenize(3_500_000))
            .await
            .json()
            .await["count"],
        3_500_000
    );
    taken(&served, |used| used == 0).await;

    // On HTTP/2 the same, but the connection lives on.
    let client = Http2::connect(served.http).await;
    let unread = client.post("/tokenize", long).await;
    taken(&served, |used| used > 0).await;
    taken(&served, |used| used == 0).await;
    assert_eq!(
        client.post("/tokenize", tokenize(10)).await.json().await["count"],
        10
    );
    drop(unread);
}

#[tokio::test]
async fn what_was_counted_of_a_deleted_deployment_is_forgotten() {
    let served: Served = gateway(Settings::default()).await;
    let mut worker = Worker::start();
    served.publish(MODEL, &[worker.address]);
    let (reply, ()) = tokio::join!(
        post(served.http, "/v1/chat/completions", streamed(false)),
        async {
            worker.call().await.answer(&["x"]).await;
        }
    );
    reply.json().await;
    let metrics = get(served.health, "/metrics").await.text().await;
    assert!(metrics.contains("model=\"org/smol\"") && metrics.contains("name=\"smol\""));
    served.gateway.publish(Vec::new());
    let metrics = get(served.health, "/metrics").await.text().await;
    assert!(
        !metrics.contains("model=\"org/smol\"") && !metrics.contains("name=\"smol\""),
        "{metrics}"
    );
    assert!(served.gateway.demand.sample().models.is_empty());
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// As many connections as the test may open: each takes a descriptor at both ends.
fn most_connections() -> usize {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let descriptors = usize::try_from(limit.maximum.unwrap_or(u64::MAX)).unwrap();
    descriptors.saturating_sub(200) / 2
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes 20,000 file descriptors"]
async fn ten_thousand_idle_connections_take_no_memory_that_does_not_come_back() {
    let count = most_connections().min(10_000);
    assert!(
        count > 9000,
        "only {count} connections may be opened; raise the limit of open files"
    );
    let served = gateway(Settings::default()).await;
    served.publish(MODEL, &[]);
    let mut after = Vec::new();
    for _ in 0..4 {
        let before = resident();
        let mut connections = Vec::new();
        for _ in 0..count {
            let request = b"GET /v1/models HTTP/1.1\r\nhost: g\r\n\r\n";
            let mut stream = send(served.http, request).await;
            let mut answer = [0; 15];
            soon(stream.read_exact(&mut answer)).await.unwrap();
            connections.push(stream);
        }
        let each = resident().saturating_sub(before) / count as u64;
        println!(
            "{each} bytes more for each of {count} connections, {} MiB in all",
            resident() >> 20
        );
        assert!(each < 32 << 10, "{each}");
        drop(connections);
        // The gateway has noticed that they are gone when it has closed its own ends.
        soon(async {
            while std::fs::read_dir("/proc/self/fd").unwrap().count() > 200 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        after.push(resident());
    }
    // The allocator keeps what the first round took; the rounds after it take no more.
    assert!(after[3] <= after[1] + (after[1] / 10), "{after:?}");
}
