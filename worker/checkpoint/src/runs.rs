//! Sets of numbers as ascending runs: which heads, leaves or vocabulary rows a rank holds.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A set of `u32`, kept as ascending ranges that neither touch nor overlap. Usually one; more when a rank of a smaller
/// group took over a part of what a lost one had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
// What comes from others may be ranges in any order, that end before they begin.
#[serde(from = "Vec<Range<u32>>")]
pub struct Runs(Vec<Range<u32>>);

impl From<Vec<Range<u32>>> for Runs {
    fn from(ranges: Vec<Range<u32>>) -> Self {
        Self::new(ranges)
    }
}

impl Runs {
    /// The set of all that is in any of `ranges`.
    #[must_use]
    pub fn new(ranges: impl IntoIterator<Item = Range<u32>>) -> Self {
        let mut ranges: Vec<_> = ranges
            .into_iter()
            .filter(|range| range.start < range.end)
            .collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut runs: Vec<Range<u32>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match runs.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => runs.push(range),
            }
        }
        Self(runs)
    }

    /// The runs, ascending.
    #[must_use]
    pub fn as_slice(&self) -> &[Range<u32>] {
        &self.0
    }

    /// How many numbers.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.0.iter().map(|run| run.end - run.start).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + Clone + '_ {
        self.0.iter().cloned().flatten()
    }

    /// Whether `number` is in the set.
    #[must_use]
    pub fn contains(&self, number: u32) -> bool {
        self.position(number).is_some()
    }

    /// How many smaller numbers the set holds before `number`, when it holds that.
    #[must_use]
    pub fn position(&self, number: u32) -> Option<u32> {
        let mut before = 0;
        for run in &self.0 {
            if run.contains(&number) {
                return Some(before + number - run.start);
            }
            before += run.end - run.start;
        }
        None
    }

    /// Each number `n` as the `by` numbers from `n · by` on, below `limit`.
    #[must_use]
    pub fn scaled(&self, by: u32, limit: u32) -> Self {
        Self::new(
            self.0
                .iter()
                .map(|run| run.start.saturating_mul(by).min(limit)..run.end.saturating_mul(by).min(limit)),
        )
    }
}

impl Runs {
    /// The numbers at `positions` of the ascending order, as a set.
    #[must_use]
    pub fn part(&self, positions: Range<u32>) -> Self {
        let mut before = 0;
        let mut runs = Vec::new();
        for run in &self.0 {
            let len = run.end - run.start;
            let (from, to) = (
                positions.start.clamp(before, before + len),
                positions.end.clamp(before, before + len),
            );
            if from < to {
                runs.push(run.start + from - before..run.start + to - before);
            }
            before += len;
        }
        Self(runs)
    }

    /// All that is in this set or in `other`.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::new(self.0.iter().chain(&other.0).cloned())
    }

    /// All that is in this set and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for run in &self.0 {
            let mut start = run.start;
            for gone in other
                .0
                .iter()
                .filter(|gone| gone.start < run.end && gone.end > run.start)
            {
                left.push(start..gone.start);
                start = gone.end;
            }
            left.push(start..run.end);
        }
        Self::new(left)
    }

    /// All that is in both sets.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        self.without(&self.without(other))
    }

    /// Whether every number of `other` is in this set.
    #[must_use]
    pub fn contains_all(&self, other: &Self) -> bool {
        self.union(other) == *self
    }
}

/// As people write it: `0..5, 8..9`.
impl fmt::Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs: Vec<_> = self
            .0
            .iter()
            .map(|run| format!("{}..{}", run.start, run.end))
            .collect();
        f.pad(&runs.join(", "))
    }
}

impl From<Range<u32>> for Runs {
    fn from(range: Range<u32>) -> Self {
        Self::new([range])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_ranges_are_read_are_a_set() {
        let read: Runs = serde_json::from_str(
            r#"[{"start": 9, "end": 3}, {"start": 4, "end": 8}, {"start": 0, "end": 5}, {"start": 7, "end": 7}]"#,
        )
        .unwrap();
        assert_eq!(read, Runs::from(0..8));
        assert_eq!(read.len(), 8);
        let written = serde_json::to_string(&read).unwrap();
        assert_eq!(serde_json::from_str::<Runs>(&written).unwrap(), read);
    }

    #[test]
    fn joins_what_touches_and_drops_what_is_empty() {
        let runs = Runs::new([8..9, 0..2, 3..3, 2..4, 3..5]);
        assert_eq!(runs.as_slice(), [0..5, 8..9]);
        assert_eq!(runs.len(), 6);
        assert_eq!(runs.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 8]);
        assert_eq!((runs.position(8), runs.position(7)), (Some(5), None));
        assert_eq!(runs.scaled(10, 85).as_slice(), [0..50, 80..85]);
        assert_eq!(runs.part(3..6).as_slice(), [3..5, 8..9]);
        assert_eq!(runs.part(5..5), Runs::default());
        assert_eq!(runs.part(0..9), runs);
        assert_eq!(runs.to_string(), "0..5, 8..9");
        assert_eq!(runs.union(&Runs::from(4..8)), Runs::from(0..9));
        assert!(runs.contains_all(&Runs::new([1..3, 8..9])) && !runs.contains_all(&Runs::from(5..6)));
    }

    #[test]
    fn differences_and_what_is_common() {
        let runs = Runs::new([0..5, 8..12, 20..21]);
        for (other, left, common) in [
            (Runs::default(), runs.clone(), Runs::default()),
            (runs.clone(), Runs::default(), runs.clone()),
            (
                Runs::new([1..2, 4..9, 11..30]),
                Runs::new([0..1, 2..4, 9..11]),
                Runs::new([1..2, 4..5, 8..9, 11..12, 20..21]),
            ),
            (Runs::new([5..8, 12..20]), runs.clone(), Runs::default()),
        ] {
            assert_eq!(runs.without(&other), left, "without {other}");
            assert_eq!(runs.common(&other), common, "and {other}");
            assert_eq!(left.union(&common), runs);
        }
    }
}
