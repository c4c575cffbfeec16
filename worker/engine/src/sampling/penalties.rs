//! Presence and frequency penalties, logit bias and bans, as the sparse biases that ranks add to their logits; and repetition
//! penalties, which are no biases, since they depend on the logit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::SamplingParams;

/// Longest sequence of tokens that can be banned.
pub const MAX_BAD_WORD_TOKENS: usize = 64;
/// Added to a banned token's logit. Finite, so that there is a next token even when all that a mask allows are banned.
const BAN: f32 = -1e8;

/// How often each token was generated (the prompt does not count, resumed tokens do), as the OpenAI API defines it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenCounts {
    counts: BTreeMap<u32, u32>,
    /// Tokens in all.
    length: u32,
    /// The last ones, fewer than [`MAX_BAD_WORD_TOKENS`].
    tail: VecDeque<u32>,
    /// The tokens of the prompt, where they count as repeated.
    prompt: BTreeSet<u32>,
}

/// A logit under a repetition penalty, which is above 0, as CTRL defines it (arXiv 1909.05858 §4.1, with the sign taken into account
/// as in every later implementation): a penalty above 1 makes the token less likely.
#[must_use]
pub fn repeated(logit: f32, penalty: f32) -> f32 {
    if logit > 0.0 {
        logit / penalty
    } else {
        logit * penalty
    }
}

impl TokenCounts {
    /// Counts of the tokens generated so far.
    #[must_use]
    pub fn of(tokens: &[u32]) -> Self {
        let mut counts = Self::default();
        tokens.iter().for_each(|&token| counts.record(token));
        counts
    }

    /// The same behind a prompt, whose tokens count for a repetition penalty only.
    #[must_use]
    pub fn behind(mut self, prompt: &[u32], params: &SamplingParams) -> Self {
        if params.repetition_penalty != 1.0 {
            self.prompt = prompt.iter().copied().collect();
        }
        self
    }

    /// The tokens whose repetition is penalised, ascending; none when there is no such penalty.
    #[must_use]
    pub fn repeated(&self, params: &SamplingParams) -> Vec<u32> {
        if params.repetition_penalty == 1.0 {
            return Vec::new();
        }
        let generated = self.counts.keys().filter(|token| !self.prompt.contains(token));
        let mut tokens: Vec<u32> = self.prompt.iter().chain(generated).copied().collect();
        tokens.sort_unstable();
        tokens
    }

    /// One more time.
    pub fn record(&mut self, token: u32) {
        *self.counts.entry(token).or_insert(0) += 1;
        self.length = self.length.saturating_add(1);
        self.tail.push_back(token);
        if self.tail.len() >= MAX_BAD_WORD_TOKENS {
            self.tail.pop_front();
        }
    }

    /// What to add to the logits of the next token: ascending by token id, without zeros.
    #[must_use]
    pub fn biases(&self, params: &SamplingParams) -> Vec<(u32, f32)> {
        let mut biases: BTreeMap<u32, f32> = params.logit_bias.iter().copied().collect();
        if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
            for (&token, &count) in &self.counts {
                let penalty = params.presence_penalty + params.frequency_penalty * count as f32;
                *biases.entry(token).or_insert(0.0) -= penalty;
            }
        }
        for token in self.banned(params) {
            *biases.entry(token).or_insert(0.0) += BAN;
        }
        biases.into_iter().filter(|&(_, bias)| bias != 0.0).collect()
    }

    /// Tokens that may not come next.
    fn banned(&self, params: &SamplingParams) -> BTreeSet<u32> {
        let early = self.length < params.min_tokens;
        let ends = params.ends.iter().filter(|_| early).copied();
        let words = params.bad_words.iter().filter_map(|word| {
            let (last, before) = word.split_last()?;
            let start = self.tail.len().checked_sub(before.len())?;
            self.tail.iter().skip(start).eq(before).then_some(*last)
        });
        ends.chain(words).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_and_bias_add_up() {
        let params = SamplingParams {
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: vec![(3, 2.0), (9, -1.0)],
            ..SamplingParams::greedy()
        };
        let counts = TokenCounts::of(&[7, 3, 7]);
        assert_eq!(counts.biases(&params), [(3, 1.25), (7, -1.0), (9, -1.0)]);
    }

    #[test]
    fn a_banned_word_cannot_be_completed_and_an_answer_cannot_end_early() {
        let params = SamplingParams {
            min_tokens: 3,
            ends: vec![50, 51],
            bad_words: vec![vec![7], vec![1, 2, 3], vec![2, 9]],
            ..SamplingParams::greedy()
        };
        assert!(params.has_biases());
        let banned = |tokens: &[u32]| -> Vec<u32> {
            let biases = TokenCounts::of(tokens).biases(&params);
            assert!(biases.iter().all(|(_, bias)| *bias == BAN));
            biases.into_iter().map(|(token, _)| token).collect()
        };
        assert_eq!(banned(&[]), [7, 50, 51]);
        assert_eq!(banned(&[1, 2]), [3, 7, 9, 50, 51]);
        assert_eq!(banned(&[1, 1, 2]), [3, 7, 9]);
        assert_eq!(banned(&[1, 2, 1]), [7]);
        assert_eq!(banned(&[vec![4; 200], vec![1, 2]].concat()), [3, 7, 9]);
    }

    #[test]
    fn a_repetition_penalty_counts_prompt_and_answer_once() {
        let params = SamplingParams {
            repetition_penalty: 1.5,
            ..SamplingParams::greedy()
        };
        assert!(params.has_biases());
        let counts = TokenCounts::of(&[7, 3, 7]).behind(&[9, 3, 1], &params);
        assert_eq!(counts.repeated(&params), [1, 3, 7, 9]);
        assert_eq!(counts.biases(&params), []);
        assert!(counts.repeated(&SamplingParams::greedy()).is_empty());
        assert_eq!([repeated(3.0, 1.5), repeated(-3.0, 1.5)], [2.0, -4.5]);
    }

    #[test]
    fn without_penalties_history_does_not_matter() {
        assert_eq!(TokenCounts::of(&[1, 2]).biases(&SamplingParams::greedy()), []);
    }
}
