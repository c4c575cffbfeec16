//! How much longer steps take by their drafts: measured, since it depends on the machine, the model and the batch.

/// Steps of more rows get no drafts: their rows are worth more.
pub(super) const MOST_ROWS: usize = 64;
/// Most drafts of one step.
pub(super) const MOST_DRAFTS: usize = 32;

/// What a row adds to a step of one row before anything is measured: on the CPU backend 16 rows take about four times as long
/// as one.
const FIRST_SLOPE: f32 = 0.2;
/// How much one step counts for the time of steps without drafts.
const PLAIN_WEIGHT: f32 = 1.0 / 8.0;
/// How much one step counts for the cost of its drafts.
const WEIGHT: f32 = 1.0 / 4.0;
/// How much of what was measured each step without drafts forgets, so that drafts that were dear once are tried again.
const FORGOTTEN: f32 = 1.0 / 256.0;
/// After so many steps with drafts one goes without, since the time of such steps changes with the context and the work beside it.
const LOOK_AGAIN: u32 = 32;
/// A step that took more than so many times what was expected, or known, was disturbed, and counts as so many times.
const MOST_TIMES: f32 = 2.0;

/// Times of steps by rows, and how they grow by drafts.
#[derive(Debug, Clone)]
pub(super) struct StepCosts(Vec<OfRows>);

/// The steps of one number of rows.
#[derive(Debug, Clone)]
struct OfRows {
    /// Seconds without drafts; 0: not measured.
    plain: f32,
    /// How many times that by the number of drafts; 0: not measured.
    ratios: [f32; MOST_DRAFTS + 1],
    /// Steps with drafts since the last one without.
    drafted: u32,
}

impl Default for StepCosts {
    fn default() -> Self {
        let of_rows = OfRows {
            plain: 0.0,
            ratios: [0.0; MOST_DRAFTS + 1],
            drafted: 0,
        };
        Self(vec![of_rows; MOST_ROWS + 1])
    }
}

impl StepCosts {
    /// A step of `rows` rows of one token and `drafts` drafts took so many seconds.
    pub(super) fn measured(&mut self, rows: usize, drafts: usize, seconds: f32) {
        let Some(of_rows) = self.0.get_mut(rows) else {
            return;
        };
        if drafts > 0 {
            of_rows.measured_drafts(rows, drafts, seconds);
            return;
        }
        of_rows.drafted = 0;
        if of_rows.plain == 0.0 {
            of_rows.plain = seconds;
        }
        let counted = seconds.min(MOST_TIMES * of_rows.plain);
        of_rows.plain += PLAIN_WEIGHT * (counted - of_rows.plain);
        for (drafts, ratio) in of_rows.ratios.iter_mut().enumerate() {
            if *ratio > 0.0 {
                *ratio += FORGOTTEN * (expected(rows, drafts) - *ratio);
            }
        }
    }

    /// Whether the next step of so many rows is to go without drafts, to know what they cost.
    pub(super) fn wants_plain(&self, rows: usize) -> bool {
        let of_rows = self.0.get(rows);
        of_rows.is_some_and(|of_rows| of_rows.plain == 0.0 || of_rows.drafted >= LOOK_AGAIN)
    }

    /// How many times as long as one without drafts a step takes.
    pub(super) fn ratio(&self, rows: usize, drafts: usize) -> f32 {
        let measured = self.0.get(rows).and_then(|of_rows| of_rows.ratio(drafts));
        measured.unwrap_or_else(|| expected(rows, drafts))
    }
}

impl OfRows {
    fn measured_drafts(&mut self, rows: usize, drafts: usize, seconds: f32) {
        if self.plain == 0.0 {
            return;
        }
        self.drafted = self.drafted.saturating_add(1);
        let known = self.ratios.get(drafts).copied().unwrap_or(0.0);
        let most = MOST_TIMES * expected(rows, drafts).max(known);
        let counted = (seconds / self.plain).clamp(1.0, most);
        if let Some(ratio) = self.ratios.get_mut(drafts) {
            let before = if *ratio > 0.0 { *ratio } else { counted };
            *ratio = before + WEIGHT * (counted - before);
        }
    }

    /// By what was measured for this number of drafts, or for the nearest one.
    fn ratio(&self, drafts: usize) -> Option<f32> {
        let measured = self.ratios.iter().enumerate().filter(|(_, ratio)| **ratio > 0.0);
        let (nearest, ratio) = measured.min_by_key(|(of, _)| of.abs_diff(drafts))?;
        Some(1.0 + (ratio - 1.0) * drafts as f32 / nearest as f32)
    }
}

/// Before anything is measured.
fn expected(rows: usize, drafts: usize) -> f32 {
    let one = 1.0 + FIRST_SLOPE * rows.saturating_sub(1) as f32;
    1.0 + FIRST_SLOPE * drafts as f32 / one
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_counts_and_neighbours_follow() {
        let mut costs = StepCosts::default();
        assert_eq!(costs.ratio(1, 4), expected(1, 4));
        costs.measured(1, 4, 9.0);
        assert_eq!(costs.ratio(1, 4), expected(1, 4), "nothing to compare with");
        for _ in 0..20 {
            costs.measured(1, 0, 0.010);
            costs.measured(1, 4, 0.012);
        }
        assert!((costs.ratio(1, 4) - 1.2).abs() < 0.02, "{}", costs.ratio(1, 4));
        assert!((costs.ratio(1, 8) - 1.4).abs() < 0.04, "{}", costs.ratio(1, 8));
        assert_eq!(costs.ratio(2, 4), expected(2, 4));
        assert_eq!(costs.ratio(9999, 4), expected(9999, 4));
    }

    #[test]
    fn steps_without_drafts_come_again_and_dear_drafts_are_known_for_what_they_cost() {
        let mut costs = StepCosts::default();
        assert!(costs.wants_plain(1), "nothing is measured");
        costs.measured(1, 0, 0.010);
        assert!(!costs.wants_plain(1) && !costs.wants_plain(MOST_ROWS + 1));
        for _ in 0..LOOK_AGAIN {
            costs.measured(1, 8, 0.090);
        }
        assert!(costs.wants_plain(1));
        assert!(costs.ratio(1, 8) > 8.0, "{}", costs.ratio(1, 8));
        costs.measured(1, 0, 0.010);
        assert!(!costs.wants_plain(1));
    }

    #[test]
    fn a_disturbed_step_is_forgotten() {
        let mut costs = StepCosts::default();
        costs.measured(1, 0, 0.010);
        costs.measured(1, 2, 1.0);
        let dear = costs.ratio(1, 2);
        assert!(dear > 2.0 * expected(1, 2) - 0.01, "{dear}");
        for _ in 0..1000 {
            costs.measured(1, 0, 0.010);
        }
        assert!(costs.ratio(1, 2) < expected(1, 2) + 0.05);
    }
}
