//! `llamero run --serve`: the gateway's HTTP in the program itself.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;

use crate::program::{Running, fp8, llamero, run};

/// Head and body of an answer, read to the end of the connection.
fn request(address: &str, method: &str, path: &str, body: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[test]
fn the_api_is_served_and_ends_in_order() {
    let cache = tempfile::tempdir().unwrap();
    let folder = fp8();
    let args = [
        "run",
        folder.to_str().unwrap(),
        "--model-name",
        "smol",
        "--serve",
        "127.0.0.1:0",
    ];
    let mut running = Running::start(llamero(cache.path(), &args), "");
    let line = running.wait_for("serving smol at http://");
    let address = line
        .split("http://")
        .nth(1)
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();

    let (head, body) = request(&address, "GET", "/v1/models", "");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let models: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(models["data"][0]["id"], "smol", "{models}");
    assert_eq!(models["data"][0]["max_model_len"], 8192, "{models}");

    let chat = r#"{"model": "smol", "stream": true, "temperature": 0, "max_tokens": 12,
        "messages": [{"role": "user", "content": "What is the capital of France? Answer in one word."}]}"#;
    let (head, body) = request(&address, "POST", "/v1/chat/completions", chat);
    assert!(head.contains("text/event-stream"), "{head}");
    let pieces = body.lines().filter_map(|line| line.strip_prefix("data: {"));
    let pieces = pieces.map(|json| serde_json::from_str::<serde_json::Value>(&format!("{{{json}")).unwrap());
    let text: String = pieces
        .filter_map(|piece| Some(piece["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect();
    assert!(text.contains("Paris"), "{body}");
    assert!(body.contains("data: [DONE]"), "{body}");

    let (head, page) = request(&address, "GET", "/", "");
    assert!(
        head.starts_with("HTTP/1.1 200") && page.contains("<html"),
        "{head}"
    );
    let (_, metrics) = request(&address, "GET", "/metrics", "");
    assert!(metrics.contains("# EOF"), "{metrics}");

    // The port is taken, which is found before anything is loaded.
    let second = run(llamero(
        cache.path(),
        &["run", folder.to_str().unwrap(), "--serve", &address],
    ));
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(
        second.err.contains(&format!("cannot listen on {address}")),
        "{second:?}"
    );
    assert!(!second.err.contains("loading"), "{second:?}");

    // A connection that a client leaves open does not keep it.
    let _idle = TcpStream::connect(&address).unwrap();
    running.signal(Signal::TERM);
    let ran = running.finish();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.out, "");
}
