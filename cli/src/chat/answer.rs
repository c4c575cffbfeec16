//! One answer from the engine.

use std::io::{self, IsTerminal as _, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use llamero_proto::limits::MAX_MESSAGE_BYTES;
use llamero_proto::v1::completion_client::CompletionClient;
use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::{ChatMessage, ChatPrompt, CompletionChunk, CompletionRequest, FinishReason};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::options::AnswerArgs;

/// The way to the engine, and how it is to answer.
#[derive(Debug, Clone)]
pub struct Talk {
    client: CompletionClient<Channel>,
    args: AnswerArgs,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    Whole,
    /// At the longest answer or context.
    TooLong,
    /// By Ctrl-C.
    Interrupted,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// How it ended.
    pub ended: Ended,
    prompt_tokens: u32,
    output_tokens: u32,
    to_first: Duration,
    rest: Duration,
}

impl Answer {
    /// Tokens and times, in words.
    #[must_use]
    pub fn speed(&self) -> String {
        let Self {
            prompt_tokens,
            output_tokens,
            ..
        } = self;
        let decoded = output_tokens.saturating_sub(1);
        let seconds = self.rest.as_secs_f64();
        let rate = if seconds > 0.0 {
            f64::from(decoded) / seconds
        } else {
            0.0
        };
        let first = self.to_first.as_millis();
        format!(
            "{prompt_tokens} + {output_tokens} tokens, the first after {first} ms, then {rate:.1} tokens/s"
        )
    }
}

impl Talk {
    /// Talk with the engine at `address`. Must be called in a runtime.
    ///
    /// # Errors
    /// Only if the address does not make a URI.
    pub fn new(address: SocketAddr, args: AnswerArgs) -> anyhow::Result<Self> {
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .tcp_nodelay(true)
            .connect_lazy();
        let client = CompletionClient::new(channel).max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { client, args })
    }

    /// The system message of the command line.
    #[must_use]
    pub fn system(&self) -> Option<&str> {
        self.args.system.as_deref()
    }

    /// Let the engine answer, writing the text as it comes, until Ctrl-C.
    ///
    /// # Errors
    /// The engine refuses, or nobody takes the text.
    pub async fn answer(&self, messages: Vec<ChatMessage>, to: &mut dyn Write) -> anyhow::Result<Answer> {
        let args = &self.args;
        let request = CompletionRequest {
            prompt: Some(Prompt::Chat(ChatPrompt {
                messages,
                ..ChatPrompt::default()
            })),
            max_tokens: args.max_tokens,
            temperature: args.temperature,
            top_p: args.top_p,
            seed: args.seed,
            ..CompletionRequest::default()
        };
        let asked = Instant::now();
        let refused = |status: tonic::Status| anyhow!("{}", status.message());
        let mut client = self.client.clone();
        let chunks = client.complete(request).await.map_err(refused)?.into_inner();
        let mut answer = Answer {
            text: String::new(),
            ended: Ended::Interrupted,
            prompt_tokens: 0,
            output_tokens: 0,
            to_first: Duration::ZERO,
            rest: Duration::ZERO,
        };
        let read = read(chunks, &mut answer, asked, to);
        let outcome = tokio::select! {
            read = read => read,
            interrupt = tokio::signal::ctrl_c() => interrupt.context("cannot handle Ctrl-C"),
        };
        // What has come stands on a line of its own, whatever happened.
        writeln!(to)?;
        to.flush()?;
        outcome.map(|()| answer)
    }
}

async fn read(
    mut chunks: Streaming<CompletionChunk>,
    answer: &mut Answer,
    asked: Instant,
    to: &mut dyn Write,
) -> anyhow::Result<()> {
    let terminal = io::stdout().is_terminal();
    let next = |status: tonic::Status| anyhow!("{}", status.message());
    while let Some(chunk) = chunks.message().await.map_err(next)? {
        answer.prompt_tokens = chunk.prompt_tokens;
        if answer.output_tokens == 0 && chunk.output_tokens > 0 {
            answer.to_first = asked.elapsed();
            tracing::debug!("the first token came after {:?}", answer.to_first);
        }
        answer.output_tokens = chunk.output_tokens;
        answer.rest = asked.elapsed().saturating_sub(answer.to_first);
        answer.text.push_str(&chunk.text);
        let text = if terminal {
            harmless(&chunk.text)
        } else {
            chunk.text
        };
        to.write_all(text.as_bytes())?;
        to.flush()?;
        if let Some(finish) = chunk.finish {
            answer.ended = match finish.reason() {
                FinishReason::Stop => Ended::Whole,
                FinishReason::Length => Ended::TooLong,
                FinishReason::Abort | FinishReason::Unspecified => {
                    return Err(anyhow!("the engine has aborted the answer"));
                }
            };
            return Ok(());
        }
    }
    Err(anyhow!("the answer ended too early"))
}

/// A model must not move the cursor, nor set the title of a window.
fn harmless(text: &str) -> String {
    text.chars()
        .filter(|char| !char.is_control() || matches!(char, '\n' | '\t'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_not_steered_by_answers() {
        assert_eq!(harmless("a\x1b[2J\n\tb\u{9b}ü\r"), "a[2J\n\tbü");
    }

    #[test]
    fn speed_counts_what_came_after_the_first_token() {
        let answer = Answer {
            text: String::new(),
            ended: Ended::Whole,
            prompt_tokens: 5,
            output_tokens: 11,
            to_first: Duration::from_millis(30),
            rest: Duration::from_secs(2),
        };
        assert_eq!(
            answer.speed(),
            "5 + 11 tokens, the first after 30 ms, then 5.0 tokens/s"
        );
    }
}
