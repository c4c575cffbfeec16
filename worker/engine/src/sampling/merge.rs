//! One token from the candidates of all ranks.

use super::answers::RowAnswers;
use super::candidates::by_logit;
use super::kept::{kept, winner};
use super::mass::Mass;
use super::{Noise, Sampled, SamplingError, SamplingParams, rounded};
use crate::step::RowCandidates;

/// What the candidates tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// The token, exactly the one that the full row would give.
    Token(Sampled),
    /// The candidates do not suffice: fetch the row from all ranks and call [`super::sample_full_row`].
    NeedFullRow,
}

/// Sample from the answers of all ranks to one position. `noise` is that of the new token's position.
///
/// # Errors
/// [`SamplingError`] when the logits are not finite or the answers do not fit together.
pub fn merge(params: &SamplingParams, noise: Noise, row: &RowAnswers) -> Result<Outcome, SamplingError> {
    let mass = row.mass(false, params.logprobs.is_some())?;
    if params.temperature == 0.0 {
        let (token, logit) = row.best()?;
        return sampled(token, logit, &mass).map(Outcome::Token);
    }
    let (free, free_logit) = row.best_perturbed()?;
    let free_token = sampled(free, free_logit, &mass)?;
    if !params.restricts() {
        return Ok(Outcome::Token(free_token));
    }
    let (best, best_logit) = row.best()?;
    if !best_logit.is_finite() {
        return Err(SamplingError::NotFinite);
    }
    // The best token is always kept, and the winner over everything also wins over any set that contains it.
    if best == free {
        return Ok(Outcome::Token(free_token));
    }
    let total = row.mass(params.needs_mass(), false)?.scaled;
    let mut order = CertainOrder::new(row.ranks(), params.key().top.into());
    // Once the winner over everything is kept, what else is kept does not matter.
    let until_free = order.by_ref().scan(false, |over, token| {
        let more = !*over;
        *over = token.0 == free;
        more.then_some(token)
    });
    let kept = kept(until_free, params, total);
    if kept.tokens.last().is_some_and(|&(id, _)| id == free) {
        return Ok(Outcome::Token(free_token));
    }
    if !kept.closed && !order.is_complete() {
        return Ok(Outcome::NeedFullRow);
    }
    let (token, logit) = winner(&kept.tokens, noise, params.temperature)
        .ok_or(SamplingError::Inconsistent("no candidates"))?;
    sampled(token, logit, &mass).map(Outcome::Token)
}

/// The tokens whose place in the order of the whole vocabulary is certain, best first: the ranks' sorted lists merged,
/// until one ends that was cut, since that says nothing about what follows its last entry.
struct CertainOrder<'a> {
    /// None is empty; by their first entries, the best last.
    lists: Vec<List<'a>>,
    /// Set when the order may go on with a token that is in no list.
    uncertain: bool,
}

struct List<'a> {
    first: (u32, f32),
    rest: &'a [(u32, f32)],
    cut: bool,
}

impl<'a> CertainOrder<'a> {
    /// Lists of up to `longest` entries are whole, longer ones were cut there.
    fn new(ranks: &'a [RowCandidates], longest: usize) -> Self {
        let mut order = Self {
            lists: Vec::with_capacity(ranks.len()),
            uncertain: false,
        };
        for rank in ranks {
            // Behind a masked token there are only masked ones.
            let cut =
                rank.top.len() >= longest && rank.top.last().is_some_and(|last| last.1 != f32::NEG_INFINITY);
            if let Some((first, rest)) = rank.top.split_first() {
                order.insert(List {
                    first: *first,
                    rest,
                    cut,
                });
            }
        }
        order
    }

    fn insert(&mut self, list: List<'a>) {
        let worse = |other: &List<'_>| by_logit(&other.first, &list.first).is_gt();
        // Most often it goes to the end or near to it: neighbours in the order are often of one rank.
        let at = self.lists.iter().rposition(worse).map_or(0, |at| at + 1);
        self.lists.insert(at, list);
    }

    /// Whether what was given is every token with any probability.
    fn is_complete(&self) -> bool {
        !self.uncertain
    }
}

impl Iterator for CertainOrder<'_> {
    type Item = (u32, f32);

    fn next(&mut self) -> Option<(u32, f32)> {
        if self.uncertain {
            return None;
        }
        let List { first, rest, cut } = self.lists.pop()?;
        match rest.split_first() {
            Some((next, rest)) => self.insert(List {
                first: *next,
                rest,
                cut,
            }),
            None => self.uncertain = cut,
        }
        Some(first)
    }
}

pub(super) fn sampled(token: u32, logit: f32, mass: &Mass) -> Result<Sampled, SamplingError> {
    if !logit.is_finite() {
        return Err(SamplingError::NotFinite);
    }
    Ok(Sampled {
        token,
        logprob: mass.raw.map(|total| rounded(f64::from(logit) - total)),
    })
}
