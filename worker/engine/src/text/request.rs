//! A request as it comes, and as the scheduler may trust it.

use llamero_checkpoint::GenerationConfig;

use crate::sampling::SamplingParams;
use crate::sampling::penalties::MAX_BAD_WORD_TOKENS;

/// Most stop strings of a request.
pub const MAX_STOP_STRINGS: usize = 16;
/// Longest stop string in bytes.
pub const MAX_STOP_BYTES: usize = 256;
/// Most entries of a logit bias, and most stop tokens.
pub const MAX_LISTED_TOKENS: usize = 1024;
/// Most of the likeliest tokens beside each token.
pub const MAX_LOGPROBS: u16 = 20;
/// Most tokens whose log-probabilities are listed beside each token.
pub const MAX_LISTED_LOGPROBS: usize = 128;
/// Most sequences of tokens that are banned: two for each word that a client may name.
pub const MAX_BAD_WORDS: usize = 128;
/// Largest repetition penalty.
pub const MAX_REPETITION_PENALTY: f32 = 10.0;
/// Temperatures below this are greedy: dividing logits by them would leave the range of f32.
pub const GREEDY_BELOW: f32 = 1e-5;

/// A request that nobody has checked. Absent values take the checkpoint's defaults.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RequestDraft {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; default: what is left of the context.
    pub max_tokens: Option<u32>,
    /// 0 (greedy) to 2.
    pub temperature: Option<f32>,
    /// Above 0, at most 1.
    pub top_p: Option<f32>,
    /// 0 is off.
    pub top_k: Option<u32>,
    /// 0 (off) to 1.
    pub min_p: Option<f32>,
    /// −2 to 2.
    pub presence_penalty: Option<f32>,
    /// −2 to 2.
    pub frequency_penalty: Option<f32>,
    /// Above 0, at most 10; 1 is off.
    pub repetition_penalty: Option<f32>,
    /// Token id and bias from −100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Key of the noise; random when absent.
    pub seed: Option<u64>,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Tokens that end the answer, besides the checkpoint's.
    pub stop_tokens: Vec<u32>,
    /// Go on after the checkpoint's end-of-text tokens.
    pub ignore_eos: bool,
    /// Whether log-probabilities are wanted, each with those of so many of the likeliest tokens.
    pub logprobs: Option<u32>,
    /// Tokens whose log-probabilities are wanted in place of those of the likeliest ones.
    pub listed_tokens: Vec<u32>,
    /// The same of the prompt's tokens.
    pub prompt_logprobs: Option<u32>,
    /// Lower ones begin first.
    pub priority: i32,
    /// The answer does not end by itself before so many tokens; 0 is off.
    pub min_tokens: u32,
    /// Sequences of tokens that the answer must not contain.
    pub bad_words: Vec<Vec<u32>>,
    /// The only tokens that the answer may have; none: all.
    pub allowed_tokens: Vec<u32>,
    /// Whether the stop string that ends the answer is part of its text.
    pub include_stop_string: bool,
    /// Whether tokens that steer the model have a text: their names.
    pub show_special_tokens: bool,
    /// Tokens of the answer that another group has generated.
    pub resume_tokens: Vec<u32>,
}

/// What bounds a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Number of token ids of the model.
    pub vocab_size: u32,
    /// Longest sequence in tokens, prompt and answer together.
    pub max_context: u32,
}

/// When an answer ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopConditions {
    /// Strings, not shown.
    pub strings: Vec<String>,
    /// Token ids, those of the checkpoint included.
    pub tokens: Vec<u32>,
    /// Strings do not end an answer of fewer tokens.
    pub min_tokens: u32,
    /// Whether the string is part of the text after all.
    pub include_string: bool,
}

/// A request within all bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationRequest {
    /// At least one token, all in the vocabulary.
    pub prompt: Vec<u32>,
    /// Tokens of the answer that exist already; at most `max_tokens`.
    pub resume_tokens: Vec<u32>,
    /// At least 1; with the prompt at most the context. Resumed tokens count.
    pub max_tokens: u32,
    /// Whether nobody named that number, so that it is what the context leaves.
    pub open_ended: bool,
    /// The only tokens that the answer may have, all in the vocabulary; none: all.
    pub allowed_tokens: Vec<u32>,
    /// How to sample.
    pub sampling: SamplingParams,
    /// When to stop.
    pub stop: StopConditions,
    /// Whether tokens that steer the model have a text.
    pub show_special_tokens: bool,
    /// Whether log-probabilities of the prompt's tokens are wanted, each with those of so many of the likeliest ones.
    pub prompt_logprobs: Option<u16>,
    /// Lower ones begin first.
    pub priority: i32,
}

/// What is wrong with a request, for the user who made it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// No prompt.
    #[error("the prompt is empty; send at least one token of text")]
    EmptyPrompt,
    /// Prompt alone fills the context.
    #[error(
        "the prompt has {prompt} tokens, but prompt and answer together may have {context}; shorten the prompt to at most {} tokens",
        context.saturating_sub(1)
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// The context.
        context: u32,
    },
    /// The same, where nobody has counted further than that.
    #[error(
        "the prompt has more than {context} tokens, but prompt and answer together may have {context}; shorten the prompt to at \
         most {} tokens",
        context.saturating_sub(1)
    )]
    PromptMuchTooLong {
        /// The context.
        context: u32,
    },
    /// Prompt and `max_tokens` exceed the context.
    #[error(
        "the prompt has {prompt} tokens and max_tokens is {max_tokens}, but together they may be {context}; lower max_tokens to at most {}",
        context.saturating_sub(*prompt)
    )]
    MaxTokensTooLarge {
        /// Tokens of the prompt.
        prompt: u32,
        /// What was asked for.
        max_tokens: u32,
        /// The context.
        context: u32,
    },
    /// `max_tokens` is 0.
    #[error("max_tokens is 0; ask for at least 1, or leave it out to use the rest of the context")]
    NoTokens,
    /// `min_tokens` exceeds `max_tokens`.
    #[error("min_tokens is {min_tokens}, but the answer has at most {max_tokens} tokens; lower min_tokens")]
    MinTokensTooLarge {
        /// What was asked for.
        min_tokens: u32,
        /// The most.
        max_tokens: u32,
    },
    /// More tokens to resume than allowed in all.
    #[error(
        "{resumed} tokens are to be resumed, but max_tokens is {max_tokens}; resumed tokens count toward it"
    )]
    ResumeTooLong {
        /// Tokens to resume.
        resumed: usize,
        /// The limit.
        max_tokens: u32,
    },
    /// A number outside its range, NaN included.
    #[error("{name} is {value}; it must be {range}")]
    OutOfRange {
        /// Name of the parameter.
        name: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        range: &'static str,
    },
    /// A token id that the model does not have.
    #[error("{name} names token {token}, but the model has the tokens 0 to {}; use ids of its own tokenizer", vocab_size.saturating_sub(1))]
    UnknownToken {
        /// Where it stands.
        name: &'static str,
        /// The id.
        token: u32,
        /// Number of ids.
        vocab_size: u32,
    },
    /// Too many entries in a list.
    #[error("{name} has {count} entries; send at most {most}")]
    TooMany {
        /// Name of the parameter.
        name: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        most: usize,
    },
    /// A stop string is empty.
    #[error("a stop string is empty; leave it out")]
    EmptyStop,
    /// A stop string is too long.
    #[error("a stop string has {bytes} bytes; use at most {MAX_STOP_BYTES}")]
    StopTooLong {
        /// Its length.
        bytes: usize,
    },
}

impl RequestError {
    /// Whether prompt and answer are longer than the context, which a shorter conversation mends.
    #[must_use]
    pub fn is_too_long(&self) -> bool {
        matches!(
            self,
            Self::PromptTooLong { .. } | Self::PromptMuchTooLong { .. } | Self::MaxTokensTooLarge { .. }
        )
    }

    /// The parameter at fault, by its usual name.
    #[must_use]
    pub fn parameter(&self) -> &'static str {
        match self {
            Self::EmptyPrompt | Self::PromptTooLong { .. } | Self::PromptMuchTooLong { .. } => "prompt",
            Self::MaxTokensTooLarge { .. } | Self::NoTokens => "max_tokens",
            Self::MinTokensTooLarge { .. } => "min_tokens",
            Self::ResumeTooLong { .. } => "resume_token_ids",
            Self::OutOfRange { name, .. } | Self::UnknownToken { name, .. } | Self::TooMany { name, .. } => {
                name
            }
            Self::EmptyStop | Self::StopTooLong { .. } => "stop",
        }
    }
}

impl RequestDraft {
    /// Check everything and fill in defaults. `random_seed` is used when the draft has none.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(
        self,
        defaults: &GenerationConfig,
        limits: RequestLimits,
        random_seed: u64,
    ) -> Result<GenerationRequest, RequestError> {
        let max_tokens = self.answer_length(limits.max_context)?;
        known("prompt", &self.prompt, limits)?;
        known("resume_token_ids", &self.resume_tokens, limits)?;
        at_most(
            "allowed_token_ids",
            self.allowed_tokens.len(),
            limits.vocab_size as usize,
        )?;
        known("allowed_token_ids", &self.allowed_tokens, limits)?;
        let stop = self.stop_conditions(defaults, limits)?;
        if self.min_tokens > max_tokens {
            return Err(RequestError::MinTokensTooLarge {
                min_tokens: self.min_tokens,
                max_tokens,
            });
        }
        let mut sampling = self.sampling(defaults, limits, random_seed)?;
        let prompt_logprobs = logprobs("prompt_logprobs", self.prompt_logprobs)?;
        if self.min_tokens > 0 {
            sampling.ends.clone_from(&stop.tokens);
        }
        Ok(GenerationRequest {
            prompt: self.prompt,
            resume_tokens: self.resume_tokens,
            max_tokens,
            open_ended: self.max_tokens.is_none(),
            allowed_tokens: self.allowed_tokens,
            sampling,
            stop,
            show_special_tokens: self.show_special_tokens,
            prompt_logprobs,
            priority: self.priority,
        })
    }

    fn answer_length(&self, context: u32) -> Result<u32, RequestError> {
        if self.prompt.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        let too_long = RequestError::PromptTooLong {
            prompt: self.prompt.len(),
            context,
        };
        let prompt = u32::try_from(self.prompt.len()).map_err(|_| too_long.clone())?;
        if prompt >= context {
            return Err(too_long);
        }
        let left = context - prompt;
        let max_tokens = self.max_tokens.unwrap_or(left);
        if max_tokens == 0 {
            return Err(RequestError::NoTokens);
        }
        if max_tokens > left {
            return Err(RequestError::MaxTokensTooLarge {
                prompt,
                max_tokens,
                context,
            });
        }
        if self.resume_tokens.len() > max_tokens as usize {
            return Err(RequestError::ResumeTooLong {
                resumed: self.resume_tokens.len(),
                max_tokens,
            });
        }
        Ok(max_tokens)
    }

    fn sampling(
        &self,
        defaults: &GenerationConfig,
        limits: RequestLimits,
        random_seed: u64,
    ) -> Result<SamplingParams, RequestError> {
        let temperature = between(
            "temperature",
            self.temperature.or(defaults.usual_temperature()).unwrap_or(1.0),
            0.0,
            2.0,
            "from 0 to 2",
        )?;
        let top_p = self.top_p.or(defaults.top_p).unwrap_or(1.0);
        // Written so that NaN fails.
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(RequestError::OutOfRange {
                name: "top_p",
                value: top_p,
                range: "above 0 and at most 1",
            });
        }
        let min_p = between("min_p", self.min_p.unwrap_or(0.0), 0.0, 1.0, "from 0 to 1")?;
        let penalty =
            |name, value: Option<f32>| between(name, value.unwrap_or(0.0), -2.0, 2.0, "from -2 to 2");
        let presence_penalty = penalty("presence_penalty", self.presence_penalty)?;
        let frequency_penalty = penalty("frequency_penalty", self.frequency_penalty)?;

        let repetition_penalty = self.repetition_penalty.unwrap_or(1.0);
        if !(repetition_penalty > 0.0 && repetition_penalty <= MAX_REPETITION_PENALTY) {
            return Err(RequestError::OutOfRange {
                name: "repetition_penalty",
                value: repetition_penalty,
                range: "above 0 and at most 10",
            });
        }

        at_most("logit_bias", self.logit_bias.len(), MAX_LISTED_TOKENS)?;
        let mut logit_bias = self.logit_bias.clone();
        for &(token, bias) in &logit_bias {
            known("logit_bias", &[token], limits)?;
            between("logit_bias", bias, -100.0, 100.0, "from -100 to 100")?;
        }
        logit_bias.sort_by_key(|&(token, _)| token);
        // A repeated id cannot come from a map; if it does, the last one counts.
        logit_bias.reverse();
        logit_bias.dedup_by_key(|&mut (token, _)| token);
        logit_bias.reverse();

        Ok(SamplingParams {
            temperature: if temperature < GREEDY_BELOW {
                0.0
            } else {
                temperature
            },
            top_k: self.top_k.or(defaults.top_k).unwrap_or(0),
            top_p,
            min_p,
            presence_penalty,
            frequency_penalty,
            repetition_penalty,
            logit_bias,
            seed: self.seed.unwrap_or(random_seed),
            min_tokens: self.min_tokens,
            ends: Vec::new(),
            bad_words: self.bad_words(limits)?,
            logprobs: logprobs("logprobs", self.logprobs)?,
            listed: self.listed_tokens(limits)?,
        })
    }

    fn listed_tokens(&self, limits: RequestLimits) -> Result<Vec<u32>, RequestError> {
        at_most("output_candidates", self.listed_tokens.len(), MAX_LISTED_LOGPROBS)?;
        known("output_candidates", &self.listed_tokens, limits)?;
        Ok(self.listed_tokens.clone())
    }

    fn bad_words(&self, limits: RequestLimits) -> Result<Vec<Vec<u32>>, RequestError> {
        at_most("bad_words", self.bad_words.len(), MAX_BAD_WORDS)?;
        for word in &self.bad_words {
            known("bad_words", word, limits)?;
            at_most("bad_words", word.len(), MAX_BAD_WORD_TOKENS)?;
        }
        let words = self.bad_words.iter().filter(|word| !word.is_empty());
        Ok(words.cloned().collect())
    }

    fn stop_conditions(
        &self,
        defaults: &GenerationConfig,
        limits: RequestLimits,
    ) -> Result<StopConditions, RequestError> {
        at_most("stop", self.stop.len(), MAX_STOP_STRINGS)?;
        for string in &self.stop {
            if string.is_empty() {
                return Err(RequestError::EmptyStop);
            }
            if string.len() > MAX_STOP_BYTES {
                return Err(RequestError::StopTooLong { bytes: string.len() });
            }
        }
        at_most("stop_token_ids", self.stop_tokens.len(), MAX_LISTED_TOKENS)?;
        known("stop_token_ids", &self.stop_tokens, limits)?;
        let mut tokens = self.stop_tokens.clone();
        if !self.ignore_eos {
            tokens.extend(&defaults.eos_token_ids);
        }
        Ok(StopConditions {
            strings: self.stop.clone(),
            tokens,
            min_tokens: self.min_tokens,
            include_string: self.include_stop_string,
        })
    }
}

fn between(
    name: &'static str,
    value: f32,
    low: f32,
    high: f32,
    range: &'static str,
) -> Result<f32, RequestError> {
    if (low..=high).contains(&value) {
        Ok(value)
    } else {
        Err(RequestError::OutOfRange { name, value, range })
    }
}

fn logprobs(name: &'static str, count: Option<u32>) -> Result<Option<u16>, RequestError> {
    let count = count.map(|count| u16::try_from(count).unwrap_or(u16::MAX));
    match count {
        Some(count) if count > MAX_LOGPROBS => Err(RequestError::OutOfRange {
            name,
            value: count.into(),
            range: "from 0 to 20",
        }),
        count => Ok(count),
    }
}

fn known(name: &'static str, tokens: &[u32], limits: RequestLimits) -> Result<(), RequestError> {
    match tokens.iter().find(|&&token| token >= limits.vocab_size) {
        Some(&token) => Err(RequestError::UnknownToken {
            name,
            token,
            vocab_size: limits.vocab_size,
        }),
        None => Ok(()),
    }
}

fn at_most(name: &'static str, count: usize, most: usize) -> Result<(), RequestError> {
    if count <= most {
        Ok(())
    } else {
        Err(RequestError::TooMany { name, count, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RequestLimits = RequestLimits {
        vocab_size: 100,
        max_context: 10,
    };

    fn draft() -> RequestDraft {
        RequestDraft {
            prompt: vec![1, 2, 3],
            ..RequestDraft::default()
        }
    }

    fn check(draft: RequestDraft) -> Result<GenerationRequest, RequestError> {
        let defaults = GenerationConfig {
            eos_token_ids: vec![7],
            temperature: Some(0.6),
            top_p: Some(0.9),
            ..GenerationConfig::default()
        };
        draft.validate(&defaults, LIMITS, 99)
    }

    fn complaint(change: impl FnOnce(&mut RequestDraft)) -> (&'static str, String) {
        let mut changed = draft();
        change(&mut changed);
        let error = check(changed).unwrap_err();
        (error.parameter(), error.to_string())
    }

    #[test]
    fn defaults_are_filled_in() {
        let request = check(draft()).unwrap();
        assert_eq!(request.max_tokens, 7);
        assert_eq!(request.stop.tokens, [7]);
        let sampling = request.sampling;
        assert_eq!(
            (sampling.temperature, sampling.top_p, sampling.seed),
            (0.6, 0.9, 99)
        );
        let greedy = check(RequestDraft {
            temperature: Some(0.0),
            ignore_eos: true,
            ..draft()
        })
        .unwrap();
        assert!(greedy.stop.tokens.is_empty());
        assert_eq!(greedy.sampling.temperature, 0.0);
    }

    #[test]
    fn what_is_not_to_be_sampled_is_greedy_unless_asked_for() {
        let defaults = GenerationConfig {
            do_sample: Some(false),
            temperature: Some(0.6),
            ..GenerationConfig::default()
        };
        let temperature = |asked: Option<f32>| {
            let draft = RequestDraft {
                temperature: asked,
                ..draft()
            };
            draft
                .validate(&defaults, LIMITS, 99)
                .unwrap()
                .sampling
                .temperature
        };
        assert_eq!((temperature(None), temperature(Some(0.8))), (0.0, 0.8));
    }

    #[test]
    fn each_mistake_gets_its_sentence() {
        type Change = fn(&mut RequestDraft);
        let cases: &[(Change, &str, &str)] = &[
            (|d| d.prompt.clear(), "prompt", "at least one"),
            (|d| d.prompt = vec![1; 10], "prompt", "at most 9 tokens"),
            (|d| d.prompt = vec![100], "prompt", "0 to 99"),
            (|d| d.max_tokens = Some(0), "max_tokens", "at least 1"),
            (|d| d.max_tokens = Some(8), "max_tokens", "at most 7"),
            (|d| d.temperature = Some(-0.1), "temperature", "from 0 to 2"),
            (|d| d.temperature = Some(f32::NAN), "temperature", "from 0 to 2"),
            (|d| d.temperature = Some(1e30), "temperature", "from 0 to 2"),
            (|d| d.top_p = Some(0.0), "top_p", "above 0"),
            (|d| d.top_p = Some(1.1), "top_p", "at most 1"),
            (|d| d.top_p = Some(f32::NAN), "top_p", "at most 1"),
            (|d| d.min_p = Some(-1.0), "min_p", "from 0 to 1"),
            (
                |d| d.presence_penalty = Some(2.5),
                "presence_penalty",
                "from -2 to 2",
            ),
            (
                |d| d.frequency_penalty = Some(f32::INFINITY),
                "frequency_penalty",
                "from -2 to 2",
            ),
            (|d| d.logit_bias = vec![(100, 1.0)], "logit_bias", "0 to 99"),
            (
                |d| d.logit_bias = vec![(5, 101.0)],
                "logit_bias",
                "from -100 to 100",
            ),
            (
                |d| d.logit_bias = vec![(5, 1.0); 1025],
                "logit_bias",
                "at most 1024",
            ),
            (|d| d.stop = vec!["x".to_owned(); 17], "stop", "at most 16"),
            (|d| d.stop = vec![String::new()], "stop", "leave it out"),
            (|d| d.stop = vec!["x".repeat(257)], "stop", "at most 256"),
            (|d| d.stop_tokens = vec![100], "stop_token_ids", "0 to 99"),
            (
                |d| d.resume_tokens = vec![1; 8],
                "resume_token_ids",
                "count toward",
            ),
            (|d| d.resume_tokens = vec![100], "resume_token_ids", "0 to 99"),
            (|d| d.allowed_tokens = vec![100], "allowed_token_ids", "0 to 99"),
            (|d| d.listed_tokens = vec![100], "output_candidates", "0 to 99"),
            (
                |d| d.listed_tokens = vec![1; 129],
                "output_candidates",
                "at most 128",
            ),
            (
                |d| d.allowed_tokens = vec![1; 101],
                "allowed_token_ids",
                "at most 100",
            ),
        ];
        for (change, parameter, words) in cases {
            let (named, sentence) = complaint(*change);
            assert!(
                named == *parameter && sentence.contains(words),
                "{parameter}: {named}: {sentence}"
            );
        }
    }

    #[test]
    fn logit_bias_is_sorted_and_the_last_of_equals_counts() {
        let request = check(RequestDraft {
            logit_bias: vec![(9, 1.0), (2, 1.0), (9, 3.0)],
            ..draft()
        })
        .unwrap();
        assert_eq!(request.sampling.logit_bias, [(2, 1.0), (9, 3.0)]);
    }
}
