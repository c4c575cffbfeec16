//! What metrics and limits learn of a request.

use std::sync::Arc;

use llamero_proto::v1::AdmitReply;
use tokio::time::Instant;

use super::completion::order::Envelope;
use super::usage::{Counter, Usage};
use crate::Gateway;
use crate::error::ApiError;
use crate::keys::Caller;
use crate::quota::Admission;
use crate::relay::Delta;

/// One request, from its arrival to the end of its answer. Dropped before the end, it counts as cancelled.
#[derive(Debug)]
pub struct Record {
    gateway: Arc<Gateway>,
    route: &'static str,
    caller: Caller,
    admission: Option<Admission>,
    model: Option<String>,
    arrived: Instant,
    counter: Counter,
    first_token: bool,
    ended: bool,
}

impl Record {
    /// A request has arrived.
    #[must_use]
    pub fn new(gateway: Arc<Gateway>, route: &'static str, caller: Caller) -> Self {
        Self {
            gateway,
            route,
            caller,
            admission: None,
            model: None,
            arrived: Instant::now(),
            counter: Counter::default(),
            first_token: false,
            ended: false,
        }
    }

    /// It names a model that exists.
    pub fn model(&mut self, model: &str) {
        self.model = Some(model.to_owned());
    }

    /// Let it in, if its key's limits allow so many tokens more.
    ///
    /// # Errors
    /// 429.
    pub async fn admit(&mut self, tokens: u64) -> Result<(), ApiError> {
        if let Some(key) = &self.caller.key {
            self.admission = Some(self.gateway.quotas.admit(key, tokens).await?);
        }
        Ok(())
    }

    /// What was left of the key's limits when the request was let in.
    #[must_use]
    pub fn limits(&self) -> Option<AdmitReply> {
        self.admission.as_ref().map(|admission| admission.reply)
    }

    /// These answers come.
    pub fn expect(&mut self, envelope: &Envelope) {
        self.counter = Counter::new(envelope);
    }

    /// How many answers come.
    #[must_use]
    pub fn expected(&self) -> usize {
        self.counter.answers()
    }

    /// A piece of an answer passes.
    pub fn count(&mut self, index: usize, delta: &Delta) {
        self.counter.count(index, delta);
        if self.first_token || delta.output_tokens == 0 {
            return;
        }
        self.first_token = true;
        if let Some(model) = &self.model {
            let seconds = self.arrived.elapsed().as_secs_f64();
            self.gateway.metrics.first_token(model, seconds);
        }
    }

    /// Tokens of one answer so far.
    #[must_use]
    pub fn usage_of(&self, index: usize) -> Usage {
        self.counter.of(index)
    }

    /// Tokens of all answers so far.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.counter.total()
    }

    /// All answers are complete.
    pub fn answered(&mut self) {
        if let Some(model) = &self.model {
            let seconds = self.arrived.elapsed().as_secs_f64();
            let usage = self.usage();
            self.gateway
                .metrics
                .answered(model, seconds, usage.prompt_tokens, usage.completion_tokens);
        }
        self.end("200");
    }

    /// So many tokens were counted elsewhere.
    pub fn used(&mut self, prompt: u32, output: u32) {
        self.counter = Counter::of_one(prompt, output);
    }

    /// What was asked is answered, without an answer of the model.
    pub fn finished(&mut self) {
        self.end("200");
    }

    /// It failed.
    pub fn failed(&mut self, error: &ApiError) {
        self.end(error.status.as_str());
    }

    fn end(&mut self, status: &str) {
        if self.ended {
            return;
        }
        self.ended = true;
        let (metrics, model, usage) = (&self.gateway.metrics, self.model.as_deref(), self.usage());
        metrics.ended(self.route, model, status);
        if let Some(key) = self.caller.name() {
            metrics.key_ended(key, model, status, usage);
        }
        if let Some(mut admission) = self.admission.take() {
            admission.used(usage.total_tokens.into());
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.end("cancelled");
    }
}
