//! What the metrics learn of a request.

use std::sync::Arc;

use tokio::time::Instant;

use super::usage::Usage;
use crate::Gateway;
use crate::error::ApiError;

/// One request, from its arrival to the end of its answer. Dropped before the end, it counts as cancelled.
#[derive(Debug)]
pub struct Record {
    gateway: Arc<Gateway>,
    route: &'static str,
    model: Option<String>,
    arrived: Instant,
    first_token: bool,
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
            first_token: false,
            ended: false,
        }
    }

    /// It names a model that exists.
    pub fn model(&mut self, model: &str) {
        self.model = Some(model.to_owned());
    }

    /// A piece of an answer passes, which has so many tokens now.
    pub fn progress(&mut self, output_tokens: u32) {
        if self.first_token || output_tokens == 0 {
            return;
        }
        self.first_token = true;
        if let Some(model) = &self.model {
            let seconds = self.arrived.elapsed().as_secs_f64();
            self.gateway.metrics.first_token(model, seconds);
        }
    }

    /// All answers are complete.
    pub fn answered(&mut self, usage: Usage) {
        if let Some(model) = &self.model {
            let seconds = self.arrived.elapsed().as_secs_f64();
            self.gateway
                .metrics
                .answered(model, seconds, usage.prompt_tokens, usage.completion_tokens);
        }
        self.end("200");
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
