//! From the ranks' candidates to a token.
//!
//! Order of the rules: biases and penalties (added by the ranks), temperature, then top-k, top-p and min-p, each over
//! the full distribution. Every rule keeps a prefix of the tokens ordered by logit (ties by lower id), so together they
//! keep the shortest of the prefixes; the token is the one with the best perturbed logit in it.
//!
//! | module | what it is |
//! |---|---|
//! | [`params`] | how one request samples |
//! | [`noise`] | Gumbel noise keyed by seed, position and token |
//! | [`mass`] | total probability mass, summed in a tree over vocabulary tiles |
//! | [`candidates`] | what a rank answers, in plain code |
//! | [`answers`] | what the ranks have answered to one position |
//! | [`merge`] | one token from the candidates of all ranks, when that is provably exact |
//! | [`full_row`] | one token from a full row of logits |
//! | [`likeliest`] | the likeliest tokens, or those of a list, for log-probabilities |
//! | [`penalties`] | everything that is a sparse bias: penalties, logit bias, bans |

pub mod answers;
pub mod candidates;
pub mod full_row;
mod kept;
pub mod likeliest;
pub mod mass;
pub mod merge;
pub mod noise;
pub mod params;
pub mod penalties;
mod score;

#[cfg(test)]
mod properties;

pub use answers::RowAnswers;
pub use full_row::{join_shards, sample_full_row};
pub use likeliest::{likeliest, listed};
pub use mass::Mass;
pub use merge::{Outcome, merge};
pub use noise::Noise;
pub use params::SamplingParams;
pub use penalties::TokenCounts;
pub use score::{Scored, scored};

/// The f32 that is nearest.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "rounding is what it is for")]
fn rounded(value: f64) -> f32 {
    value as f32
}

/// A sampled token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// Vocabulary id.
    pub token: u32,
    /// Natural logarithm of its probability at temperature 1 (biases and penalties applied), when asked for.
    pub logprob: Option<f32>,
}

/// Why no token can be sampled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SamplingError {
    /// Some logits are NaN or +∞, or all are masked away: the model's output is unusable.
    #[error("the logits of this position are not finite; the checkpoint is damaged or its scales overflow")]
    NotFinite,
    /// The answers of the ranks do not make up one row.
    #[error("the candidates of the ranks do not belong together: {0}")]
    Inconsistent(&'static str),
}
