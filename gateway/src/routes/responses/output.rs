//! An answer as items. Each change of an item is an event; a whole answer is what stands at the end.

use axum::Json;
use axum::response::{IntoResponse, Response};
use llamero_proto::v1::{FinishReason, ToolCallDelta};
use serde_json::{Value, json};

use super::objects::{Item, Settings, Status, Text, response};
use crate::error::ApiError;
use crate::relay::Delta;
use crate::routes::completion::logprobs::{Entry, entries};
use crate::routes::completion::order::Envelope;
use crate::routes::completion::sse::{Writer, named_event};
use crate::routes::usage::Usage;

/// The one answer to a request.
#[derive(Debug)]
pub struct Output {
    settings: Settings,
    envelope: Envelope,
    items: Vec<Item>,
    /// The last item is still being written.
    open: bool,
    status: Status,
    /// Events so far.
    sequence: u64,
}

impl Output {
    /// Nothing written yet.
    #[must_use]
    pub fn new(settings: Settings, envelope: Envelope) -> Self {
        Self {
            settings,
            envelope,
            items: Vec::new(),
            open: false,
            status: Status::InProgress,
            sequence: 0,
        }
    }

    #[allow(
        clippy::indexing_slicing,
        reason = "all fields are objects that are made here"
    )]
    fn event(&mut self, frame: &mut Vec<u8>, kind: &str, mut fields: Value) {
        fields["type"] = kind.into();
        fields["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        named_event(frame, kind, &fields);
    }

    fn state(&self, usage: Option<Usage>, error: Option<&ApiError>) -> Value {
        response(
            &self.envelope,
            &self.settings,
            self.status,
            &self.items,
            usage,
            error,
        )
    }

    /// The index of the last item, and its id.
    fn last(&self) -> (usize, String) {
        let id = match self.items.last() {
            Some(Item::Message { id, .. } | Item::FunctionCall { id, .. }) => id.clone(),
            None => String::new(),
        };
        (self.items.len().saturating_sub(1), id)
    }

    fn begin(&mut self, frame: &mut Vec<u8>, item: Item) {
        self.close(frame);
        let is_message = matches!(item, Item::Message { .. });
        self.items.push(item);
        self.open = true;
        let (index, id) = self.last();
        let item = json!({"output_index": index, "item": self.items.last()});
        self.event(frame, "response.output_item.added", item);
        if is_message {
            let part =
                json!({"item_id": id, "output_index": index, "content_index": 0, "part": Text::default()});
            if let Some(Item::Message { content, .. }) = self.items.last_mut() {
                content.push(Text::default());
            }
            self.event(frame, "response.content_part.added", part);
        }
    }

    fn text(&mut self, frame: &mut Vec<u8>, text: &str, logprobs: Vec<Entry>) {
        if text.is_empty() && logprobs.is_empty() {
            return;
        }
        if !self.open || !matches!(self.items.last(), Some(Item::Message { .. })) {
            let id = self.envelope.item_id("msg", self.items.len());
            self.begin(
                frame,
                Item::Message {
                    id,
                    role: "assistant",
                    status: "in_progress",
                    content: Vec::new(),
                },
            );
        }
        let (index, id) = self.last();
        let delta = json!({"item_id": id, "output_index": index, "content_index": 0, "delta": text, "logprobs": logprobs});
        if let Some(Item::Message { content, .. }) = self.items.last_mut()
            && let Some(part) = content.last_mut()
        {
            part.text.push_str(text);
            part.logprobs.extend(logprobs);
        }
        self.event(frame, "response.output_text.delta", delta);
    }

    fn call(&mut self, frame: &mut Vec<u8>, piece: &ToolCallDelta) {
        if !piece.name.is_empty() {
            let item = Item::FunctionCall {
                id: self.envelope.item_id("fc", self.items.len()),
                call_id: self.envelope.call_id(0, piece.index),
                name: piece.name.clone(),
                arguments: String::new(),
                status: "in_progress",
            };
            self.begin(frame, item);
        }
        if piece.arguments.is_empty() {
            return;
        }
        let (index, id) = self.last();
        if let Some(Item::FunctionCall { arguments, .. }) = self.items.last_mut() {
            arguments.push_str(&piece.arguments);
        }
        let delta = json!({"item_id": id, "output_index": index, "delta": piece.arguments});
        self.event(frame, "response.function_call_arguments.delta", delta);
    }

    /// The last item is complete.
    fn close(&mut self, frame: &mut Vec<u8>) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let (index, id) = self.last();
        let word = match self.status {
            Status::Incomplete => "incomplete",
            _ => "completed",
        };
        match self.items.last_mut() {
            Some(Item::Message { status, content, .. }) => {
                *status = word;
                let part = content.last().cloned().unwrap_or_default();
                let done = json!({"item_id": id, "output_index": index, "content_index": 0, "text": part.text,
                    "logprobs": part.logprobs});
                self.event(frame, "response.output_text.done", done);
                let done = json!({"item_id": id, "output_index": index, "content_index": 0, "part": part});
                self.event(frame, "response.content_part.done", done);
            }
            Some(Item::FunctionCall {
                status,
                name,
                arguments,
                ..
            }) => {
                *status = word;
                let done =
                    json!({"item_id": id, "output_index": index, "name": name, "arguments": arguments});
                self.event(frame, "response.function_call_arguments.done", done);
            }
            None => return,
        }
        let item = json!({"output_index": index, "item": self.items.last()});
        self.event(frame, "response.output_item.done", item);
    }
}

impl Writer for Output {
    fn opening(&mut self, frame: &mut Vec<u8>) {
        for kind in ["response.created", "response.in_progress"] {
            let state = json!({"response": self.state(None, None)});
            self.event(frame, kind, state);
        }
    }

    fn piece(&mut self, frame: &mut Vec<u8>, _: usize, delta: &Delta, _: Usage) {
        self.text(frame, &delta.text, entries(&delta.logprobs));
        for piece in &delta.tool_calls {
            self.call(frame, piece);
        }
        if let Some(end) = &delta.end {
            self.status = match end.reason {
                FinishReason::Length => Status::Incomplete,
                _ => Status::Completed,
            };
            self.close(frame);
        }
    }

    /// Official parsers take the state of a response at any time.
    fn nothing(&mut self, frame: &mut Vec<u8>) {
        let state = json!({"response": self.state(None, None)});
        self.event(frame, "response.in_progress", state);
    }

    fn closing(&mut self, frame: &mut Vec<u8>, total: Usage) {
        let state = json!({"response": self.state(Some(total), None)});
        let kind = format!("response.{}", self.status.word());
        self.event(frame, &kind, state);
    }

    fn failure(&mut self, frame: &mut Vec<u8>, error: &ApiError) {
        let fields = json!({"code": error.code, "message": error.message, "param": error.param});
        self.event(frame, "error", fields);
        self.status = Status::Failed;
        let state = json!({"response": self.state(None, Some(error))});
        self.event(frame, "response.failed", state);
    }

    fn whole(self, total: Usage) -> Response {
        Json(self.state(Some(total), None)).into_response()
    }
}
