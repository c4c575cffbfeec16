//! Presence and frequency penalties and logit bias, as the sparse biases that ranks add to their logits.

use std::collections::BTreeMap;

use super::SamplingParams;

/// How often each token was generated (the prompt does not count, resumed tokens do), as the OpenAI API defines it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenCounts {
    counts: BTreeMap<u32, u32>,
}

impl TokenCounts {
    /// Counts of the tokens generated so far.
    #[must_use]
    pub fn of(tokens: &[u32]) -> Self {
        let mut counts = Self::default();
        tokens.iter().for_each(|&token| counts.record(token));
        counts
    }

    /// One more time.
    pub fn record(&mut self, token: u32) {
        *self.counts.entry(token).or_insert(0) += 1;
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
        biases.into_iter().filter(|&(_, bias)| bias != 0.0).collect()
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
    fn without_penalties_history_does_not_matter() {
        assert_eq!(TokenCounts::of(&[1, 2]).biases(&SamplingParams::greedy()), []);
    }
}
