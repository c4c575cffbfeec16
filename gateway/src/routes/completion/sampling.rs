//! Parameters that chat and text completion share.

use std::collections::BTreeMap;
use std::fmt;

use llamero_proto::v1::CompletionRequest;
use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::asked::Asked;
use super::bounded::Bounded;
use super::route::Route;
use crate::error::ApiError;

/// Most stop strings.
const MAX_STOPS: usize = 16;
/// Longest stop string in bytes.
const MAX_STOP_BYTES: usize = 256;
/// Most bad words.
const MAX_BAD_WORDS: usize = 64;
/// Most of the likeliest tokens beside each.
const MAX_LOGPROBS: u32 = 20;
/// Most entries of a logit bias, and most stop tokens.
const MAX_TOKENS_LISTED: usize = 1024;

/// `stop`: one string or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;

        impl<'de> Visitor<'de> for Strings {
            type Value = Stop;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E>(self, stop: &str) -> Result<Stop, E> {
                Ok(Stop::One(stop.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Stop, A::Error> {
                let list = SeqAccessDeserializer::new(list);
                Bounded::<String, MAX_STOPS>::deserialize(list).map(|stops| Stop::Many(stops.0))
            }
        }

        deserializer.deserialize_any(Strings)
    }
}

/// `logit_bias`, refused while it is being read when it has too many entries.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Biases(pub BTreeMap<String, f32>);

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Biases;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of token ids and numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Biases, A::Error> {
                let mut biases = BTreeMap::new();
                while let Some((token, bias)) = map.next_entry()? {
                    biases.insert(token, bias);
                    if biases.len() > MAX_TOKENS_LISTED {
                        return Err(A::Error::custom(format_args!(
                            "more than {MAX_TOKENS_LISTED} entries; send fewer"
                        )));
                    }
                }
                Ok(Biases(biases))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// `bad_words`.
pub type Words = Bounded<String, MAX_BAD_WORDS>;

/// How to sample and when to stop, as the client wrote it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling {
    /// Most tokens of the answer, and the parameter that sets it.
    pub max_tokens: Option<(i64, &'static str)>,
    /// 0 to 2.
    pub temperature: Option<f32>,
    /// Above 0, at most 1.
    pub top_p: Option<f32>,
    /// −1 and 0 are off.
    pub top_k: Option<i64>,
    /// Any whole number.
    pub seed: Option<i64>,
    /// −2 to 2.
    pub presence_penalty: Option<f32>,
    /// −2 to 2.
    pub frequency_penalty: Option<f32>,
    /// Above 0, at most 10.
    pub repetition_penalty: Option<f32>,
    /// Token id (as JSON keys are strings) and bias.
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Strings that end the answer.
    pub stop: Option<Stop>,
    /// Tokens that end the answer.
    pub stop_token_ids: Option<Vec<u32>>,
    /// The only tokens that the answer may have.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Go on after the end-of-text token.
    pub ignore_eos: Option<bool>,
    /// 0 (off) to 1.
    pub min_p: Option<f32>,
    /// At least 0.
    pub min_tokens: Option<i64>,
    /// Texts that the answer must not contain.
    pub bad_words: Option<Vec<String>>,
    /// Whether the stop string is part of the text.
    pub include_stop: Option<bool>,
    /// Whether special tokens have no text.
    pub skip_special: Option<bool>,
    /// A flag (chat), or a number of tokens (text).
    pub logprobs: Option<Asked>,
    /// The same of the prompt's tokens, with so many of the likeliest tokens.
    pub prompt_logprobs: Option<i64>,
    /// Lower ones begin first.
    pub priority: Option<i64>,
    /// How many of the likeliest tokens (chat).
    pub top_logprobs: Option<i64>,
}

impl Sampling {
    /// Read the value of a field that has the same name and meaning on all routes that have it. False, and nothing is read, for any other field.
    ///
    /// # Errors
    /// The value is not as expected.
    pub fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "temperature" => self.temperature = map.next_value()?,
            "top_p" => self.top_p = map.next_value()?,
            "top_k" => self.top_k = map.next_value()?,
            "seed" => self.seed = map.next_value()?,
            "presence_penalty" => self.presence_penalty = map.next_value()?,
            "frequency_penalty" => self.frequency_penalty = map.next_value()?,
            "repetition_penalty" => self.repetition_penalty = map.next_value()?,
            "priority" => self.priority = map.next_value()?,
            "logit_bias" => self.logit_bias = map.next_value::<Option<Biases>>()?.map(|biases| biases.0),
            "stop" => self.stop = map.next_value()?,
            "stop_token_ids" => self.stop_token_ids = map.next_value()?,
            "allowed_token_ids" => self.allowed_token_ids = map.next_value()?,
            "ignore_eos" => self.ignore_eos = map.next_value()?,
            "min_p" => self.min_p = map.next_value()?,
            "min_tokens" => self.min_tokens = map.next_value()?,
            "bad_words" => self.bad_words = map.next_value::<Option<Words>>()?.map(|words| words.0),
            "include_stop_str_in_output" => self.include_stop = map.next_value()?,
            "skip_special_tokens" => self.skip_special = map.next_value()?,
            "top_logprobs" => self.top_logprobs = map.next_value()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Check everything that can be checked without the model, and write it into the request.
    ///
    /// # Errors
    /// 400 naming the parameter, its value and what it may be.
    pub fn apply(&self, request: &mut CompletionRequest) -> Result<(), ApiError> {
        request.max_tokens = self
            .max_tokens
            .map(|(value, name)| positive(name, value))
            .transpose()?;
        request.temperature = within("temperature", self.temperature, 0.0, 2.0)?;
        request.top_p = within("top_p", self.top_p, 0.0, 1.0)?;
        if request.top_p == Some(0.0) {
            let message =
                "'top_p' is 0; it must be above 0 and at most 1 (for the likeliest token use temperature 0).";
            return Err(ApiError::invalid(Some("top_p"), message));
        }
        request.top_k = self.top_k.map(top_k).transpose()?;
        // The seed is a key of 64 bits; negative ones are as good as others.
        request.seed = self.seed.map(i64::cast_unsigned);
        request.presence_penalty = within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        request.frequency_penalty = within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        self.apply_vllm(request)?;
        for (key, &bias) in self.logit_bias.iter().flatten() {
            let token: u32 = key.parse().map_err(|_| {
                ApiError::invalid(
                    Some("logit_bias"),
                    format!(
                        "'logit_bias' has the key '{}'; keys must be token ids.",
                        shorten(key)
                    ),
                )
            })?;
            within("logit_bias", Some(bias), -100.0, 100.0)?;
            request.logit_bias.insert(token, bias);
        }
        at_most("logit_bias", request.logit_bias.len(), MAX_TOKENS_LISTED)?;
        request.stop = self.stops()?;
        request.stop_token_ids = self.stop_token_ids.clone().unwrap_or_default();
        at_most("stop_token_ids", request.stop_token_ids.len(), MAX_TOKENS_LISTED)?;
        request.ignore_eos = self.ignore_eos.unwrap_or(false);
        request.min_p = within("min_p", self.min_p, 0.0, 1.0)?;
        request.min_tokens = count("min_tokens", self.min_tokens.unwrap_or(0), u32::MAX)?;
        request.bad_words = self.bad_words.clone().unwrap_or_default();
        for word in &request.bad_words {
            if word.trim().is_empty() || word.len() > MAX_STOP_BYTES {
                let message = format!("A bad word has {} bytes; use 1 to {MAX_STOP_BYTES}.", word.len());
                return Err(ApiError::invalid(Some("bad_words"), message));
            }
        }
        request.include_stop_string = self.include_stop.unwrap_or(false);
        request.show_special_tokens = self.skip_special == Some(false);
        Ok(())
    }

    /// What only vLLM's server has.
    fn apply_vllm(&self, request: &mut CompletionRequest) -> Result<(), ApiError> {
        request.repetition_penalty = within("repetition_penalty", self.repetition_penalty, 0.0, 10.0)?;
        if request.repetition_penalty == Some(0.0) {
            let message = "'repetition_penalty' is 0; it must be above 0 and at most 10 (1 is off).";
            return Err(ApiError::invalid(Some("repetition_penalty"), message));
        }
        if let Some(tokens) = &self.allowed_token_ids {
            if tokens.is_empty() {
                let message = "'allowed_token_ids' is empty, which leaves no token for the answer; name some, or leave it out.";
                return Err(ApiError::invalid(Some("allowed_token_ids"), message));
            }
            request.allowed_token_ids.clone_from(tokens);
        }
        let prompt_logprobs = self.prompt_logprobs;
        request.prompt_logprobs = prompt_logprobs
            .map(|most| count("prompt_logprobs", most, MAX_LOGPROBS))
            .transpose()?;
        request.priority = self.priority.map_or(Ok(0), |priority| {
            i32::try_from(priority).map_err(|_| {
                let message = format!(
                    "'priority' is {priority}; it must be from {} to {}, where lower ones go first.",
                    i32::MIN,
                    i32::MAX
                );
                ApiError::invalid(Some("priority"), message)
            })
        })?;
        Ok(())
    }

    /// Whether log-probabilities are wanted, and of how many of the likeliest tokens beside each.
    ///
    /// # Errors
    /// 400 naming the parameter.
    pub fn logprobs(&self, route: Route) -> Result<Option<u32>, ApiError> {
        let wrong = |expected: &str| {
            let message = format!("'logprobs' must be {expected} on this route.");
            Err(ApiError::invalid(Some("logprobs"), message))
        };
        let asked = match (route, &self.logprobs) {
            (_, None | Some(Asked::Null)) => None,
            (Route::Text, Some(Asked::Number(number))) if number.fract() == 0.0 => {
                #[expect(clippy::cast_possible_truncation, reason = "it is bounded next")]
                let most = *number as i64;
                return count("logprobs", most, MAX_LOGPROBS).map(Some);
            }
            (Route::Text, _) => return wrong("a whole number"),
            (_, Some(Asked::Flag(wanted))) => wanted.then(|| self.top_logprobs.unwrap_or(0)),
            (_, _) => return wrong("true or false"),
        };
        match (asked, self.top_logprobs.unwrap_or(0)) {
            (Some(most), _) => count("top_logprobs", most, MAX_LOGPROBS).map(Some),
            (None, 0) => Ok(None),
            (None, _) => {
                let message = "'top_logprobs' needs 'logprobs' to be true.";
                Err(ApiError::invalid(Some("top_logprobs"), message))
            }
        }
    }

    fn stops(&self) -> Result<Vec<String>, ApiError> {
        let stops = match &self.stop {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop.clone()],
            Some(Stop::Many(stops)) => stops.clone(),
        };
        at_most("stop", stops.len(), MAX_STOPS)?;
        for stop in &stops {
            if stop.is_empty() {
                return Err(ApiError::invalid(
                    Some("stop"),
                    "A stop string is empty; leave it out.",
                ));
            }
            if stop.len() > MAX_STOP_BYTES {
                let message = format!(
                    "A stop string has {} bytes; use at most {MAX_STOP_BYTES}.",
                    stop.len()
                );
                return Err(ApiError::invalid(Some("stop"), message));
            }
        }
        Ok(stops)
    }
}

fn positive(name: &'static str, value: i64) -> Result<u32, ApiError> {
    u32::try_from(value)
        .ok()
        .filter(|&value| value > 0)
        .ok_or_else(|| {
            ApiError::invalid(
                Some(name),
                format!("'{name}' is {value}; it must be at least 1 (or leave it out)."),
            )
        })
}

fn count(name: &'static str, value: i64, most: u32) -> Result<u32, ApiError> {
    let count = u32::try_from(value).ok().filter(|count| *count <= most);
    count.ok_or_else(|| {
        ApiError::invalid(
            Some(name),
            format!("'{name}' is {value}; it must be from 0 to {most}."),
        )
    })
}

fn top_k(value: i64) -> Result<u32, ApiError> {
    if value == -1 {
        return Ok(0);
    }
    u32::try_from(value).map_err(|_| {
        ApiError::invalid(
            Some("top_k"),
            format!("'top_k' is {value}; it must be at least 1, or 0 for no limit."),
        )
    })
}

fn within(name: &'static str, value: Option<f32>, low: f32, high: f32) -> Result<Option<f32>, ApiError> {
    match value {
        Some(value) if !(low..=high).contains(&value) => Err(ApiError::invalid(
            Some(name),
            format!("'{name}' is {value}; it must be from {low} to {high}."),
        )),
        value => Ok(value),
    }
}

fn at_most(name: &'static str, count: usize, most: usize) -> Result<(), ApiError> {
    if count <= most {
        return Ok(());
    }
    Err(ApiError::invalid(
        Some(name),
        format!("'{name}' has {count} entries; send at most {most}."),
    ))
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(sampling: Sampling) -> Result<CompletionRequest, ApiError> {
        let mut request = CompletionRequest::default();
        sampling.apply(&mut request).map(|()| request)
    }

    #[test]
    fn absent_values_stay_absent() {
        assert_eq!(apply(Sampling::default()).unwrap(), CompletionRequest::default());
    }

    #[test]
    fn values_are_carried_over() {
        let request = apply(Sampling {
            max_tokens: Some((5, "max_tokens")),
            temperature: Some(0.0),
            top_k: Some(-1),
            seed: Some(-1),
            logit_bias: Some(BTreeMap::from([("7".to_owned(), -100.0)])),
            stop: Some(Stop::One("x".to_owned())),
            ..Sampling::default()
        })
        .unwrap();
        assert_eq!(
            (request.max_tokens, request.temperature, request.top_k),
            (Some(5), Some(0.0), Some(0))
        );
        assert_eq!(
            (request.seed, request.stop),
            (Some(u64::MAX), vec!["x".to_owned()])
        );
        assert_eq!(request.logit_bias[&7], -100.0);
    }

    type Change = fn(&mut Sampling);

    /// Each change makes an error that names the parameter and has these words.
    fn refuses(cases: &[(Change, &str, &str)]) {
        for (change, param, words) in cases {
            let mut sampling = Sampling::default();
            change(&mut sampling);
            let error = apply(sampling).unwrap_err();
            assert!(
                error.param.as_deref() == Some(param) && error.message.contains(words),
                "{error:?}"
            );
        }
    }

    #[test]
    fn numbers_out_of_range_get_a_sentence() {
        refuses(&[
            (
                |s| s.max_tokens = Some((0, "max_completion_tokens")),
                "max_completion_tokens",
                "at least 1",
            ),
            (|s| s.max_tokens = Some((-4, "max_tokens")), "max_tokens", "-4"),
            (
                |s| s.max_tokens = Some((1 << 40, "max_tokens")),
                "max_tokens",
                "1099511627776",
            ),
            (|s| s.temperature = Some(-1.0), "temperature", "from 0 to 2"),
            (|s| s.temperature = Some(1e9), "temperature", "from 0 to 2"),
            (
                |s| s.temperature = Some(f32::INFINITY),
                "temperature",
                "from 0 to 2",
            ),
            (|s| s.top_p = Some(0.0), "top_p", "above 0"),
            (
                |s| s.repetition_penalty = Some(0.0),
                "repetition_penalty",
                "above 0",
            ),
            (
                |s| s.repetition_penalty = Some(11.0),
                "repetition_penalty",
                "from 0 to 10",
            ),
            (|s| s.prompt_logprobs = Some(21), "prompt_logprobs", "0 to 20"),
            (|s| s.prompt_logprobs = Some(-1), "prompt_logprobs", "0 to 20"),
            (|s| s.priority = Some(1 << 40), "priority", "lower ones go first"),
            (|s| s.top_p = Some(1.5), "top_p", "from 0 to 1"),
            (|s| s.top_k = Some(-2), "top_k", "at least 1"),
            (
                |s| s.presence_penalty = Some(3.0),
                "presence_penalty",
                "from -2 to 2",
            ),
            (
                |s| s.frequency_penalty = Some(-3.0),
                "frequency_penalty",
                "from -2 to 2",
            ),
        ]);
    }

    #[test]
    fn lists_out_of_bounds_get_a_sentence() {
        refuses(&[
            (
                |s| s.logit_bias = Some(BTreeMap::from([("a".to_owned(), 1.0)])),
                "logit_bias",
                "token ids",
            ),
            (
                |s| s.logit_bias = Some(BTreeMap::from([("1".to_owned(), 101.0)])),
                "logit_bias",
                "from -100 to 100",
            ),
            (
                |s| s.stop = Some(Stop::Many(vec!["a".to_owned(); 17])),
                "stop",
                "at most 16",
            ),
            (
                |s| s.stop = Some(Stop::One(String::new())),
                "stop",
                "leave it out",
            ),
            (
                |s| s.stop = Some(Stop::One("a".repeat(257))),
                "stop",
                "at most 256",
            ),
            (
                |s| s.allowed_token_ids = Some(Vec::new()),
                "allowed_token_ids",
                "name some",
            ),
            (
                |s| s.stop_token_ids = Some(vec![1; 1025]),
                "stop_token_ids",
                "at most 1024",
            ),
        ]);
    }
}
