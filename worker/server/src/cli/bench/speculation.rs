//! What drafts gain where answers repeat what was said, and what they cost where nothing repeats: two workers, with and without, in turn.

use std::fmt;
use std::path::Path;

use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::{CompletionRequest, TokenIds};
use llamero_settings::hash::mix;

use super::worker::{Worker, median};

/// Streams at once, one measurement each.
const STREAMS: [usize; 3] = [1, 4, 16];
/// Measurements of each kind, in turn; the medians are told, since machines are noisy.
const ROUNDS: usize = 5;
/// Tokens of a prompt of random words.
const WORDS: u64 = 48;
/// Token ids of ordinary words in every tokenizer that is served here.
const ORDINARY: std::ops::Range<u64> = 1_000..20_000;
/// Records that a model goes on copying.
const RECORDS: &str = r#"Format the records as JSON. Then write all of them again with the city changed to Lima.

[{"name": "Anna", "age": 31, "city": "Paris", "tags": ["red", "green"]},
 {"name": "Berta", "age": 32, "city": "Paris", "tags": ["red", "blue"]},
 {"name": "Carla", "age": 33, "city": "Paris", "tags": ["green", "blue"]},
 {"name": "Dora", "age": 34, "city": "Paris", "tags": ["red", "green"]}]

[{"name": "Anna", "age": 31, "city": "Lima", "tags": ["red", "green"]},
 {"name": "Berta", "age": 32,"#;

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    /// A copy of the prompt with changes, greedily.
    Copy,
    /// Whatever follows random words, at temperature 1.
    RandomWords,
}

impl Text {
    fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::RandomWords => "random words",
        }
    }

    fn request(self, stream: usize, round: usize, tokens: u32) -> CompletionRequest {
        let seed = (round * 100 + stream) as u64;
        let word = |at: u64| {
            let random = mix(seed << 32 | at) % (ORDINARY.end - ORDINARY.start);
            u32::try_from(ORDINARY.start + random).unwrap_or_default()
        };
        let (prompt, temperature) = match self {
            Self::Copy => (Prompt::Text(RECORDS.to_owned()), 0.0),
            Self::RandomWords => {
                let ids = (0..WORDS).map(word).collect();
                (Prompt::TokenIds(TokenIds { ids }), 1.0)
            }
        };
        CompletionRequest {
            prompt: Some(prompt),
            max_tokens: Some(tokens),
            temperature: Some(temperature),
            seed: Some(seed),
            ignore_eos: true,
            ..CompletionRequest::default()
        }
    }
}

/// Tokens per second over all streams.
#[derive(Debug)]
struct Speed {
    text: Text,
    streams: usize,
    without: f64,
    with: f64,
    /// The median of the rounds' ratios.
    ratio: f64,
    drafted: u64,
    accepted: u64,
}

/// The speeds of each text and number of streams.
#[derive(Debug)]
pub(super) struct Speculation(Vec<Speed>);

impl Speculation {
    /// Measure with workers of `threads` threads that decode answers of `tokens` tokens.
    ///
    /// # Errors
    /// A worker does not serve, or does not answer as asked.
    pub(super) fn measure(dir: &Path, threads: u32, tokens: u32) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(measure(dir, threads, tokens))
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let speed = |speed: &Speed| {
            serde_json::json!({"text": speed.text.name(), "streams": speed.streams,
                "plainTokensPerSecond": speed.without, "draftedTokensPerSecond": speed.with, "ratio": speed.ratio,
                "draftTokens": speed.drafted, "acceptedTokens": speed.accepted})
        };
        self.0.iter().map(speed).collect()
    }
}

impl fmt::Display for Speculation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Speed {
            text,
            streams,
            without,
            with,
            ratio,
            drafted,
            accepted,
        } in &self.0
        {
            let text = text.name();
            writeln!(
                f,
                "drafts    {text}, {streams} streams: {with:.1} tokens/s, {ratio:.3} of {without:.1} without; {accepted} of {drafted} drafts were right"
            )?;
        }
        Ok(())
    }
}

async fn measure(dir: &Path, threads: u32, tokens: u32) -> anyhow::Result<Speculation> {
    let context = tokens.saturating_add(1024);
    let warm_up = || Text::Copy.request(0, ROUNDS, 4);
    let plain = Worker::start(dir, threads, context, &[], warm_up()).await?;
    let drafting = ["--speculation", "prompt-lookup"];
    let drafting = Worker::start(dir, threads, context, &drafting, warm_up()).await?;
    let mut all = Vec::new();
    for text in [Text::Copy, Text::RandomWords] {
        for streams in STREAMS {
            let before = drafting.load().await?;
            let (mut without, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
            for round in 0..ROUNDS {
                let requests = || (0..streams).map(|stream| text.request(stream, round, tokens));
                let of_plain = plain.decode(requests()).await?;
                let of_drafting = drafting.decode(requests()).await?;
                without.push(of_plain);
                with.push(of_drafting);
                ratios.push(of_drafting / of_plain);
            }
            let after = drafting.load().await?;
            all.push(Speed {
                text,
                streams,
                without: median(without),
                with: median(with),
                ratio: median(ratios),
                drafted: after.draft_tokens - before.draft_tokens,
                accepted: after.accepted_tokens - before.accepted_tokens,
            });
        }
    }
    Ok(Speculation(all))
}
