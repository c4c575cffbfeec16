//! One answer, as far as it has come.

use super::logprobs::{Logprobs, join, logprobs};
use super::objects::{Function, ToolCall};
use super::order::Envelope;
use super::route::Route;
use crate::relay::{Delta, End};
use llamero_proto::v1::TokenLogprob;

/// Of a stream only what later pieces depend on is kept.
#[derive(Debug, Default)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Name and arguments.
    calls: Vec<(String, String)>,
    /// It has tool calls.
    pub called: bool,
    /// Of the prompt's tokens.
    pub prompt_logprobs: Vec<TokenLogprob>,
    /// Of its tokens.
    pub logprobs: Option<Logprobs>,
    /// Characters of its tokens so far.
    pub offset: usize,
    /// How it ended.
    pub end: Option<End>,
}

impl Answer {
    /// More of it.
    pub fn add(&mut self, route: Route, echo: bool, delta: Delta) {
        self.text.push_str(&delta.text);
        if echo {
            let prompt = logprobs(route, &delta.prompt_logprobs, &mut self.offset);
            join(&mut self.logprobs, prompt);
        }
        self.prompt_logprobs.extend(delta.prompt_logprobs);
        join(
            &mut self.logprobs,
            logprobs(route, &delta.logprobs, &mut self.offset),
        );
        for piece in delta.tool_calls {
            if !piece.name.is_empty() {
                self.calls.push((piece.name, String::new()));
            }
            if let Some((_, arguments)) = self.calls.last_mut() {
                arguments.push_str(&piece.arguments);
            }
        }
        self.end = delta.end.or(self.end.take());
    }

    /// Its calls as they are sent.
    #[must_use]
    pub fn calls(&self, envelope: &Envelope, choice: usize) -> Vec<ToolCall<'_>> {
        (0..)
            .zip(&self.calls)
            .map(|(call, (name, arguments))| ToolCall {
                index: None,
                id: Some(envelope.call_id(choice, call)),
                kind: Some("function"),
                function: Function {
                    name: Some(name),
                    arguments,
                },
            })
            .collect()
    }
}
