//! One token from the candidates of all ranks.

use super::candidates::by_logit;
use super::kept::{kept, winner};
use super::mass::Mass;
use super::{Noise, Sampled, SamplingError, SamplingParams};
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
pub fn merge(
    params: &SamplingParams,
    noise: Noise,
    ranks: &[&RowCandidates],
) -> Result<Outcome, SamplingError> {
    let mass = Mass::of_ranks(ranks, false, params.logprobs.is_some())?;
    if params.temperature == 0.0 {
        let best = ranks.iter().filter_map(|rank| rank.top.first());
        let (token, logit) = best
            .min_by(|a, b| by_logit(a, b))
            .ok_or(SamplingError::Inconsistent("no candidates"))?;
        return sampled(*token, *logit, &mass).map(Outcome::Token);
    }
    let (free, free_logit) = best_of_all(ranks)?;
    let free_token = sampled(free, free_logit, &mass)?;
    if !params.restricts() {
        return Ok(Outcome::Token(free_token));
    }
    let mut order = CertainOrder::new(ranks, params.key().top.into());
    let (best, best_logit) = order.head().ok_or(SamplingError::Inconsistent("no candidates"))?;
    if !best_logit.is_finite() {
        return Err(SamplingError::NotFinite);
    }
    // The best token is always kept, and the winner over everything also wins over any set that contains it.
    if best == free {
        return Ok(Outcome::Token(free_token));
    }
    // Dear, so not before it is needed.
    let total = Mass::of_ranks(ranks, params.needs_mass(), false)?.scaled;
    let kept = kept(order.by_ref(), params, total);
    if kept.tokens.iter().any(|&(id, _)| id == free) {
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
    lists: Vec<List<'a>>,
    /// Set when the order may go on with a token that is in no list.
    uncertain: bool,
}

struct List<'a> {
    rest: &'a [(u32, f32)],
    cut: bool,
}

impl<'a> CertainOrder<'a> {
    /// Lists of up to `longest` entries are whole, longer ones were cut there.
    fn new(ranks: &[&'a RowCandidates], longest: usize) -> Self {
        let list = |rank: &&'a RowCandidates| List {
            rest: &rank.top,
            // Behind a masked token there are only masked ones.
            cut: rank.top.len() >= longest && rank.top.last().is_some_and(|last| last.1 != f32::NEG_INFINITY),
        };
        Self {
            lists: ranks.iter().map(list).collect(),
            uncertain: false,
        }
    }

    fn best(&self) -> Option<usize> {
        let heads = self.lists.iter().enumerate();
        let heads = heads.filter_map(|(index, list)| Some((index, list.rest.first()?)));
        heads.min_by(|a, b| by_logit(a.1, b.1)).map(|(index, _)| index)
    }

    fn head(&self) -> Option<(u32, f32)> {
        self.lists[self.best()?].rest.first().copied()
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
        let index = self.best()?;
        let list = &mut self.lists[index];
        let (first, rest) = list.rest.split_first()?;
        list.rest = rest;
        self.uncertain = rest.is_empty() && list.cut;
        Some(*first)
    }
}

/// The best perturbed token of all ranks, ties by lower id; NaN comes first.
fn best_of_all(ranks: &[&RowCandidates]) -> Result<(u32, f32), SamplingError> {
    // A rank whose share is empty has none.
    let best = ranks.iter().filter_map(|rank| rank.gumbel);
    best.min_by(|a, b| by_logit(&(a.0, a.1), &(b.0, b.1)))
        .map(|(id, _, logit)| (id, logit))
        .ok_or(SamplingError::Inconsistent("no rank sampled with noise"))
}

pub(super) fn sampled(token: u32, logit: f32, mass: &Mass) -> Result<Sampled, SamplingError> {
    if !logit.is_finite() {
        return Err(SamplingError::NotFinite);
    }
    Ok(Sampled {
        token,
        logprob: mass.raw.map(|total| (f64::from(logit) - total) as f32),
    })
}
