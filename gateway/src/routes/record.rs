//! What the metrics learn of a request.

use std::sync::Arc;

use tokio::time::Instant;

use crate::Gateway;
use crate::error::ApiError;
use crate::relay::Delta;

/// One request, from its arrival to the end of its answer. Dropped before the end, it counts as cancelled.
#[derive(Debug)]
pub struct Record {
    gateway: Arc<Gateway>,
    route: &'static str,
    model: Option<String>,
    arrived: Instant,
    first_text: bool,
    ended: bool,
}

impl Record {
    /// A request has arrived.
    #[must_use]
    pub fn new(gateway: Arc<Gateway>, route: &'static str) -> Self {
        Self {
            gateway,
            route,
            model: None,
            arrived: Instant::now(),
            first_text: false,
            ended: false,
        }
    }

    /// It names a model that exists.
    pub fn model(&mut self, model: &str) {
        self.model = Some(model.to_owned());
    }

    /// A piece of the answer passes.
    pub fn delta(&mut self, delta: &Delta) {
        let Some(model) = &self.model else { return };
        let seconds = self.arrived.elapsed().as_secs_f64();
        if !self.first_text && delta.output_tokens > 0 {
            self.first_text = true;
            self.gateway.metrics.first_token(model, seconds);
        }
        if delta.finish.is_some() {
            self.gateway
                .metrics
                .answered(model, seconds, delta.prompt_tokens, delta.output_tokens);
            self.end("200");
        }
    }

    /// It failed.
    pub fn failed(&mut self, error: &ApiError) {
        self.end(error.status.as_str());
    }

    fn end(&mut self, status: &str) {
        if !self.ended {
            self.ended = true;
            self.gateway
                .metrics
                .ended(self.route, self.model.as_deref(), status);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.end("cancelled");
    }
}
