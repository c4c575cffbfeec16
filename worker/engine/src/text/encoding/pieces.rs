//! Where a pre-tokeniser cuts a text, found as one goes.

use tokenizers::PreTokenizerWrapper;
use tokenizers::normalizer::SplitDelimiterBehavior;
use tokenizers::utils::SysRegex;

use super::super::tokenizer::TokenizerError;

/// How GPT-2 cuts texts (Radford et al. 2019, `encoder.py`), for pre-tokenisers that name no pattern of their own.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const UNKNOWN: &str = "cuts texts by a pre-tokeniser that this server does not know";

/// Steps of a pre-tokeniser; each cuts what the one before has left.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    /// Matches are pieces, and so is what stands between them.
    Pattern(SysRegex),
    /// Every numeric character is a piece.
    EachNumber,
    /// Runs of numeric characters are pieces.
    Numbers,
}

type Take<'a> = &'a mut dyn FnMut(&str) -> Result<(), TokenizerError>;

impl PreTokenizer {
    /// That of a tokenizer.
    ///
    /// # Errors
    /// What it does that is not known here, for a sentence.
    pub(super) fn of(pre_tokenizer: Option<&PreTokenizerWrapper>) -> Result<Self, &'static str> {
        let mut steps = Vec::new();
        let whole = pre_tokenizer.ok_or(UNKNOWN)?;
        let is_last = add(whole, &mut steps)?;
        // It writes bytes as letters, in which nothing is cut any more.
        is_last.then_some(Self { steps }).ok_or(UNKNOWN)
    }

    /// Call `take` with every piece of `text`, in order.
    ///
    /// # Errors
    /// The first of `take`.
    pub(super) fn pieces(&self, text: &str, take: Take<'_>) -> Result<(), TokenizerError> {
        cut(&self.steps, text, take)
    }
}

/// Add the steps of a pre-tokeniser. Whether nothing may follow.
fn add(pre_tokenizer: &PreTokenizerWrapper, steps: &mut Vec<Step>) -> Result<bool, &'static str> {
    match pre_tokenizer {
        PreTokenizerWrapper::Sequence(parts) => {
            let mut is_last = false;
            for part in parts.as_ref() {
                if is_last {
                    return Err(UNKNOWN);
                }
                is_last = add(part, steps)?;
            }
            Ok(is_last)
        }
        PreTokenizerWrapper::ByteLevel(bytes) if bytes.add_prefix_space => {
            Err("writes a space in front of every text")
        }
        PreTokenizerWrapper::ByteLevel(bytes) => {
            if bytes.use_regex {
                steps.push(Step::Pattern(SysRegex::new(GPT2).map_err(|_| UNKNOWN)?));
            }
            Ok(true)
        }
        PreTokenizerWrapper::Digits(digits) => {
            steps.push(if digits.individual_digits {
                Step::EachNumber
            } else {
                Step::Numbers
            });
            Ok(false)
        }
        PreTokenizerWrapper::Split(split) if split.behavior == SplitDelimiterBehavior::Isolated => {
            // The tokenizer's own expression is not shared, and cannot be cloned.
            steps.push(Step::Pattern(split.clone().regex));
            Ok(false)
        }
        _ => Err(UNKNOWN),
    }
}

fn cut(steps: &[Step], text: &str, take: Take<'_>) -> Result<(), TokenizerError> {
    let Some((step, rest)) = steps.split_first() else {
        return if text.is_empty() { Ok(()) } else { take(text) };
    };
    let part = |from, to| text.get(from..to).unwrap_or_default();
    let mut start = 0;
    match step {
        Step::Pattern(pattern) => {
            for (from, to) in pattern.find_iter(text) {
                cut(rest, part(start, from), take)?;
                cut(rest, part(from, to), take)?;
                start = to;
            }
        }
        Step::EachNumber => {
            for (from, number) in text.match_indices(char::is_numeric) {
                cut(rest, part(start, from), take)?;
                cut(rest, number, take)?;
                start = from + number.len();
            }
        }
        Step::Numbers => {
            let mut numeric = text.starts_with(char::is_numeric);
            while let Some(length) = part(start, text.len()).find(|c: char| c.is_numeric() != numeric) {
                cut(rest, part(start, start + length), take)?;
                start += length;
                numeric = !numeric;
            }
        }
    }
    cut(rest, part(start, text.len()), take)
}
