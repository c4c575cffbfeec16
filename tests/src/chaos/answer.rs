//! An answer as it comes, event by event.

use serde_json::Value;

/// What has come of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its tokens with their log-probabilities as they stood in the events, where they were asked for.
    pub tokens: Vec<String>,
    /// How many tokens the gateway has counted.
    pub count: u64,
    /// Why it ended.
    pub finish: Option<String>,
    /// Whether `[DONE]` came.
    pub done: bool,
    /// The error that ended it.
    pub error: Option<String>,
    /// What no answer may do, whatever happens.
    pub breach: Option<String>,
}

impl Answer {
    /// Takes one `data:` line of the event stream.
    pub fn take(&mut self, data: &str) {
        if self.done || self.error.is_some() {
            self.breach = Some(format!("an event after the end: {data}"));
        } else if data == "[DONE]" {
            self.done = true;
        } else {
            match serde_json::from_str::<Value>(data) {
                Ok(event) => self.take_event(&event),
                Err(error) => self.breach = Some(format!("an event that is no JSON ({error}): {data}")),
            }
        }
    }

    fn take_event(&mut self, event: &Value) {
        if !event["error"].is_null() {
            self.error = Some(event["error"].to_string());
            return;
        }
        let choice = &event["choices"][0];
        if let Some(text) = choice["delta"]["content"].as_str() {
            self.text.push_str(text);
        }
        for token in choice["logprobs"]["content"].as_array().into_iter().flatten() {
            self.tokens.push(token.to_string());
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish = Some(reason.to_owned());
        }
        if let Some(count) = event["usage"]["completion_tokens"].as_u64() {
            if count < self.count {
                self.breach = Some(format!("the count of tokens fell from {} to {count}", self.count));
            }
            self.count = count;
        }
    }

    /// Whether it is the beginning of `whole`, or all of it.
    #[must_use]
    pub fn begins(&self, whole: &Self) -> bool {
        whole.text.starts_with(&self.text)
            && whole.tokens.starts_with(&self.tokens)
            && self.count <= whole.count
    }
}

/// Cuts the bytes of an event stream into the data of its events.
#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes more bytes and gives out what `data:` lines have ended.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(bytes);
        let mut all = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            all.extend(line.trim_end().strip_prefix("data: ").map(str::to_owned));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(events: &[&str]) -> Answer {
        let mut answer = Answer::default();
        events.iter().for_each(|event| answer.take(event));
        answer
    }

    #[test]
    fn an_answer_is_gathered_from_its_events() {
        let whole = answer(&[
            r#"{"choices": [{"delta": {"content": "He"}}], "usage": {"completion_tokens": 1}}"#,
            r#"{"choices": [{"delta": {"content": "llo"}, "finish_reason": "length"}], "usage": {"completion_tokens": 2}}"#,
            r#"{"choices": [], "usage": {"completion_tokens": 2}}"#,
            "[DONE]",
        ]);
        assert_eq!((whole.text.as_str(), whole.count, whole.done), ("Hello", 2, true));
        assert_eq!(
            (whole.finish.as_deref(), whole.breach.clone()),
            (Some("length"), None)
        );
        let begun =
            answer(&[r#"{"choices": [{"delta": {"content": "He"}}], "usage": {"completion_tokens": 1}}"#]);
        assert!(begun.begins(&whole) && !whole.begins(&begun));
    }

    #[test]
    fn what_no_answer_may_do_is_noticed() {
        let falling = [
            r#"{"choices": [], "usage": {"completion_tokens": 2}}"#,
            r#"{"choices": [], "usage": {"completion_tokens": 1}}"#,
        ];
        assert!(answer(&falling).breach.is_some());
        assert!(answer(&["[DONE]", "{}"]).breach.is_some());
        assert!(answer(&["{"]).breach.is_some());
    }

    #[test]
    fn events_are_cut_wherever_the_bytes_were() {
        let stream = "data: a\n\ndata: b\r\n\n: comment\ndata: c";
        for cut in 0..stream.len() {
            let mut lines = Lines::default();
            let mut all = lines.take(&stream.as_bytes()[..cut]);
            all.extend(lines.take(&stream.as_bytes()[cut..]));
            assert_eq!(all, ["a", "b"]);
        }
    }
}
