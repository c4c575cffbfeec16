//! An answer as blocks. Each change of a block is an event; a whole answer is what stands at the end.

use axum::Json;
use axum::response::{IntoResponse, Response};
use llamero_proto::v1::{FinishReason, ToolCallDelta};
use serde_json::{Value, json};

use super::failure;
use crate::error::ApiError;
use crate::relay::{Delta, End, StopReason};
use crate::routes::completion::order::Envelope;
use crate::routes::completion::sse::{Writer, named_event};
use crate::routes::usage::Usage;

/// The one answer to a request.
#[derive(Debug)]
pub struct Output {
    envelope: Envelope,
    begun: bool,
    blocks: Vec<Block>,
    /// The last block is still being written.
    open: bool,
    end: Option<End>,
}

#[derive(Debug)]
enum Block {
    Text(String),
    Call { id: String, name: String, input: String },
}

impl Output {
    /// Nothing written yet.
    #[must_use]
    pub fn new(envelope: Envelope) -> Self {
        Self {
            envelope,
            begun: false,
            blocks: Vec::new(),
            open: false,
            end: None,
        }
    }

    fn message(&self, content: Value, usage: Usage) -> Value {
        let (reason, sequence) = self.stop();
        json!({
            "id": self.envelope.id, "type": "message", "role": "assistant", "model": self.envelope.model,
            "content": content, "stop_reason": reason, "stop_sequence": sequence, "usage": counts(usage),
        })
    }

    /// Why it ended, and the stop sequence if that was it.
    fn stop(&self) -> (Value, Value) {
        let Some(end) = &self.end else {
            return (Value::Null, Value::Null);
        };
        let called = self
            .blocks
            .iter()
            .any(|block| matches!(block, Block::Call { .. }));
        match (end.reason, end.stop_reason()) {
            (FinishReason::Length, _) => (json!("max_tokens"), Value::Null),
            (_, Some(StopReason::String(sequence))) => (json!("stop_sequence"), json!(sequence)),
            _ if called => (json!("tool_use"), Value::Null),
            _ => (json!("end_turn"), Value::Null),
        }
    }

    /// The prompt's tokens stand in the first event, so it waits for the first sign of the answer.
    fn begin_message(&mut self, frame: &mut Vec<u8>, usage: Usage) {
        if !std::mem::replace(&mut self.begun, true) {
            let fields = json!({"message": self.message(json!([]), usage)});
            event(frame, "message_start", fields);
        }
    }

    fn begin(&mut self, frame: &mut Vec<u8>, block: Block) {
        self.close(frame);
        let start = match &block {
            Block::Text(_) => json!({"type": "text", "text": ""}),
            Block::Call { id, name, .. } => json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
        };
        let fields = json!({"index": self.blocks.len(), "content_block": start});
        event(frame, "content_block_start", fields);
        self.blocks.push(block);
        self.open = true;
    }

    fn delta(&self, frame: &mut Vec<u8>, delta: Value) {
        let fields = json!({"index": self.blocks.len().saturating_sub(1), "delta": delta});
        event(frame, "content_block_delta", fields);
    }

    fn text(&mut self, frame: &mut Vec<u8>, more: &str) {
        if more.is_empty() {
            return;
        }
        if !self.open || !matches!(self.blocks.last(), Some(Block::Text(_))) {
            self.begin(frame, Block::Text(String::new()));
        }
        if let Some(Block::Text(text)) = self.blocks.last_mut() {
            text.push_str(more);
        }
        self.delta(frame, json!({"type": "text_delta", "text": more}));
    }

    fn call(&mut self, frame: &mut Vec<u8>, piece: &ToolCallDelta) {
        if !piece.name.is_empty() {
            let call = Block::Call {
                id: self.envelope.call_id(0, piece.index),
                name: piece.name.clone(),
                input: String::new(),
            };
            self.begin(frame, call);
        }
        if piece.arguments.is_empty() {
            return;
        }
        if let Some(Block::Call { input, .. }) = self.blocks.last_mut() {
            input.push_str(&piece.arguments);
        }
        self.delta(
            frame,
            json!({"type": "input_json_delta", "partial_json": piece.arguments}),
        );
    }

    fn close(&mut self, frame: &mut Vec<u8>) {
        if std::mem::take(&mut self.open) {
            let index = self.blocks.len().saturating_sub(1);
            event(frame, "content_block_stop", json!({"index": index}));
        }
    }
}

/// A block of a whole answer. What the model wrote as arguments but is no JSON is given as a string.
fn whole(block: &Block) -> Value {
    match block {
        Block::Text(text) => json!({"type": "text", "text": text}),
        Block::Call { id, name, input } => {
            let input = match input.trim() {
                "" => json!({}),
                json => serde_json::from_str(json).unwrap_or_else(|_| Value::from(input.as_str())),
            };
            json!({"type": "tool_use", "id": id, "name": name, "input": input})
        }
    }
}

fn counts(usage: Usage) -> Value {
    let cached = usage.prompt_tokens_details.cached_tokens;
    // Anthropic counts tokens from a cache apart from the others.
    json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(cached), "output_tokens": usage.completion_tokens,
        "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached,
    })
}

#[allow(
    clippy::indexing_slicing,
    reason = "all fields are objects that are made here"
)]
fn event(frame: &mut Vec<u8>, kind: &str, mut fields: Value) {
    fields["type"] = kind.into();
    named_event(frame, kind, &fields);
}

impl Writer for Output {
    fn opening(&mut self, _: &mut Vec<u8>) {}

    fn piece(&mut self, frame: &mut Vec<u8>, _: usize, delta: &Delta, usage: Usage) {
        self.begin_message(frame, usage);
        self.text(frame, &delta.text);
        for piece in &delta.tool_calls {
            self.call(frame, piece);
        }
        if delta.end.is_some() {
            self.end.clone_from(&delta.end);
            self.close(frame);
        }
    }

    fn nothing(&mut self, frame: &mut Vec<u8>) {
        event(frame, "ping", json!({}));
    }

    fn closing(&mut self, frame: &mut Vec<u8>, total: Usage) {
        let (reason, sequence) = self.stop();
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        event(
            frame,
            "message_delta",
            json!({"delta": delta, "usage": counts(total)}),
        );
        event(frame, "message_stop", json!({}));
    }

    fn failure(&mut self, frame: &mut Vec<u8>, error: &ApiError) {
        named_event(frame, "error", &failure::body(error));
    }

    fn whole(self, total: Usage) -> Response {
        let content: Vec<Value> = self.blocks.iter().map(whole).collect();
        Json(self.message(content.into(), total)).into_response()
    }
}
