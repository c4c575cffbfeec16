//! (tests) An API server that answers what a scenario says, and remembers what it was asked.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
};
use kube::{Client, Config};
use serde_json::{Value, json};

/// A request as it came in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) content_type: String,
    pub(crate) body: Value,
}

/// An answer to the next request of this method and path.
pub(crate) type Answer = (&'static str, &'static str, u16, Value);

#[derive(Default)]
struct Inner {
    answers: Mutex<VecDeque<Answer>>,
    asked: Mutex<Vec<Asked>>,
    objects: Mutex<Objects>,
}

/// Objects of one collection, by path, with how often anything was written.
#[derive(Default)]
struct Objects {
    collection: Option<String>,
    kept: BTreeMap<String, Value>,
    writes: u64,
}

impl Objects {
    /// Reads, creates and replaces as an API server does. None: the object is of another collection.
    fn answer(&mut self, method: &Method, path: &str, body: &Value) -> Option<(u16, Value)> {
        let collection = self.collection.clone()?;
        let is_conflict =
            |there: &Value| there["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"];
        let path = match *method {
            Method::POST if path == collection => {
                format!("{collection}/{}", body["metadata"]["name"].as_str()?)
            }
            _ => path.strip_prefix(&collection).map(|_| path.to_owned())?,
        };
        Some(match (method.as_str(), self.kept.get(&path)) {
            ("GET", Some(there)) => (200, there.clone()),
            ("POST", None) => (201, self.put(path, body.clone())),
            ("POST", Some(_)) => (409, failure(409, "AlreadyExists", "it exists")),
            ("PUT", Some(there)) if is_conflict(there) => (409, failure(409, "Conflict", "it was changed")),
            ("PUT", Some(_)) => (200, self.put(path, body.clone())),
            _ => (404, failure(404, "NotFound", "not found")),
        })
    }

    fn put(&mut self, path: String, mut object: Value) -> Value {
        self.writes += 1;
        object["metadata"]["resourceVersion"] = json!(self.writes.to_string());
        self.kept.insert(path, object.clone());
        object
    }
}

/// The server's memory.
#[derive(Clone, Default)]
pub(crate) struct ApiServer(Arc<Inner>);

impl ApiServer {
    /// A server that gives these answers once each, and says "not found" to everything else.
    pub(crate) async fn start(answers: Vec<Answer>) -> (Client, Self) {
        let server = Self::default();
        *server.0.answers.lock().unwrap_or_else(PoisonError::into_inner) = answers.into();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let mut config = Config::new(format!("http://{address}").parse().unwrap());
        // As `run::client` sets it.
        config.default_retry = false;
        (Client::try_from(config).unwrap(), server)
    }

    /// From now on it keeps the objects of this collection, beside what a scenario says.
    pub(crate) fn keep(&self, collection: &str) {
        self.objects().collection = Some(collection.to_owned());
    }

    /// Somebody else writes an object.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.objects().put(path.to_owned(), object);
    }

    /// Somebody else deletes an object.
    pub(crate) fn delete(&self, path: &str) {
        self.objects().kept.remove(path).unwrap();
    }

    /// An object that is kept.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.objects().kept.get(path).cloned()
    }

    fn objects(&self) -> std::sync::MutexGuard<'_, Objects> {
        self.0.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that were given an answer, in their order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.0
            .asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

async fn answer(
    State(server): State<ApiServer>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, Json<Value>) {
    let mut answers = server.0.answers.lock().unwrap_or_else(PoisonError::into_inner);
    let found = answers
        .iter()
        .position(|(m, p, ..)| method.as_str() == *m && uri.path() == *p);
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let Some((_, _, code, answer)) = found.and_then(|at| answers.remove(at)) else {
        if let Some((code, answer)) = server.objects().answer(&method, uri.path(), &body) {
            return (StatusCode::from_u16(code).unwrap(), Json(answer));
        }
        return (StatusCode::NOT_FOUND, Json(failure(404, "NotFound", "not found")));
    };
    let header = headers.get("content-type").and_then(|value| value.to_str().ok());
    server
        .0
        .asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(Asked {
            method: method.to_string(),
            path: uri.path().to_owned(),
            content_type: header.unwrap_or_default().to_owned(),
            body,
        });
    (StatusCode::from_u16(code).unwrap(), Json(answer))
}

/// A `Status` as the API server sends it.
pub(crate) fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message})
}
