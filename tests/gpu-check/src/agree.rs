//! How far two backends are apart.

use llamero_engine::{Backend, FormSpec};

use crate::drive::{self, Leader, row, sample};

/// The largest logit's token, ties by lower id.
#[must_use]
pub fn best(logits: &[f32]) -> usize {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best
}

/// Distance between the two largest logits.
#[must_use]
pub fn gap(logits: &[f32]) -> f32 {
    let top = best(logits);
    let second = logits
        .iter()
        .enumerate()
        .filter(|(token, _)| *token != top)
        .map(|(_, logit)| *logit);
    logits[top] - second.fold(f32::NEG_INFINITY, f32::max)
}

/// Kullback-Leibler divergence of the distribution of `found` from that of `wanted`, in nats.
#[must_use]
pub fn divergence(wanted: &[f32], found: &[f32]) -> f64 {
    let log_probabilities = |logits: &[f32]| -> Vec<f64> {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|x| f64::from(x - top).exp()).sum();
        logits.iter().map(|x| f64::from(x - top) - sum.ln()).collect()
    };
    let (wanted, found) = (log_probabilities(wanted), log_probabilities(found));
    wanted.iter().zip(&found).map(|(a, b)| a.exp() * (a - b)).sum()
}

/// The largest difference of two logits.
#[must_use]
pub fn error(wanted: &[f32], found: &[f32]) -> f32 {
    wanted
        .iter()
        .zip(found)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// Logits of this distance may change places.
const CLOSE: f32 = 0.02;

/// What comparing many positions gave.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Agreement {
    /// Positions.
    pub positions: usize,
    /// Positions whose best token differs.
    pub different: usize,
    /// The largest distance of the two best logits at such a position.
    pub gap: f32,
    /// The largest divergence in nats.
    pub divergence: f64,
    /// The largest difference of two logits.
    pub error: f32,
}

impl Agreement {
    /// Add a position.
    pub fn add(&mut self, wanted: &[f32], found: &[f32]) {
        let error = error(wanted, found);
        self.positions += 1;
        self.divergence = self.divergence.max(divergence(wanted, found));
        self.error = self.error.max(error);
        if best(wanted) != best(found) {
            self.different += 1;
            self.gap = self.gap.max(gap(wanted));
        }
    }

    /// Whether two orders of summation may differ so: at most 2 % of the best tokens (or one), where the two best are nearly
    /// the same, and a divergence of 1e-4.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.gap <= CLOSE && self.different <= (self.positions / 50).max(1) && self.divergence <= 1e-4
    }
}

/// Teacher-forced: both compute `prompt`, then the reference's best token, step by step.
///
/// # Errors
/// A backend's.
pub fn compare(
    reference: &mut dyn Backend,
    backend: &mut dyn Backend,
    spec: &FormSpec,
    prompt: &[u32],
    steps: usize,
) -> anyhow::Result<Agreement> {
    let blocks = drive::form(backend, spec)?.min(drive::form(reference, spec)?);
    let mut leader = Leader::new(spec, blocks);
    let mut all = Agreement::default();
    let (mut start, mut tokens) = (0, prompt.to_vec());
    for _ in 0..=steps {
        let plan = leader.plan(vec![row(0, start, &tokens, sample(tokens.len()))]);
        let wanted = drive::logits(reference, &plan)?;
        let found = drive::logits(backend, &plan)?;
        wanted
            .iter()
            .zip(&found)
            .for_each(|(wanted, found)| all.add(wanted, found));
        start += tokens.len() as u32;
        tokens = wanted
            .last()
            .map(|logits| best(logits) as u32)
            .into_iter()
            .collect();
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_token_is_seen_and_a_near_tie_is_allowed() {
        let wanted = [1.0, 4.0, 3.999];
        let mut all = Agreement::default();
        (0..49).for_each(|_| all.add(&wanted, &wanted));
        all.add(&wanted, &[1.0, 3.9985, 3.9995]);
        assert!(all.different == 1 && all.holds(), "{all:?}");
        all.add(&wanted, &[1.0, 3.9985, 3.9995]);
        assert!(!all.holds(), "more than one of fifty");
        let mut wrong = Agreement::default();
        (0..99).for_each(|_| wrong.add(&wanted, &wanted));
        wrong.add(&[1.0, 4.0, 3.9], &[1.0, 3.9, 4.0]);
        assert!(!wrong.holds(), "{wrong:?}");
    }
}
