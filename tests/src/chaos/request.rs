//! What the streams ask for.

use serde_json::{Value, json};

/// Streams of a run.
pub const STREAMS: usize = 64;

const BEGINNINGS: [&str; 8] = [
    "Tell me a story about a llama who",
    "Write a letter to a friend who",
    "Explain to a child why somebody",
    "Give me a recipe for somebody who",
    "Describe a mountain village where everybody",
    "Write a short poem about a bird that",
    "List what one should pack when one",
    "Tell me what a doctor says to a man who",
];
const ENDS: [&str; 8] = [
    "crosses the Andes.",
    "has lost the way in the snow.",
    "never sleeps.",
    "sings in the market.",
    "waits for the rain.",
    "counts the stars.",
    "carries water up a hill.",
    "learns to read at seventy.",
];

/// What stream `index` asks for, always the same: every other one sampled, every fourth one with the log-probabilities of its tokens. Every answer
/// has exactly `tokens` tokens.
#[must_use]
pub fn request(model: &str, index: usize, tokens: u32) -> Value {
    let beginning = BEGINNINGS[index % BEGINNINGS.len()];
    let end = ENDS[index / BEGINNINGS.len() % ENDS.len()];
    let mut request = json!({
        "model": model,
        "messages": [{"role": "user", "content": format!("{beginning} {end}")}],
        "max_tokens": tokens,
        "ignore_eos": true,
        "temperature": if index.is_multiple_of(2) { 0.0 } else { 0.9 },
        "seed": index,
        "stream": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true},
    });
    if index % 4 == 1 {
        request["logprobs"] = json!(true);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_streams_ask_the_same() {
        let all: std::collections::BTreeSet<String> = (0..STREAMS)
            .map(|index| request("m", index, 8)["messages"].to_string())
            .collect();
        assert_eq!(all.len(), STREAMS);
    }
}
