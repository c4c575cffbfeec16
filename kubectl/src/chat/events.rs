//! Server-sent events of an answer (<https://html.spec.whatwg.org/multipage/server-sent-events.html>), as the gateway writes them.

use llamero_chat::{
    ChatError,
    answer::{Finish, Piece},
};
use serde::Deserialize;

/// Longest event that is taken.
const MOST_BYTES: usize = 8 << 20;

/// Puts lines together from what comes over the network.
#[derive(Debug, Default)]
pub struct Events {
    buffer: Vec<u8>,
    done: bool,
}

#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Failure>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
}

/// What a gateway says when it refuses.
#[derive(Debug, Deserialize)]
pub struct Failure {
    /// In words.
    #[serde(default)]
    pub message: String,
}

impl Events {
    /// Takes bytes; returns the pieces that are whole.
    ///
    /// # Errors
    /// The gateway ends the answer with an error, or writes something else than events.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Vec<Piece>, ChatError> {
        self.buffer.extend_from_slice(bytes);
        let mut pieces = Vec::new();
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let rest = self.buffer.split_off(end + 1);
            let line = std::mem::replace(&mut self.buffer, rest);
            if let Some(data) = line.strip_prefix(b"data:") {
                pieces.extend(self.event(data.trim_ascii())?);
            }
        }
        if self.buffer.len() > MOST_BYTES {
            return Err(ChatError::Refused(format!(
                "the gateway has written an event of more than {MOST_BYTES} bytes"
            )));
        }
        Ok(pieces)
    }

    /// Whether the last event has come.
    #[must_use]
    pub const fn done(&self) -> bool {
        self.done
    }

    fn event(&mut self, data: &[u8]) -> Result<Option<Piece>, ChatError> {
        if data == b"[DONE]" {
            self.done = true;
            return Ok(None);
        }
        let chunk: Chunk = serde_json::from_slice(data).map_err(|error| {
            ChatError::Refused(format!(
                "the gateway has written an event that is no chunk of a chat: {error}"
            ))
        })?;
        if let Some(failure) = chunk.error {
            return Err(ChatError::Refused(failure.message));
        }
        let mut piece = Piece {
            prompt_tokens: chunk.usage.as_ref().map(|usage| usage.prompt_tokens),
            output_tokens: chunk.usage.as_ref().map(|usage| usage.completion_tokens),
            ..Piece::default()
        };
        if let Some(choice) = chunk.choices.into_iter().next() {
            piece.text = choice.delta.content.unwrap_or_default();
            piece.finish = choice.finish_reason.map(|reason| match reason.as_str() {
                "length" => Finish::Length,
                _ => Finish::Stop,
            });
        }
        Ok(Some(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_whole_wherever_the_network_cuts_them() {
        let text = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
                    : comment\n\
                    data: {\"choices\":[{\"delta\":{\"content\":\"Héllo\"},\"finish_reason\":null}]}\r\n\r\n\
                    data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n\
                    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\n\
                    data: [DONE]\n\n";
        for size in [1, 7, text.len()] {
            let mut events = Events::default();
            let mut pieces = Vec::new();
            for bytes in text.as_bytes().chunks(size) {
                pieces.extend(events.take(bytes).unwrap());
            }
            let said: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
            assert_eq!(said, "Héllo");
            assert_eq!(
                pieces.iter().filter_map(|piece| piece.finish).next(),
                Some(Finish::Length)
            );
            assert_eq!(pieces.last().unwrap().output_tokens, Some(2));
            assert!(events.done());
        }
    }

    #[test]
    fn errors_within_a_stream_are_said() {
        let mut events = Events::default();
        let error = events
            .take(b"data: {\"error\":{\"message\":\"the leader is lost\"}}\n")
            .unwrap_err();
        assert_eq!(error.to_string(), "the leader is lost");
        assert!(events.take(b"data: <html>\n").is_err());
        assert!(Events::default().take(&vec![b'x'; MOST_BYTES + 1]).is_err());
    }
}
