//! One answer, as it comes.

use std::io::{self, IsTerminal as _, Write};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _, pin_mut};

use crate::ChatError;

/// How a whole answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// By itself.
    Stop,
    /// At the longest answer or context.
    Length,
}

/// The next part of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Piece {
    /// Text that follows what came before.
    pub text: String,
    /// Tokens of the prompt, once they are known.
    pub prompt_tokens: Option<u32>,
    /// Tokens of the answer so far, where they are known.
    pub output_tokens: Option<u32>,
    /// How the answer ended; the last piece with one may be followed by counts only.
    pub finish: Option<Finish>,
}

/// How an answer ended for who waited for it.
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
    fn new() -> Self {
        Self {
            text: String::new(),
            ended: Ended::Interrupted,
            prompt_tokens: 0,
            output_tokens: 0,
            to_first: Duration::ZERO,
            rest: Duration::ZERO,
        }
    }

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

    fn take(&mut self, piece: &Piece, asked: Instant) {
        self.prompt_tokens = piece.prompt_tokens.unwrap_or(self.prompt_tokens);
        if self.to_first.is_zero() && (!piece.text.is_empty() || piece.output_tokens > Some(0)) {
            self.to_first = asked.elapsed();
            tracing::debug!("the first token came after {:?}", self.to_first);
        }
        self.output_tokens = piece.output_tokens.unwrap_or(self.output_tokens);
        if piece.finish.is_some() || !piece.text.is_empty() {
            self.rest = asked.elapsed().saturating_sub(self.to_first);
        }
        self.text.push_str(&piece.text);
    }
}

/// Writes an answer as it comes, until it ends or Ctrl-C.
///
/// # Errors
/// It is refused or cut off, or nobody takes the text.
pub async fn show<S>(
    pieces: impl Future<Output = Result<S, ChatError>>,
    to: &mut dyn Write,
) -> Result<Answer, ChatError>
where
    S: Stream<Item = Result<Piece, ChatError>>,
{
    let asked = Instant::now();
    let mut answer = Answer::new();
    let outcome = tokio::select! {
        read = async { read(pieces.await?, &mut answer, asked, to).await } => read,
        interrupt = tokio::signal::ctrl_c() => interrupt.map_err(ChatError::Signal),
    };
    // What has come stands on a line of its own, whatever happened.
    if outcome.is_ok() || !answer.text.is_empty() {
        writeln!(to).map_err(ChatError::Output)?;
        to.flush().map_err(ChatError::Output)?;
    }
    outcome.map(|()| answer)
}

async fn read<S>(pieces: S, answer: &mut Answer, asked: Instant, to: &mut dyn Write) -> Result<(), ChatError>
where
    S: Stream<Item = Result<Piece, ChatError>>,
{
    let terminal = io::stdout().is_terminal();
    let mut ended = None;
    pin_mut!(pieces);
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        answer.take(&piece, asked);
        let text = if terminal {
            harmless(&piece.text)
        } else {
            piece.text
        };
        to.write_all(text.as_bytes()).map_err(ChatError::Output)?;
        to.flush().map_err(ChatError::Output)?;
        ended = piece.finish.or(ended);
    }
    answer.ended = match ended {
        Some(Finish::Stop) => Ended::Whole,
        Some(Finish::Length) => Ended::TooLong,
        None => return Err(ChatError::CutOff),
    };
    Ok(())
}

/// A model must not move the cursor, nor set the title of a window.
fn harmless(text: &str) -> String {
    text.chars()
        .filter(|char| !char.is_control() || matches!(char, '\n' | '\t'))
        .collect()
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    fn piece(text: &str, output_tokens: u32, finish: Option<Finish>) -> Result<Piece, ChatError> {
        Ok(Piece {
            text: text.into(),
            prompt_tokens: Some(5),
            output_tokens: Some(output_tokens),
            finish,
        })
    }

    #[test]
    fn terminals_are_not_steered_by_answers() {
        assert_eq!(harmless("a\x1b[2J\n\tb\u{9b}ü\r"), "a[2J\n\tbü");
    }

    #[test]
    fn speed_counts_what_came_after_the_first_token() {
        let answer = Answer {
            ended: Ended::Whole,
            prompt_tokens: 5,
            output_tokens: 11,
            to_first: Duration::from_millis(30),
            rest: Duration::from_secs(2),
            ..Answer::new()
        };
        assert_eq!(
            answer.speed(),
            "5 + 11 tokens, the first after 30 ms, then 5.0 tokens/s"
        );
    }

    #[tokio::test]
    async fn an_answer_is_written_as_it_comes() {
        let pieces = stream::iter([piece("He", 1, None), piece("llo", 2, Some(Finish::Length))]);
        let mut out = Vec::new();
        let answer = show(async { Ok(pieces) }, &mut out).await.unwrap();
        assert_eq!(
            (out, answer.text.as_str(), answer.ended),
            (b"Hello\n".to_vec(), "Hello", Ended::TooLong)
        );
        assert_eq!((answer.prompt_tokens, answer.output_tokens), (5, 2));
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_an_error() {
        let cut = show(
            async { Ok(stream::iter([piece("He", 1, None)])) },
            &mut Vec::new(),
        )
        .await;
        assert!(matches!(cut, Err(ChatError::CutOff)));
        let refused = async { Err::<stream::Empty<_>, _>(ChatError::Refused("no".into())) };
        let refused = show(refused, &mut Vec::new()).await;
        assert_eq!(refused.unwrap_err().to_string(), "no");
    }
}
