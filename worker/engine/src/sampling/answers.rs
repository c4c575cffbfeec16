//! What the ranks have answered to one position.

use super::SamplingError;
use super::candidates::by_logit;
use super::mass::{Mass, MassSoFar};
use crate::step::RowCandidates;

/// The answers to one position, put together as they come: when the last one is there, little is left to be done.
#[derive(Debug, Clone, Default)]
pub struct RowAnswers {
    /// In the order in which they came.
    ranks: Vec<RowCandidates>,
    best: Option<(u32, f32)>,
    best_perturbed: Option<(u32, f32, f32)>,
    scaled: MassSoFar,
    raw: MassSoFar,
}

impl RowAnswers {
    /// For the answers of so many ranks.
    #[must_use]
    pub fn of_ranks(ranks: usize) -> Self {
        Self {
            ranks: Vec::with_capacity(ranks),
            ..Self::default()
        }
    }

    /// One more rank has answered. A rank whose share of the vocabulary is empty has nothing to say.
    pub fn add(&mut self, rank: RowCandidates) {
        if let Some(top) = rank.top.first()
            && self.best.is_none_or(|best| by_logit(top, &best).is_lt())
        {
            self.best = Some(*top);
        }
        if let Some(top) = rank.gumbel
            && self
                .best_perturbed
                .is_none_or(|best| by_logit(&(top.0, top.1), &(best.0, best.1)).is_lt())
        {
            self.best_perturbed = Some(top);
        }
        self.scaled.add(&rank.mass);
        self.raw.add(&rank.mass_raw);
        self.ranks.push(rank);
    }

    /// The answers themselves.
    #[must_use]
    pub fn ranks(&self) -> &[RowCandidates] {
        &self.ranks
    }

    /// The best token and its logit, ties by lower id; NaN comes first.
    pub(super) fn best(&self) -> Result<(u32, f32), SamplingError> {
        self.best.ok_or(SamplingError::Inconsistent("no candidates"))
    }

    /// The token with the best perturbed logit and its unscaled one, ties by lower id; NaN comes first.
    pub(super) fn best_perturbed(&self) -> Result<(u32, f32), SamplingError> {
        self.best_perturbed
            .map(|(id, _, logit)| (id, logit))
            .ok_or(SamplingError::Inconsistent("no rank sampled with noise"))
    }

    /// The masses that are wanted.
    ///
    /// # Errors
    /// [`SamplingError::Inconsistent`] when the ranks' tiles leave a gap or overlap, [`SamplingError::NotFinite`] when a mass
    /// is not finite.
    pub fn mass(&self, scaled: bool, raw: bool) -> Result<Mass, SamplingError> {
        Ok(Mass {
            scaled: scaled.then(|| self.scaled.total()).transpose()?,
            raw: raw.then(|| self.raw.total()).transpose()?,
        })
    }
}

impl FromIterator<RowCandidates> for RowAnswers {
    fn from_iter<I: IntoIterator<Item = RowCandidates>>(ranks: I) -> Self {
        let mut answers = Self::default();
        ranks.into_iter().for_each(|rank| answers.add(rank));
        answers
    }
}
