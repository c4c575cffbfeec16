//! What a form costs: the speed at which answers are decoded under a JSON schema, beside that of free ones.
//!
//! A whole worker is started, since the masks of a form are made beside the steps that it computes: what counts is what they add to these.

use std::fmt;
use std::path::Path;

use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::{CompletionRequest, Structure, structure::Form};

use super::worker::{Worker, median};

/// Streams at once, one measurement each.
const STREAMS: [usize; 2] = [1, 16];
/// Measurements of each kind, in turn; the medians are told, since machines are noisy.
const ROUNDS: usize = 3;
/// A list that no answer reaches the end of, of objects as clients ask for them.
const SCHEMA: &str = r#"{"type": "array", "minItems": 1000, "items": {"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 24}, "age": {"type": "integer", "minimum": 0, "maximum": 120}, "kind": {"enum": ["llama", "alpaca", "vicuna"]}},
    "required": ["name", "age", "kind"], "additionalProperties": false}}"#;

/// Tokens per second over all streams.
#[derive(Debug)]
pub(super) struct Speed {
    streams: usize,
    free: f64,
    guided: f64,
}

/// The speeds for each number of streams.
#[derive(Debug)]
pub(super) struct Guided(Vec<Speed>);

impl Guided {
    /// Measure with a worker of `threads` threads that decodes answers of `tokens` tokens.
    ///
    /// # Errors
    /// The worker does not serve, or does not answer as asked.
    pub(super) fn measure(dir: &Path, threads: u32, tokens: u32) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(measure(dir, threads, tokens))
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let speed = |speed: &Speed| {
            serde_json::json!({"streams": speed.streams, "freeTokensPerSecond": speed.free,
                "guidedTokensPerSecond": speed.guided, "ratio": speed.guided / speed.free})
        };
        self.0.iter().map(speed).collect()
    }
}

impl fmt::Display for Guided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Speed {
            streams,
            free,
            guided,
        } in &self.0
        {
            let ratio = guided / free;
            writeln!(
                f,
                "guided    {guided:.1} tokens/s in {streams} streams, {ratio:.3} of {free:.1} free"
            )?;
        }
        Ok(())
    }
}

async fn measure(dir: &Path, threads: u32, tokens: u32) -> anyhow::Result<Guided> {
    // The first answer warms everything up, the compiled form too.
    let warm_up = request(4, Some(SCHEMA), ROUNDS as u64);
    let worker = Worker::start(dir, threads, tokens.saturating_add(64), &[], warm_up).await?;
    let mut all = Vec::new();
    for streams in STREAMS {
        let (mut free, mut guided) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let requests = |schema: Option<&'static str>| {
                (0..streams).map(move |stream| request(tokens, schema, (round * 100 + stream) as u64))
            };
            free.push(worker.decode(requests(None)).await?);
            guided.push(worker.decode(requests(Some(SCHEMA))).await?);
        }
        all.push(Speed {
            streams,
            free: median(free),
            guided: median(guided),
        });
    }
    Ok(Guided(all))
}

fn request(tokens: u32, schema: Option<&str>, seed: u64) -> CompletionRequest {
    CompletionRequest {
        prompt: Some(Prompt::Text(
            "A list of the animals of the herd, as JSON:\n".to_owned(),
        )),
        max_tokens: Some(tokens),
        temperature: Some(1.0),
        seed: Some(seed),
        // A form must be able to end; the list is longer than any answer.
        ignore_eos: schema.is_none(),
        structure: schema.map(|schema| Structure {
            parameter: "schema".to_owned(),
            form: Some(Form::JsonSchema(schema.to_owned())),
        }),
        ..CompletionRequest::default()
    }
}
