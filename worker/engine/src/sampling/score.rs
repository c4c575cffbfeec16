//! The log-probability of a given token, from the answers of all ranks.

use super::{RowAnswers, SamplingError, likeliest, rounded};

/// A token that was scored.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Its log-probability at temperature 1.
    pub logprob: f32,
    /// The likeliest tokens in its place, best first.
    pub top: Vec<(u32, f32)>,
}

/// What the ranks say of a scored position: of its token, which one of them holds, and of the `count` likeliest ones.
///
/// # Errors
/// [`SamplingError`] when the logits are not finite or the answers do not fit together.
pub fn scored(count: u16, row: &RowAnswers) -> Result<Scored, SamplingError> {
    let mass = row.mass(false, true)?;
    let total = mass
        .raw
        .ok_or(SamplingError::Inconsistent("no rank gave a mass"))?;
    let mut held = row.ranks().iter().filter_map(|rank| rank.scored);
    let (Some(logit), None) = (held.next(), held.next()) else {
        return Err(SamplingError::Inconsistent(
            "a scored token is held by none or by several ranks",
        ));
    };
    if !logit.is_finite() {
        return Err(SamplingError::NotFinite);
    }
    Ok(Scored {
        logprob: rounded(f64::from(logit) - total),
        top: likeliest(count, row.ranks(), &mass),
    })
}
