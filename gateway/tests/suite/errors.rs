//! What is refused or fails, and how it is told.

use hyper::{Method, StatusCode};
use llamero_gateway::Settings;
use serde_json::{Value, json};
use tonic::Status;

use crate::support::client::{post, send};
use crate::support::{MODEL, chat, gateway, patient, with_worker};

#[tokio::test]
async fn bad_requests_get_a_sentence_in_openai_s_form() {
    let served = gateway(Settings {
        body_limit: 1000,
        ..Settings::default()
    })
    .await;
    served.publish(MODEL, &[]);
    let chat_route = "/v1/chat/completions";
    let big = chat(json!({"user": "x".repeat(1000)})).to_string().into_bytes();
    let cases: [(Method, &str, Vec<u8>, u16, &str); 10] = [
        (
            Method::POST,
            chat_route,
            b"{\"model\":".to_vec(),
            400,
            "not a valid JSON",
        ),
        (
            Method::POST,
            chat_route,
            b"{\"model\":\"\xff\"}".to_vec(),
            400,
            "UTF-8",
        ),
        (Method::POST, chat_route, b"".to_vec(), 400, "empty"),
        (
            Method::POST,
            chat_route,
            chat(json!({"temperature": -1})).to_string().into(),
            400,
            "from 0 to 2",
        ),
        (
            Method::POST,
            chat_route,
            chat(json!({"temperature": "hot"})).to_string().into(),
            400,
            "temperature",
        ),
        (
            Method::POST,
            chat_route,
            chat(json!({"n": 200})).to_string().into(),
            400,
            "send several requests",
        ),
        (
            Method::POST,
            chat_route,
            chat(json!({"model": "nope"})).to_string().into(),
            404,
            "/v1/models",
        ),
        (Method::POST, chat_route, big, 413, "larger than 1000 bytes"),
        (Method::GET, chat_route, Vec::new(), 405, "use POST"),
        (
            Method::POST,
            "/v1/embeddings",
            b"{}".to_vec(),
            400,
            "'model' is missing",
        ),
    ];
    for (method, path, body, status, words) in cases {
        let reply = send(served.http, method, path, body).await;
        assert_eq!(reply.status().as_u16(), status, "{words}");
        let error = reply.json().await["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error.get("param").is_some() && error.get("code").is_some());
    }
}

#[tokio::test]
async fn the_worker_s_sentence_reaches_the_client_with_its_status_also_when_streaming() {
    let (served, mut worker) = with_worker(patient()).await;
    for stream in [false, true] {
        let (reply, ()) = tokio::join!(
            post(
                served.http,
                "/v1/chat/completions",
                chat(json!({"stream": stream}))
            ),
            async {
                worker.call().await.refuse(tonic::Status::invalid_argument(
                    "the prompt has 9 tokens too many",
                ));
            }
        );
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
        assert_eq!(
            reply.json().await["error"]["message"],
            "the prompt has 9 tokens too many"
        );
    }
}

#[tokio::test]
async fn an_error_behind_the_first_text_comes_as_an_event() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let request = post(served.http, "/v1/chat/completions", chat(json!({"stream": true})));
    let (mut reply, ()) = tokio::join!(request, async {
        let mut answering = worker.call().await.accept().await;
        answering.send("Hel", &[1], None).await;
        answering.fail(tonic::Status::internal("out of cheese")).await;
    });
    assert_eq!(reply.piece().await.unwrap(), "Hel");
    let error: Value = serde_json::from_str(&reply.event().await.unwrap()).unwrap();
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("out of cheese")
    );
    assert_eq!(reply.event().await, None);
}

#[tokio::test]
async fn a_context_that_is_too_short_is_named_with_its_parameter() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let text = json!({"model": MODEL, "prompt": "hi"});
    for (path, body, param) in [
        ("/v1/chat/completions", chat(json!({})), "messages"),
        ("/v1/completions", text, "prompt"),
    ] {
        let (reply, ()) = tokio::join!(post(served.http, path, body), async {
            let refusal = tonic::Status::out_of_range("the prompt has 9 tokens, the context 8");
            worker.call().await.refuse(refusal);
        });
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
        let error = reply.json().await["error"].clone();
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!(param), &json!("context_length_exceeded"))
        );
    }
}

#[tokio::test]
async fn conversations_are_bounded_in_number_and_depth() {
    let (served, _worker) = with_worker(Settings::default()).await;
    let message = json!({"role": "user", "content": "x"});
    let many = json!({"model": MODEL, "messages": vec![message; 4097]}).to_string();
    let deep = format!(
        r#"{{"model": "{MODEL}", "messages": [], "made_up": {}{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    for (body, words) in [
        (many, "more than 4096 entries"),
        (deep, "nested more than 64 levels"),
    ] {
        let reply = send(served.http, Method::POST, "/v1/chat/completions", body).await;
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
        let error = reply.json().await["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
        assert!(error["param"].as_str().unwrap().len() <= 128);
    }
}

#[tokio::test]
async fn the_worker_names_the_parameter_at_fault() {
    let (served, mut worker) = with_worker(Settings::default()).await;
    let request = post(
        served.http,
        "/v1/chat/completions",
        chat(json!({"guided_regex": "("})),
    );
    let (reply, ()) = tokio::join!(request, async {
        let call = worker.call().await;
        let mut status = Status::invalid_argument("no");
        let parameter = call
            .request
            .structure
            .as_ref()
            .unwrap()
            .parameter
            .parse()
            .unwrap();
        status.metadata_mut().insert("parameter", parameter);
        call.refuse(status);
    });
    assert_eq!(reply.status(), StatusCode::BAD_REQUEST);
    assert_eq!(reply.json().await["error"]["param"], "guided_regex");
}
