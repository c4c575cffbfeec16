//! Where the last tokens of a history stand in it before.

use llamero_settings::hash::{GOLDEN, mix};

/// Lengths of the runs of tokens that are looked for, longest first.
const RUNS: [usize; 2] = [4, 2];

/// Most places a table has, four bytes each: 512 KiB for the two tables of a sequence. A longer history forgets some of its earlier places.
const MOST_PLACES: usize = 1 << 16;
/// Fewest places.
const FEWEST_PLACES: usize = 1 << 8;

/// For each run of tokens the last place where it stands. Only grows with its history. Runs that share a place in the table by
/// chance forget each other, and what is found is compared before it counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Lookup {
    /// For each of [`RUNS`]: the end of a run, by the run's hash; 0: none.
    ends: [Vec<u32>; RUNS.len()],
    /// Ends up to here are in the tables.
    indexed: usize,
}

impl Lookup {
    /// The position behind the last place where the end of `tokens` stands before, by the longest run that does. `tokens` begins
    /// with what was given before.
    pub(super) fn find(&mut self, tokens: &[u32]) -> Option<usize> {
        self.index(tokens);
        RUNS.iter().zip(&self.ends).find_map(|(run, ends)| {
            let last = tokens.get(tokens.len().checked_sub(*run)?..)?;
            let end = *ends.get(place(last, ends.len()))? as usize;
            let there = tokens.get(end.checked_sub(*run)?..end)?;
            (there == last).then_some(end)
        })
    }

    /// Note the ends of all runs but the last, which would find itself.
    fn index(&mut self, tokens: &[u32]) {
        let wanted = (2 * tokens.len()).clamp(FEWEST_PLACES, MOST_PLACES);
        if self.ends.iter().any(|ends| ends.len() < wanted) {
            let places = (2 * wanted).next_power_of_two().min(MOST_PLACES);
            self.ends = RUNS.map(|_| vec![0; places]);
            self.indexed = 0;
        }
        for (run, ends) in RUNS.iter().zip(&mut self.ends) {
            for end in (self.indexed + 1).max(*run)..tokens.len() {
                let places = ends.len();
                if let Some(tokens) = tokens.get(end - run..end)
                    && let Some(noted) = ends.get_mut(place(tokens, places))
                {
                    *noted = u32::try_from(end).unwrap_or(0);
                }
            }
        }
        self.indexed = self.indexed.max(tokens.len().saturating_sub(1));
    }
}

/// The place of a run among `places`, a power of two.
fn place(run: &[u32], places: usize) -> usize {
    let hash = run
        .iter()
        .fold(GOLDEN, |hash, token| mix(hash ^ u64::from(*token)));
    usize::try_from(hash & (places as u64).saturating_sub(1)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found if everything is remembered.
    fn reference(tokens: &[u32]) -> Option<usize> {
        RUNS.iter().find_map(|run| {
            let last = &tokens[tokens.len().checked_sub(*run)?..];
            (*run..tokens.len())
                .rev()
                .find(|end| &tokens[end - run..*end] == last)
        })
    }

    #[test]
    fn the_last_place_of_the_longest_run_is_found() {
        let mut lookup = Lookup::default();
        let tokens: Vec<u32> = (0..3000_u32).map(|at| mix(at.into()) as u32 % 9).collect();
        let (mut found, mut lost) = (0, 0);
        for length in 0..=tokens.len() {
            let history = &tokens[..length];
            let got = lookup.find(history);
            found += u32::from(got.is_some());
            // Runs that share a place forget each other.
            lost += u32::from(got != reference(history));
        }
        assert!(found > 2800 && lost < 200, "{found} found, {lost} other");
    }

    #[test]
    fn memory_is_bounded_and_the_latest_is_remembered() {
        let mut lookup = Lookup::default();
        let tokens: Vec<u32> = (0..300_000_u32).collect();
        assert_eq!(lookup.find(&tokens), None);
        let again = [&tokens[..], &tokens[299_000..299_010]].concat();
        assert_eq!(lookup.find(&again), Some(299_010));
        let bytes: usize = lookup.ends.iter().map(|ends| 4 * ends.capacity()).sum();
        assert_eq!(bytes, 512 << 10);
    }
}
