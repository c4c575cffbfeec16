//! The text of one answer: detokeniser, stop tokens, stop strings and the limit of tokens together.

use super::detokenizer::Detokenizer;
use super::request::StopConditions;
use super::stop::{StopStep, StopStrings};
use super::tokenizer::Tokenizer;

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// A stop token, or the stop string given.
    Stop(Option<String>),
    /// As many tokens as were allowed.
    Length,
}

/// What a token adds to the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Whole characters; often empty.
    pub text: String,
    /// Set when the answer ends with this token.
    pub finished: Option<Finished>,
}

/// State of one answer.
#[derive(Debug, Clone)]
pub struct OutputText {
    detokenizer: Detokenizer,
    strings: StopStrings,
    tokens: Vec<u32>,
    remaining: u32,
    /// Tokens that come before stop strings count.
    unwatched: u32,
    include_string: bool,
}

impl OutputText {
    /// For an answer of at most `max_tokens` tokens.
    #[must_use]
    pub fn new(tokenizer: Tokenizer, stop: &StopConditions, max_tokens: u32) -> Self {
        Self {
            detokenizer: Detokenizer::new(tokenizer),
            strings: StopStrings::new(stop.strings.clone()),
            tokens: stop.tokens.clone(),
            remaining: max_tokens,
            unwatched: stop.min_tokens,
            include_string: stop.include_string,
        }
    }

    /// Show the names of special tokens, or not, which is the default.
    #[must_use]
    pub fn with_special_tokens(mut self, show: bool) -> Self {
        self.detokenizer = self.detokenizer.with_special_tokens(show);
        self
    }

    /// Take the next token. A stop token ends the answer and has no text.
    pub fn push(&mut self, token: u32) -> Piece {
        self.remaining = self.remaining.saturating_sub(1);
        if self.tokens.contains(&token) {
            return Piece {
                text: self.rest(),
                finished: Some(Finished::Stop(None)),
            };
        }
        let piece = self.detokenizer.push(token);
        let step = if self.unwatched > 0 {
            self.unwatched -= 1;
            StopStep {
                text: piece,
                stopped: None,
            }
        } else {
            self.strings.push(&piece)
        };
        if let Some(index) = step.stopped {
            return self.stopped(step.text, index);
        }
        if self.remaining == 0 {
            return match self.end() {
                Piece { text, finished: None } => Piece {
                    text: step.text + &text,
                    finished: Some(Finished::Length),
                },
                stopped => Piece {
                    text: step.text + &stopped.text,
                    ..stopped
                },
            };
        }
        Piece {
            text: step.text,
            finished: None,
        }
    }

    /// Take tokens whose text the client has already: what they would have shown is dropped, what they hold back is
    /// shown with later tokens, so the stream goes on exactly where it broke. Tells whether the answer ended with them.
    pub fn resume(&mut self, tokens: &[u32]) -> Option<Finished> {
        tokens.iter().find_map(|&token| self.push(token).finished)
    }

    /// The answer ends without another token (cancelled): the text that was held back.
    pub fn rest(&mut self) -> String {
        self.end().text
    }

    fn stopped(&self, mut text: String, index: usize) -> Piece {
        let string = self.strings.strings().get(index).cloned().unwrap_or_default();
        if self.include_string {
            text.push_str(&string);
        }
        Piece {
            text,
            finished: Some(Finished::Stop(Some(string))),
        }
    }

    fn end(&mut self) -> Piece {
        let last = self.detokenizer.finish();
        let step = self.strings.push(&last);
        match step.stopped {
            Some(index) => self.stopped(step.text, index),
            None => Piece {
                text: step.text + &self.strings.finish(),
                finished: None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, SPECIAL};
    use super::*;

    fn output(strings: &[&str], max_tokens: u32) -> OutputText {
        let strings = strings.iter().map(|&s| s.to_owned()).collect();
        OutputText::new(
            testing::tokenizer(),
            &StopConditions {
                strings,
                tokens: vec![SPECIAL],
                ..StopConditions::default()
            },
            max_tokens,
        )
    }

    fn run(output: &mut OutputText, tokens: &[u32]) -> (String, Option<Finished>) {
        let mut text = String::new();
        for &token in tokens {
            let piece = output.push(token);
            text += &piece.text;
            if piece.finished.is_some() {
                return (text, piece.finished);
            }
        }
        (text, None)
    }

    #[test]
    fn a_stop_token_shows_what_was_held() {
        let (text, finished) = run(&mut output(&["ab"], 9), &[b'x'.into(), b'a'.into(), SPECIAL]);
        assert_eq!((text.as_str(), finished), ("xa", Some(Finished::Stop(None))));
    }

    #[test]
    fn the_limit_shows_what_was_held() {
        let (text, finished) = run(&mut output(&["ab"], 2), &[b'x'.into(), b'a'.into(), b'b'.into()]);
        assert_eq!((text.as_str(), finished), ("xa", Some(Finished::Length)));
    }

    #[test]
    fn a_stop_string_in_the_last_token_counts_as_stop() {
        let (text, finished) = run(&mut output(&["ab"], 2), &[b'a'.into(), b'b'.into()]);
        assert_eq!(
            (text.as_str(), finished),
            ("", Some(Finished::Stop(Some("ab".to_owned()))))
        );
    }

    #[test]
    fn a_stop_string_may_be_shown_and_does_not_count_too_early() {
        let conditions = StopConditions {
            strings: vec!["ab".to_owned()],
            include_string: true,
            min_tokens: 2,
            ..StopConditions::default()
        };
        let tokens: Vec<u32> = "abxabx".bytes().map(u32::from).collect();
        let mut output = OutputText::new(testing::tokenizer(), &conditions, 9);
        let (text, finished) = run(&mut output, &tokens);
        assert_eq!(
            (text.as_str(), finished),
            ("abxab", Some(Finished::Stop(Some("ab".to_owned()))))
        );
        let mut output =
            OutputText::new(testing::tokenizer(), &StopConditions::default(), 9).with_special_tokens(true);
        assert_eq!(run(&mut output, &[SPECIAL, b'x'.into()]).0, "<|end|>x");
    }

    #[test]
    fn a_resumed_answer_goes_on_where_it_broke_at_any_token() {
        let tokens: Vec<u32> = "é€ ab aé€c".bytes().map(u32::from).collect();
        let (whole, _) = run(&mut output(&["aé€d"], 99), &tokens);
        for cut in 0..=tokens.len() {
            let (before, _) = run(&mut output(&["aé€d"], 99), &tokens[..cut]);
            let mut second = output(&["aé€d"], 99);
            assert_eq!(second.resume(&tokens[..cut]), None);
            let (after, _) = run(&mut second, &tokens[cut..]);
            assert_eq!(before + &after, whole, "cut at {cut}");
        }
    }
}
