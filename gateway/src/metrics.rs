//! Prometheus metrics. Labels name models that exist, never what a client made up.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use llamero_identity::certificate::unix_seconds;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::demand::Demand;
use crate::discovery::DeploymentKey;
use crate::routes::usage::Usage;

/// A request that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    route: &'static str,
    model: String,
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Model {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Deployment {
    namespace: String,
    name: String,
}

/// What an API key has asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyRequests {
    key: String,
    model: String,
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyTokens {
    key: String,
    model: String,
    kind: &'static str,
}

/// All metrics of the gateway.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Ended, Counter>,
    first_token: Family<Model, Histogram, fn() -> Histogram>,
    duration: Family<Model, Histogram, fn() -> Histogram>,
    prompt_tokens: Family<Model, Counter>,
    output_tokens: Family<Model, Counter>,
    continuations: Family<Model, Counter>,
    key_requests: Family<KeyRequests, Counter>,
    key_tokens: Family<KeyTokens, Counter>,
    held: Family<Deployment, Gauge>,
    in_flight: Family<Deployment, Gauge>,
    certificate_end: Gauge,
    known: Mutex<Known>,
}

/// Labels that exist, so that those of deployments that are gone can be removed.
#[derive(Debug, Default)]
struct Known {
    ended: HashSet<Ended>,
    models: HashSet<Model>,
    deployments: HashSet<Deployment>,
    key_requests: HashSet<KeyRequests>,
    key_tokens: HashSet<KeyTokens>,
}

/// The model of requests that named none that exists.
const UNKNOWN: &str = "unknown";

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registered under `llamero_gateway_`.
    #[must_use]
    pub fn new() -> Self {
        let seconds: fn() -> Histogram =
            || Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]);
        let mut registry = Registry::with_prefix("llamero_gateway");
        let requests = Family::default();
        registry.register(
            "requests",
            "Requests that have ended, by HTTP status or 'cancelled'",
            requests.clone(),
        );
        let first_token = Family::new_with_constructor(seconds);
        registry.register(
            "time_to_first_token_seconds",
            "From the arrival of a request to its first text",
            first_token.clone(),
        );
        let duration = Family::new_with_constructor(seconds);
        registry.register(
            "request_duration_seconds",
            "From the arrival of a request to the end of its answer",
            duration.clone(),
        );
        let prompt_tokens = Family::default();
        registry.register(
            "prompt_tokens",
            "Tokens of answered prompts",
            prompt_tokens.clone(),
        );
        let output_tokens = Family::default();
        registry.register("output_tokens", "Tokens of answers", output_tokens.clone());
        let continuations = Family::default();
        registry.register(
            "continuations",
            "Requests that went on after their leader was lost",
            continuations.clone(),
        );
        let key_requests = Family::default();
        registry.register(
            "key_requests",
            "Requests of an API key that have ended, by HTTP status or 'cancelled'",
            key_requests.clone(),
        );
        let key_tokens = Family::default();
        registry.register(
            "key_tokens",
            "Tokens of prompts and answers of an API key, those of answers that were cut off too",
            key_tokens.clone(),
        );
        let held = Family::default();
        registry.register(
            "held_requests",
            "Requests that wait because no group is ready",
            held.clone(),
        );
        let in_flight = Family::default();
        registry.register(
            "in_flight_requests",
            "Requests that run on a group",
            in_flight.clone(),
        );
        let certificate_end = Gauge::default();
        registry.register(
            "certificate_end_seconds",
            "Unix time at which the certificate of this gateway ends; 0 without one",
            certificate_end.clone(),
        );
        Self {
            certificate_end,
            registry,
            requests,
            first_token,
            duration,
            prompt_tokens,
            output_tokens,
            continuations,
            key_requests,
            key_tokens,
            held,
            in_flight,
            known: Mutex::default(),
        }
    }

    /// Forget models and deployments that are not among those present. Answers that still run bring a model back until
    /// the next change; there are few of them, and they end.
    pub fn keep(&self, deployments: &BTreeSet<DeploymentKey>, models: &BTreeSet<String>) {
        self.keep_key_labels(|_, model| model == UNKNOWN || models.contains(model));
        let mut known = self.known();
        known.ended.retain(|label| {
            let keep = label.model == UNKNOWN || models.contains(&label.model);
            keep || !self.requests.remove(label)
        });
        known.models.retain(|label| {
            if models.contains(&label.model) {
                return true;
            }
            self.first_token.remove(label);
            self.duration.remove(label);
            self.prompt_tokens.remove(label);
            self.output_tokens.remove(label);
            self.continuations.remove(label);
            false
        });
        known.deployments.retain(|label| {
            let key = DeploymentKey {
                namespace: label.namespace.clone(),
                name: label.name.clone(),
            };
            if deployments.contains(&key) {
                return true;
            }
            self.held.remove(label);
            self.in_flight.remove(label);
            false
        });
    }

    /// Forget API keys that are not among those present.
    pub fn keep_keys(&self, names: &BTreeSet<String>) {
        self.keep_key_labels(|key, _| names.contains(key));
    }

    fn keep_key_labels(&self, keep: impl Fn(&String, &String) -> bool) {
        let mut known = self.known();
        known
            .key_requests
            .retain(|label| keep(&label.key, &label.model) || !self.key_requests.remove(label));
        known
            .key_tokens
            .retain(|label| keep(&label.key, &label.model) || !self.key_tokens.remove(label));
    }

    /// A request of an API key has ended, after so many tokens.
    pub fn key_ended(&self, key: &str, model: Option<&str>, status: &str, usage: Usage) {
        let (key, model) = (key.to_owned(), model.unwrap_or(UNKNOWN).to_owned());
        for (kind, count) in [
            ("prompt", usage.prompt_tokens),
            ("output", usage.completion_tokens),
        ] {
            let label = KeyTokens {
                key: key.clone(),
                model: model.clone(),
                kind,
            };
            if count > 0 {
                self.key_tokens.get_or_create(&label).inc_by(count.into());
                self.known().key_tokens.insert(label);
            }
        }
        let status = status.to_owned();
        let label = KeyRequests { key, model, status };
        self.key_requests.get_or_create(&label).inc();
        self.known().key_requests.insert(label);
    }

    /// Nothing panics while it holds the lock, and the sets are valid at every time.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn label(&self, model: &str) -> Model {
        let label = Model {
            model: model.to_owned(),
        };
        let mut known = self.known();
        if !known.models.contains(&label) {
            known.models.insert(label.clone());
        }
        label
    }

    /// A request has ended; `model` is absent when it named none that exists.
    pub fn ended(&self, route: &'static str, model: Option<&str>, status: &str) {
        let label = Ended {
            route,
            model: model.unwrap_or(UNKNOWN).to_owned(),
            status: status.to_owned(),
        };
        self.requests.get_or_create(&label).inc();
        let mut known = self.known();
        if !known.ended.contains(&label) {
            known.ended.insert(label);
        }
    }

    /// The first text of an answer came.
    pub fn first_token(&self, model: &str, seconds: f64) {
        self.first_token
            .get_or_create(&self.label(model))
            .observe(seconds);
    }

    /// An answer is complete.
    pub fn answered(&self, model: &str, seconds: f64, prompt_tokens: u32, output_tokens: u32) {
        let label = self.label(model);
        self.duration.get_or_create(&label).observe(seconds);
        self.prompt_tokens
            .get_or_create(&label)
            .inc_by(prompt_tokens.into());
        self.output_tokens
            .get_or_create(&label)
            .inc_by(output_tokens.into());
        // It is there from the first answer on: a rate does not see a counter that appears with its first count.
        drop(self.continuations.get_or_create(&label));
    }

    /// A request goes on after its leader was lost.
    pub fn continued(&self, model: &str) {
        self.continuations.get_or_create(&self.label(model)).inc();
    }

    /// All metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// When formatting fails, which a `String` never does.
    pub fn render(&self, demand: &Demand, certificate_end: Option<SystemTime>) -> Result<String, fmt::Error> {
        let end = certificate_end.map_or(0, unix_seconds);
        let end = i64::try_from(end).unwrap_or(i64::MAX);
        self.certificate_end.set(end);
        for (key, counts) in demand.counts() {
            let label = Deployment {
                namespace: key.namespace,
                name: key.name,
            };
            self.held.get_or_create(&label).set(counts.held.into());
            self.in_flight.get_or_create(&label).set(counts.in_flight.into());
            self.known().deployments.insert(label);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
