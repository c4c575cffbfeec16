//! Bad input of every kind, over real sockets: nothing panics, nothing is answered with a status of 500 or more, nothing takes more memory than
//! a bound by its size, nothing hangs, and each refusal of a JSON object names the parameter. Bodies are changes of those in `tests/corpus`.
//!
//! The same seed gives the same input. `LLAMERO_FUZZ_SEED` and `LLAMERO_FUZZ_CASES` choose others, and more of them in each test; with
//! `LLAMERO_FUZZ_SECONDS` there are as many as come in that time, if those are more.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::Method;
use llamero_gateway::Settings;
use llamero_gateway::listener::Cors;
use llamero_proto::v1::FinishReason;
use peak_alloc::PeakAlloc;
use serde_json::{Map, Number, Value, json};
use support::client::{Http2, get, post, send_with};
use support::worker::Worker;
use support::{MODEL, Served, chat, gateway, with_worker};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tonic::Code;

/// Cases of a run, unless the environment asks for more: changed bodies over all routes, answers, frames and heads.
const BODIES: usize = 240;
const ANSWERS: usize = 60;
const FRAMES: usize = 400;
const HEADS: usize = 200;

/// Bytes of memory that a body may take for each of its own, and beside that.
const FACTOR: usize = 64;
const CONSTANT: usize = 2 << 20;
/// A body that is not answered for so long hangs: the slowest take milliseconds.
const HANG: Duration = Duration::from_secs(120);

/// Counts what the process allocates.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;
/// One test at a time, so that what is allocated meanwhile is its own.
static ONE: Mutex<()> = Mutex::const_new(());

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

fn from_environment(name: &str, usual: usize) -> usize {
    let set = std::env::var(name).ok();
    set.map_or(usual, |set| set.parse().unwrap())
}

/// The cases of a run: at least `usual`, or as many as the environment says, and as many more as come in its time.
fn cases(usual: usize) -> impl Iterator<Item = usize> {
    let fewest = from_environment("LLAMERO_FUZZ_CASES", usual);
    let time = Duration::from_secs(from_environment("LLAMERO_FUZZ_SECONDS", 0) as u64);
    let began = Instant::now();
    (0..).take_while(move |case| *case < fewest || began.elapsed() < time)
}

fn seed() -> u64 {
    from_environment("LLAMERO_FUZZ_SEED", 1) as u64
}

/// Panics of this process. Tasks of the gateway swallow theirs.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        usual(info);
    }));
}

/// A worker that answers everything at once, in two pieces.
async fn answering() -> (Served, JoinHandle<()>) {
    answering_with(Settings::default()).await
}

async fn answering_with(settings: Settings) -> (Served, JoinHandle<()>) {
    let served = gateway(settings).await;
    let mut worker = Worker::start();
    served.publish(MODEL, &[worker.address]);
    let answers = tokio::spawn(async move {
        while let Some(call) = worker.next_call().await {
            let mut answering = call.accept().await;
            // The gateway may have gone already: it cancels answers whose peer has failed.
            if answering.try_send("Hel", &[1]).await {
                answering.try_end("lo", FinishReason::Stop).await;
            }
        }
    });
    (served, answers)
}

/// Values that code forgets.
fn odd(random: &mut Random) -> Value {
    let long = "é\u{2028}\0\"\\".repeat(40);
    let mut deep = json!(1);
    for _ in 0..random.below(70) {
        deep = if random.below(2) == 0 {
            json!([deep])
        } else {
            json!({"a": deep})
        };
    }
    let huge: Value = Number::from_f64(1e300).unwrap().into();
    let values = [
        Value::Null,
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(1),
        json!(128),
        json!(0.5),
        json!(-0.0),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1_u64 << 32),
        huge,
        json!(""),
        json!("a"),
        json!("\u{fffd}\u{1f600}"),
        json!(long),
        json!([]),
        json!([null]),
        json!([[]]),
        json!([1, "a", {}]),
        json!({}),
        json!({"": null}),
        json!({"type": "function", "function": {"name": "f"}}),
        json!({"type": "text", "text": "a"}),
        json!({"role": "user", "content": "a"}),
        deep,
    ];
    random.of(&values).clone()
}

/// Every place in a body.
fn places(value: &Value, path: &str, all: &mut Vec<String>) {
    all.push(path.to_owned());
    match value {
        Value::Array(entries) => {
            for (index, entry) in entries.iter().enumerate() {
                places(entry, &format!("{path}/{index}"), all);
            }
        }
        Value::Object(fields) => {
            for (name, entry) in fields {
                places(
                    entry,
                    &format!("{path}/{}", name.replace('~', "~0").replace('/', "~1")),
                    all,
                );
            }
        }
        _ => {}
    }
}

/// Change one place: another value, none, one twice, one more.
fn change(body: &mut Value, random: &mut Random, names: &[String]) {
    let mut all = Vec::new();
    places(body, "", &mut all);
    // The body itself stays an object.
    if all.len() < 2 {
        return;
    }
    let place = random.of(&all[1..]).clone();
    let new = odd(random);
    let name = random.of(names).clone();
    match random.below(5) {
        0 | 1 => *body.pointer_mut(&place).unwrap() = new,
        2 => {
            let (parent, last) = place.rsplit_once('/').unwrap();
            match body.pointer_mut(parent).unwrap() {
                Value::Object(fields) => drop(fields.remove(last)),
                Value::Array(entries) => drop(entries.remove(last.parse().unwrap())),
                _ => {}
            }
        }
        3 => match body.pointer_mut(&place).unwrap() {
            Value::Array(entries) => entries.push(new),
            Value::Object(fields) => drop(fields.insert(name, new)),
            other => *other = json!([other.clone(), other.clone()]),
        },
        _ => drop(body.as_object_mut().unwrap().insert(name, new)),
    }
}

/// Break the text of a body.
fn garble(text: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = random.below(text.len());
        match random.below(5) {
            0 => text[at] ^= 1 << random.below(8),
            1 => text.truncate(at),
            2 => text.insert(at, *random.of(b"{}[]\",:\\u0\xff\xed\x00")),
            3 => text
                .splice(
                    at..at,
                    random
                        .of(&[&b"1e999"[..], b"\\ud800", b"-", b"nul", b"0x1"])
                        .iter()
                        .copied(),
                )
                .for_each(drop),
            _ => {
                let part = text[at..(at + 20).min(text.len())].to_vec();
                text.splice(at..at, part).for_each(drop);
            }
        }
        if text.is_empty() {
            text.push(b' ');
        }
    }
}

/// Bodies by their file, with the path that takes them.
fn corpus() -> Vec<(String, &'static str, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let routes = [
        ("chat", "/v1/chat/completions"),
        ("text", "/v1/completions"),
        ("responses", "/v1/responses"),
        ("messages", "/v1/messages"),
        ("count", "/v1/messages/count_tokens"),
        ("embeddings", "/v1/embeddings"),
        ("tokenize", "/tokenize"),
        ("detokenize", "/detokenize"),
    ];
    let mut bodies = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_some_and(|extension| extension == "json") {
            let (_, route) = routes.iter().find(|(begin, _)| name.starts_with(begin)).unwrap();
            let body = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            bodies.push((name, *route, body));
        }
    }
    bodies.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(bodies.len() >= 16);
    bodies
}

/// Why an answer is not as it must be.
fn complaint(path: &str, body: &[u8], status: u16, answer: &str) -> Option<String> {
    if status >= 500 {
        return Some(format!("status {status}"));
    }
    if status == 200 {
        return None;
    }
    let Ok(answer) = serde_json::from_str::<Value>(answer) else {
        return Some("a refusal that is not JSON".to_owned());
    };
    let error = &answer["error"];
    let message = error["message"].as_str().unwrap_or_default();
    if message.is_empty() {
        return Some("a refusal without a sentence".to_owned());
    }
    // Who sends no object is told so, in words.
    let is_object = serde_json::from_slice::<Map<String, Value>>(body).is_ok();
    // Anthropic's errors have no field for it.
    let named = match path.starts_with("/v1/messages") {
        true => message.contains(['\'', '`']),
        false => error["param"].is_string(),
    };
    (is_object && !named).then(|| "a refusal that names no parameter".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_answered_or_refused_by_name() {
    let _one = ONE.lock().await;
    count_panics();
    let (served, answers) = answering().await;
    let seed = seed();
    let mut random = Random(seed);
    let corpus = corpus();
    let mut names: Vec<String> = corpus
        .iter()
        .flat_map(|(_, _, body)| body.as_object().unwrap().keys().cloned())
        .collect();
    names.extend(["", "nobody", "functions", "audio", "guided_json", "best_of"].map(str::to_owned));
    let client = Http2::connect(served.http).await;
    let mut statuses = BTreeMap::new();
    let mut most = 0;
    // Each as it is first.
    let whole = (0..corpus.len()).map(|case| (case, false));
    for (case, changed) in whole.chain(cases(BODIES).map(|case| (case, true))) {
        let (name, path, body) = &corpus[case % corpus.len()];
        let mut body = body.clone();
        for _ in 0..if changed { 1 + random.below(3) } else { 0 } {
            change(&mut body, &mut random, &names);
        }
        let mut text = body.to_string().into_bytes();
        if changed && random.below(4) == 0 {
            garble(&mut text, &mut random);
        }
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        let asked = async {
            let reply = client.post_bytes(path, text.clone().into()).await;
            (reply.status().as_u16(), reply.text().await)
        };
        let (status, answer) = tokio::time::timeout(HANG, asked)
            .await
            .unwrap_or_else(|_| panic!("seed {seed}, case {case}, {name} hangs"));
        let memory = MEMORY.peak_usage().saturating_sub(before);
        most = most.max(memory);
        *statuses.entry(status).or_insert(0) += 1;
        let shown = || String::from_utf8_lossy(&text).into_owned();
        if let Some(why) = complaint(path, &text, status, &answer) {
            panic!("seed {seed}, case {case}, {name}: {why}\n{}\n{answer}", shown());
        }
        assert!(
            memory <= FACTOR * text.len() + CONSTANT,
            "seed {seed}, case {case}, {name}: {memory} bytes of memory for {} bytes",
            text.len()
        );
        assert!(changed || status == 200, "{name} is refused: {answer}");
        assert_eq!(
            PANICS.load(Ordering::SeqCst),
            0,
            "seed {seed}, case {case}, {name}: {}",
            shown()
        );
    }
    println!("answers by status: {statuses:?}; a body took {most} bytes of memory at most");
    assert!(statuses[&200] > 20 && statuses[&400] > 20, "{statuses:?}");
    answers.abort();
}

/// Any text survives the way through server-sent events.
#[tokio::test(flavor = "multi_thread")]
async fn texts_come_as_they_are_through_events() {
    let _one = ONE.lock().await;
    let (served, mut worker) = with_worker(Settings::default()).await;
    let mut random = Random(seed());
    let parts = [
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        "data: ",
        ": ",
        "event: x\n",
        "[DONE]",
        "\u{2028}",
        "\u{2029}",
        "\u{85}",
        "\0",
        "\u{b}",
        "\"",
        "\\",
        "é",
        "😀",
        "</script>",
        "\u{feff}",
        "\u{202e}",
        " ",
        "id: 1\n",
    ];
    for _ in cases(ANSWERS) {
        let pieces: Vec<String> = (0..=random.below(8))
            .map(|_| (0..random.below(6)).map(|_| *random.of(&parts)).collect())
            .collect();
        let request = post(served.http, "/v1/chat/completions", chat(json!({"stream": true})));
        let (mut reply, ()) = tokio::join!(request, async {
            let mut answering = worker.call().await.accept().await;
            for piece in &pieces {
                answering.send(piece, &[1], None).await;
            }
            answering.send("", &[2], Some(FinishReason::Stop)).await;
        });
        let mut text = String::new();
        let mut done = false;
        while let Some(event) = reply.event().await {
            done = event == "[DONE]";
            let event: Value = serde_json::from_str(&event).unwrap_or_default();
            text.push_str(
                event["choices"][0]["delta"]["content"]
                    .as_str()
                    .unwrap_or_default(),
            );
        }
        assert!(done);
        assert_eq!(text, pieces.concat());
    }
}

/// Frames of gRPC that hold no message, or not all of it.
#[tokio::test(flavor = "multi_thread")]
async fn broken_frames_get_a_status_and_end_nothing() {
    let _one = ONE.lock().await;
    let (served, answers) = answering().await;
    let mut random = Random(seed());
    let client = Http2::connect(served.http).await;
    let message = [&[0, 0, 0, 0, 12, 18, 2][..], b"hi", &[114, 6][..], b"nobody"].concat();
    let mut codes = BTreeMap::new();
    for case in cases(FRAMES) {
        let mut frame = message.clone();
        match case % 4 {
            0 => (0..random.below(40)).for_each(|_| frame.push(random.next() as u8)),
            1 => frame = (0..random.below(40)).map(|_| random.next() as u8).collect(),
            2 => frame.truncate(random.below(message.len())),
            _ => {
                let at = random.below(frame.len());
                frame[at] ^= 1 << random.below(8);
            }
        }
        let path = *random.of(&[
            "/vllm.Inference/Generate",
            "/vllm.Inference/GenerateStream",
            "/vllm.Control/GetServerInfo",
            "/vllm.Control/Abort",
        ]);
        let answer = client.grpc(path, frame.clone()).await;
        let (code, message) = answer.unwrap_or_else(|| panic!("case {case}: {path} {frame:?}: no status"));
        let code = Code::from_i32(code.try_into().unwrap());
        let expected = match code {
            // Some of the frames are requests of Control, which has no field that must be there.
            Code::Ok => path.starts_with("/vllm.Control/"),
            // No message, and a model that is not there.
            Code::InvalidArgument | Code::NotFound => !message.is_empty(),
            // gRPC's own word for a message that is none ("Error parsing request proto").
            Code::Internal => message.starts_with("failed to decode Protobuf message"),
            _ => false,
        };
        assert!(expected, "case {case}: {path} {frame:?}: {code:?}, {message}");
        *codes.entry(code as i32).or_insert(0) += 1;
    }
    println!("answers by code: {codes:?}");
    assert!(codes[&(Code::InvalidArgument as i32)] > 20, "{codes:?}");
    // The connection and the gateway go on.
    let reply = client.post("/v1/chat/completions", chat(json!({}))).await;
    assert_eq!(reply.status().as_u16(), 200);
    let strange = [("content-type", "application/grpc")];
    let reply = send_with(
        served.http,
        Method::POST,
        "/v1/chat/completions",
        &strange,
        message,
    )
    .await;
    assert_eq!(reply.status().as_u16(), 400);
    answers.abort();
}

/// Heads of requests, and what comes behind them.
fn heads() -> Vec<(Vec<u8>, Vec<u8>)> {
    let body = chat(json!({})).to_string();
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let post = |fields: String| {
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\n{fields}\r\n\r\n")
    };
    let mut heads: Vec<(Vec<u8>, Vec<u8>)> = [
        ("GET /v1/models?a=b HTTP/1.1\r\nhost: g\r\nconnection: close\r\nauthorization: Bearer x\r\n\r\n".to_owned(), String::new()),
        ("OPTIONS /v1/models HTTP/1.1\r\nhost: g\r\nconnection: close\r\norigin: http://a\r\naccess-control-request-method: GET\r\n\r\n".to_owned(), String::new()),
        ("GET http://g/v1/models/org%2Fsmol HTTP/1.0\r\nhost: g\r\n\r\n".to_owned(), String::new()),
        (post(format!("content-length: {}\r\nprefer: wait=5\r\nx-request-id: a", body.len())), body),
        (post("transfer-encoding: chunked\r\nx-session-id: s".to_owned()), chunked),
    ]
    .map(|(head, body)| (head.into_bytes(), body.into_bytes()))
    .to_vec();
    // HTTP/2: no settings, and a request in literal header fields (RFC 7541, 6.2.1).
    let fields = [&b"\x82\x86\x44\x0a/v1/models"[..], b"\x41\x01g\x40\x01x\x01y"].concat();
    let frame = [
        &[0, 0, u8::try_from(fields.len()).unwrap(), 1, 5, 0, 0, 0, 1],
        fields.as_slice(),
    ]
    .concat();
    heads.push((
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            frame.as_slice(),
        ]
        .concat(),
        Vec::new(),
    ));
    heads
}

/// Break a head.
fn mangle(head: &mut Vec<u8>, random: &mut Random) {
    let long = [&b"x: "[..], &vec![b'a'; 70 << 10], b"\r\n"].concat();
    let pieces = [
        &b"\r\n"[..],
        b"\r",
        b"\n",
        b"\n ",
        b":",
        b" ",
        b"\t",
        b"\0",
        b"\xff",
        b"%zz",
        b"%00",
        b"//",
        b"?",
        b"#",
        b"HTTP/2.0",
        b"HTTP/1.0",
        b"GET ",
        b"CONNECT ",
        b"*",
    ];
    let lines = [
        &b"transfer-encoding: chunked\r\n"[..],
        b"transfer-encoding: gzip, x\r\n",
        b"content-length: 9\r\n",
        b"content-length: -1\r\n",
        b"content-length: 99999999999999999999\r\n",
        b"expect: 100-continue\r\n",
        b"host: \xc3\r\n",
        b"upgrade: h2c\r\nconnection: upgrade\r\n",
        b"authorization: Bearer \xff\r\n",
        b"prefer: wait=1e999\r\n",
        b"origin: null\r\n",
        b"x-request-id: \xe9\r\n",
        &long,
    ];
    for _ in 0..=random.below(3) {
        let at = random.below(head.len());
        let starts: Vec<usize> = (2..head.len())
            .filter(|at| head[..*at].ends_with(b"\r\n"))
            .collect();
        match random.below(6) {
            0 | 1 => head[at] ^= 1 << random.below(8),
            2 => drop(head.splice(at..at, random.of(&pieces).iter().copied())),
            3 if !starts.is_empty() => {
                let at = *random.of(&starts);
                drop(head.splice(at..at, random.of(&lines).iter().copied()));
            }
            4 => drop(head.remove(at)),
            5 if random.below(4) == 0 => head.truncate(at),
            _ => {
                let part = head[at..(at + 20).min(head.len())].to_vec();
                drop(head.splice(at..at, part));
            }
        }
        if head.is_empty() {
            head.push(b' ');
        }
    }
}

/// Bytes that are no request, or an odd one: answered or not, the connection ends, and others go on.
#[tokio::test(flavor = "multi_thread")]
async fn request_lines_and_headers_of_any_bytes_hang_and_break_nothing() {
    let _one = ONE.lock().await;
    count_panics();
    let mut settings = Settings::default();
    settings.limits.header_timeout = Duration::from_millis(300);
    settings.limits.body_timeout = Duration::from_millis(300);
    settings.limits.idle_timeout = Duration::from_millis(20);
    settings.cors = Cors::new(&["*".to_owned()]).unwrap();
    let (served, answers) = answering_with(settings).await;
    let (seed, heads) = (seed(), heads());
    let mut random = Random(seed);
    let mut statuses = BTreeMap::new();
    for case in cases(HEADS) {
        let (mut head, body) = random.of(&heads).clone();
        if case >= heads.len() {
            mangle(&mut head, &mut random);
        }
        // Time is for those that seem whole.
        let cut = !head.windows(4).any(|four| four == b"\r\n\r\n");
        let shown = String::from_utf8_lossy(&head[..head.len().min(500)]).into_owned();
        let mut stream = TcpStream::connect(served.http).await.unwrap();
        let asked = async {
            // What is refused is not read to its end, and resets the connection.
            let _ = stream.write_all(&[head, body].concat()).await;
            if cut {
                let _ = stream.shutdown().await;
            }
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            answer
        };
        let answer = tokio::time::timeout(HANG, asked)
            .await
            .unwrap_or_else(|_| panic!("seed {seed}, case {case} hangs: {shown}"));
        let answer = String::from_utf8_lossy(&answer);
        let mut all = answer.split("HTTP/1.").skip(1);
        assert!(
            all.all(|answer| answer.get(2..3) != Some("5")),
            "seed {seed}, case {case}: {shown}\n{answer}"
        );
        let status = answer.strip_prefix("HTTP/1.").and_then(|answer| answer.get(2..5));
        *statuses.entry(status.unwrap_or("none").to_owned()).or_insert(0) += 1;
        assert_eq!(get(served.http, "/v1/models").await.status().as_u16(), 200);
        assert_eq!(
            PANICS.load(Ordering::SeqCst),
            0,
            "seed {seed}, case {case}: {shown}"
        );
    }
    println!("answers by status: {statuses:?}");
    assert!(statuses["200"] > 20 && statuses["400"] > 20, "{statuses:?}");
    answers.abort();
}
