//! Requests and answers beside the types of OpenAI's own Python package: every answer and event is valid by them, strictly, and
//! every parameter that they know is in our table.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use llamero_gateway::Settings;
use llamero_gateway::routes::completion::fields::find;
use llamero_gateway::routes::completion::route::Route;
use llamero_proto::v1::{FinishReason, TokenLogprob};
use serde_json::{Value, json};
use tonic::Status;

use crate::support::client::{Reply, get, post};
use crate::support::worker::{Call, Worker};
use crate::support::{MODEL, Served, with_worker};

/// What is to be compared.
#[derive(Default)]
struct Compared {
    requests: Vec<(&'static str, Value)>,
    objects: Vec<(&'static str, Value)>,
}

impl Compared {
    /// What OpenAI's types say against it.
    fn problems(&self) -> Vec<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join("../.local/venv-clients-sdk/bin/python");
        assert!(
            python.exists(),
            "{} is missing: run tests/clients/install.sh sdk",
            python.display()
        );
        let mut process = Command::new(python)
            .arg(root.join("tests/support/conformance.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let routes = [
            ("chat", Route::Chat),
            ("text", Route::Text),
            ("responses", Route::Responses),
            ("embeddings", Route::Embeddings),
        ];
        let names = |route: Route| -> Vec<&str> {
            let names = route.fields().iter().map(|field| field.name);
            names.filter(|name| find(route, name).is_some()).collect()
        };
        let fields: serde_json::Map<_, _> = routes
            .into_iter()
            .map(|(name, route)| (name.to_owned(), names(route).into()))
            .collect();
        let given = json!({"fields": fields, "requests": self.requests, "objects": self.objects});
        let mut input = process.stdin.take().unwrap();
        input.write_all(given.to_string().as_bytes()).unwrap();
        drop(input);
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// A gateway whose answers are collected.
struct Collector {
    served: Served,
    worker: Worker,
    compared: Compared,
}

impl Collector {
    /// Ask while the worker answers by `answer`.
    async fn ask(&mut self, route: &'static str, body: Value, answer: impl AsyncFnOnce(Call)) -> Reply {
        self.compared.requests.push((route, body.clone()));
        let path = match route {
            "chat" => "/v1/chat/completions",
            "text" => "/v1/completions",
            _ => "/v1/responses",
        };
        let (reply, ()) = tokio::join!(post(self.served.http, path, body), async {
            answer(self.worker.call().await).await;
        });
        assert_eq!(reply.status().as_u16(), 200);
        reply
    }

    /// The same, whole and then streamed.
    async fn both(&mut self, route: &'static str, body: Value, answer: impl AsyncFn(Call)) {
        let (whole, event) = match route {
            "chat" => ("chat.completion", "chat.completion.chunk"),
            "text" => ("text_completion", "text_completion"),
            _ => ("response", "response.event"),
        };
        let reply = self.ask(route, body.clone(), &answer).await;
        self.compared.objects.push((whole, reply.json().await));
        let mut streamed = body;
        streamed["stream"] = true.into();
        if route != "responses" {
            streamed["stream_options"] = json!({"include_usage": true});
        }
        let reply = self.ask(route, streamed, &answer).await;
        self.events(event, reply).await;
    }

    async fn events(&mut self, kind: &'static str, mut reply: Reply) {
        let before = self.compared.objects.len();
        if kind == "response.event" {
            let events = reply.all_named().await;
            self.compared
                .objects
                .extend(events.into_iter().map(|(_, event)| (kind, event)));
        } else {
            while let Some(event) = reply.event().await.filter(|event| event != "[DONE]") {
                let mut event = whole_choice(kind, serde_json::from_str(&event).unwrap());
                match event.get_mut("error") {
                    Some(error) => self.compared.objects.push(("error", error.take())),
                    None => self.compared.objects.push((kind, event)),
                }
            }
        }
        assert!(self.compared.objects.len() > before + 2, "{kind}: no events");
    }

    async fn get(&mut self, kind: &'static str, path: &str) {
        let object = get(self.served.http, path).await.json().await;
        self.compared.objects.push((kind, object));
    }

    async fn embeddings(&mut self, body: Value) {
        self.compared.requests.push(("embeddings", body.clone()));
        let reply = post(self.served.http, "/v1/embeddings", body).await;
        self.compared.objects.push(("embeddings", reply.json().await));
    }

    async fn error(&mut self, path: &str, body: Value, status: u16) {
        let reply = post(self.served.http, path, body).await;
        assert_eq!(reply.status().as_u16(), status);
        let error = reply.json().await["error"].take();
        self.compared.objects.push(("error", error));
    }
}

/// The package's type of a whole text completion is that of its parts, too, and knows no null, which OpenAI's server sends.
fn whole_choice(kind: &str, mut event: Value) -> Value {
    if let Some(reason) = event.pointer_mut("/choices/0/finish_reason")
        && kind == "text_completion"
        && reason.is_null()
    {
        *reason = "stop".into();
    }
    event
}

fn logprob(text: &str) -> TokenLogprob {
    TokenLogprob {
        token_id: 100,
        bytes: text.as_bytes().to_vec(),
        logprob: -0.5,
        ..TokenLogprob::default()
    }
}

async fn answer_with_logprobs(call: Call) {
    let mut answering = call.accept().await;
    for text in ["Hel", "lo"] {
        answering
            .send_as(text, |chunk| {
                let top = vec![logprob(text), logprob("x")];
                chunk.logprobs = vec![TokenLogprob { top, ..logprob(text) }];
            })
            .await;
    }
    answering.send("", &[], Some(FinishReason::Stop)).await;
}

async fn answer_too_long(call: Call) {
    let mut answering = call.accept().await;
    answering.send("Hello", &[1], None).await;
    answering.send("", &[2], Some(FinishReason::Length)).await;
}

async fn break_off(call: Call) {
    let mut answering = call.accept().await;
    answering.send("Hel", &[1], None).await;
    answering.send("lo", &[2], None).await;
    answering
        .fail(Status::internal("the checkpoint is damaged"))
        .await;
}

fn ask(more: Value) -> Value {
    let mut body = json!({"model": MODEL, "user": "me"});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

async fn chats(collector: &mut Collector) {
    let messages = json!([{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]);
    let plain = json!({"messages": messages, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["x"],
        "frequency_penalty": 0.5, "presence_penalty": 0.5, "logit_bias": {"7": 1}, "metadata": {"a": "b"},
        "max_completion_tokens": 9, "store": false, "service_tier": "auto", "prompt_cache_key": "k"});
    collector.both("chat", ask(plain), answer_too_long).await;
    let logprobs = json!({"messages": messages, "logprobs": true, "top_logprobs": 2});
    collector.both("chat", ask(logprobs), answer_with_logprobs).await;
    let function = json!({"name": "f", "parameters": {"type": "object", "properties": {}}});
    let tools = json!({"tools": [{"type": "function", "function": function}], "tool_choice": "auto",
        "parallel_tool_calls": true, "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "12"}]});
    collector.both("chat", ask(tools), Call::answer_and_call).await;
    let broken = ask(json!({"messages": messages, "stream": true}));
    let reply = collector.ask("chat", broken, break_off).await;
    collector.events("chat.completion.chunk", reply).await;
}

async fn texts(collector: &mut Collector) {
    let plain = json!({"prompt": "hi", "max_tokens": 9, "echo": false, "best_of": 1, "n": 1});
    collector.both("text", ask(plain), answer_too_long).await;
    let logprobs = json!({"prompt": [1, 2], "logprobs": 2});
    collector.both("text", ask(logprobs), answer_with_logprobs).await;
}

async fn responses(collector: &mut Collector) {
    let tools = json!([{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true}]);
    let plain = json!({"input": "hi", "instructions": "be kind", "tools": tools, "store": true,
        "metadata": {"a": "b"}, "temperature": 0.5, "top_p": 0.9, "tool_choice": "auto", "truncation": "disabled",
        "text": {"format": {"type": "text"}}});
    collector
        .both("responses", ask(plain), Call::answer_and_call)
        .await;
    let long = json!({"input": [{"role": "user", "content": "hi"}], "max_output_tokens": 20});
    collector.both("responses", ask(long), answer_too_long).await;
    let logprobs = json!({"input": "hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2});
    collector
        .both("responses", ask(logprobs), answer_with_logprobs)
        .await;
    let broken = ask(json!({"input": "hi", "stream": true}));
    let reply = collector.ask("responses", broken, break_off).await;
    collector.events("response.event", reply).await;
}

/// Streams that are silent long enough for something to be sent that keeps them open.
async fn keep_alives(collector: &mut Collector) {
    let settings = Settings {
        first_chunk_wait: Duration::from_millis(10),
        keep_alive: Duration::from_millis(10),
        ..Settings::default()
    };
    let (served, mut worker) = with_worker(settings).await;
    for (kind, path, body) in [
        (
            "chat.completion.chunk",
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "hi"}]}),
        ),
        ("text_completion", "/v1/completions", json!({"prompt": "hi"})),
        ("response.event", "/v1/responses", json!({"input": "hi"})),
    ] {
        let mut body = ask(body);
        body["stream"] = true.into();
        let mut reply = post(served.http, path, body).await;
        // What comes while the worker says nothing keeps the stream open, but for the beginning of a response.
        let mut silent = Vec::new();
        while silent.len() < 4 {
            silent.push(match kind {
                "response.event" => reply.named().await.unwrap().1,
                _ => serde_json::from_str(&reply.event().await.unwrap()).unwrap(),
            });
        }
        collector
            .compared
            .objects
            .extend(silent.into_iter().map(|event| (kind, whole_choice(kind, event))));
        worker.call().await.answer(&["x", "y", "z"]).await;
        collector.events(kind, reply).await;
    }
}

async fn errors(collector: &mut Collector) {
    for (path, question) in [
        (
            "/v1/chat/completions",
            json!({"model": "nope", "messages": [{"role": "user", "content": "a"}]}),
        ),
        ("/v1/completions", json!({"model": "nope", "prompt": "a"})),
        ("/v1/responses", json!({"model": "nope", "input": "a"})),
        ("/v1/embeddings", json!({"model": "nope", "input": "a"})),
    ] {
        collector.error(path, json!([]), 400).await;
        collector.error(path, json!({"model": MODEL}), 400).await;
        collector.error(path, question, 404).await;
    }
    collector.error("/v1/rerank", json!({}), 404).await;
}

#[tokio::test]
async fn requests_and_answers_are_those_of_openais_types() {
    let (served, worker) = with_worker(Settings::default()).await;
    let mut collector = Collector {
        served,
        worker,
        compared: Compared::default(),
    };
    chats(&mut collector).await;
    texts(&mut collector).await;
    responses(&mut collector).await;
    errors(&mut collector).await;
    keep_alives(&mut collector).await;
    collector.get("models", "/v1/models").await;
    collector.get("model", "/v1/models/org/smol").await;
    collector.embeddings(ask(json!({"input": ["a", "b"]}))).await;
    collector
        .embeddings(ask(
            json!({"input": [[1, 2], [3]], "encoding_format": "float", "dimensions": 3}),
        ))
        .await;
    let problems = collector.compared.problems();
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));

    // What has a wrong type, lacks a field or has one too many is found.
    let mut wrong = Compared::default();
    for (kind, mut object) in std::mem::take(&mut collector.compared.objects) {
        match kind {
            "chat.completion" => object["created"] = "now".into(),
            "error" => object["code"] = 7.into(),
            "model" => drop(object.as_object_mut().unwrap().remove("id")),
            "embeddings" => object["data"][0]["text"] = "a".into(),
            _ => continue,
        }
        wrong.objects.push((kind, object));
    }
    wrong.requests.push((
        "chat",
        json!({"model": MODEL, "messages": [], "temperature": "hot"}),
    ));
    let found = wrong.problems();
    let kinds: Vec<_> = wrong.objects.iter().map(|(kind, _)| kind).collect();
    assert_eq!(found.len(), kinds.len() + 1, "{kinds:?}\n{}", found.join("\n\n"));
}
