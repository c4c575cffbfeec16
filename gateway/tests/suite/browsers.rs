//! What a page in a browser may do.

use hyper::{Method, StatusCode};
use llamero_gateway::Settings;
use llamero_gateway::listener::Cors;

use crate::support::client::{Reply, get, send_with};
use crate::support::{Served, gateway, streamed, with_worker};

const PAGE: &str = "https://chat.example.com";
const ALLOWED: &str = "access-control-allow-origin";

fn settings(origins: &[&str]) -> Settings {
    let origins: Vec<String> = origins.iter().map(|&origin| origin.to_owned()).collect();
    Settings {
        cors: Cors::new(&origins).unwrap(),
        ..Settings::default()
    }
}

async fn from(served: &Served, origin: &str, method: Method, path: &str, body: String) -> Reply {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
    ];
    send_with(served.http, method, path, &headers, body).await
}

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn pages_that_are_let_in_read_answers_errors_and_streams() {
    let (served, mut worker) = with_worker(settings(&[PAGE])).await;
    let asked = from(&served, PAGE, Method::OPTIONS, CHAT, String::new()).await;
    assert_eq!(
        (asked.status(), asked.header(ALLOWED)),
        (StatusCode::NO_CONTENT, Some(PAGE))
    );
    assert_eq!(
        asked.header("access-control-allow-headers"),
        Some("authorization,content-type")
    );
    assert!(
        asked
            .header("access-control-allow-methods")
            .unwrap()
            .contains("POST")
    );
    let (mut stream, ()) = tokio::join!(
        from(&served, PAGE, Method::POST, CHAT, streamed(true).to_string()),
        async { worker.call().await.answer(&["x"]).await }
    );
    assert_eq!(
        (stream.header(ALLOWED), stream.header("vary")),
        (Some(PAGE), Some("origin"))
    );
    let exposed = stream.header("access-control-expose-headers").unwrap();
    assert!(exposed.contains("x-request-id") && exposed.contains("x-ratelimit-remaining-tokens"));
    assert_eq!(stream.piece().await.unwrap(), "x");
    for (method, path, status) in [
        (Method::POST, CHAT, StatusCode::BAD_REQUEST),
        (Method::POST, "/v1/nothing", StatusCode::NOT_FOUND),
        (Method::GET, CHAT, StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let error = from(&served, PAGE, method, path, String::new()).await;
        assert_eq!((error.status(), error.header(ALLOWED)), (status, Some(PAGE)));
    }
}

#[tokio::test]
async fn other_pages_are_not_let_in() {
    for (origins, allowed) in [(&[PAGE][..], None), (&[], None), (&["*"], Some("*"))] {
        let served = gateway(settings(origins)).await;
        let asked = from(
            &served,
            "https://evil.example",
            Method::OPTIONS,
            CHAT,
            String::new(),
        )
        .await;
        assert_eq!(asked.header(ALLOWED), allowed);
        assert_eq!(
            asked.header("access-control-allow-methods").is_some(),
            allowed.is_some()
        );
        let answer = from(
            &served,
            "https://evil.example",
            Method::GET,
            "/v1/models",
            String::new(),
        )
        .await;
        assert_eq!(
            (answer.status(), answer.header(ALLOWED)),
            (StatusCode::OK, allowed)
        );
    }
}

#[tokio::test]
async fn the_page_runs_no_script_but_its_own() {
    let served = gateway(Settings::default()).await;
    for (path, kind) in [
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/page.css", "text/css"),
    ] {
        let file = get(served.http, path).await;
        assert!(file.header("content-type").unwrap().starts_with(kind));
        let policy = file.header("content-security-policy").unwrap().to_owned();
        assert!(policy.contains("default-src 'none'; script-src 'self'") && !policy.contains("unsafe"));
        let text = file.text().await;
        assert!(
            !text.contains("onclick=") && !text.contains("style=") && !text.contains("innerHTML"),
            "{path}"
        );
        assert_eq!(text.matches("<script").count(), usize::from(path == "/"));
    }
}
