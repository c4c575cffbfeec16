//! Drafts: tokens that are guessed from what a sequence has said before, computed in one row with the token they follow, and
//! kept as far as each is the token that would have been chosen anyway. Answers are the same with and without; only their speed
//! is not.
//!
//! The guess is prompt look-up (Saxena 2023, <https://github.com/apoorvumang/prompt-lookup-decoding>): where the last tokens
//! stand in the history already, what followed there is likely to follow again. A guess is made for every position whether it
//! becomes a draft or not, so how often guesses come true is known before a single draft is paid for, and drafts begin and end
//! with that.
//!
//! | module | what it is |
//! |---|---|
//! | [`lookup`] | where the last tokens of a history stand in it before |
//! | [`odds`] | how often guesses come true, by the length of the match |
//! | [`costs`] | how much longer steps take by their drafts |
//! | [`share`] | who gets how many drafts in a step, if that pays |

mod costs;
mod lookup;
mod odds;
mod share;

use costs::StepCosts;
use lookup::Lookup;
use odds::Odds;

/// How sequences are drafted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speculation {
    /// Most drafts of one sequence in one step.
    pub max_drafts: u32,
    /// Which guesses become drafts.
    pub drafted: Drafted,
}

/// Which guesses become drafts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Drafted {
    /// Those that make answers faster, by what was measured of their gain and their cost.
    #[default]
    WhatPays,
    /// All, however bad: for tests.
    All,
}

/// What is known for the drafts of all sequences.
#[derive(Debug, Clone)]
pub(super) struct Drafting {
    settings: Speculation,
    /// Those of all sequences, with which new ones begin.
    odds: Odds,
    costs: StepCosts,
}

impl Drafting {
    pub(super) fn new(settings: Speculation) -> Self {
        Self {
            settings,
            odds: Odds::shared(),
            costs: StepCosts::default(),
        }
    }

    /// A step of `rows` rows of one token and `drafts` drafts took so many seconds.
    pub(super) fn measured(&mut self, rows: usize, drafts: usize, seconds: f32) {
        self.costs.measured(rows, drafts, seconds);
    }

    /// Look at what a history has become, and guess how it goes on: the chance of each draft to be right if all before it are.
    /// At most `most` drafts.
    pub(super) fn chances(
        &mut self,
        drafter: &mut Option<Box<Drafter>>,
        tokens: &[u32],
        most: u32,
    ) -> Vec<f32> {
        let drafter = drafter.get_or_insert_with(|| Box::new(Drafter::new(self.odds.of_sequence())));
        drafter.follow(tokens, &mut self.odds);
        drafter.chances(most.min(self.settings.max_drafts))
    }

    /// How many drafts each of `rows` rows gets, at most `room` in all.
    pub(super) fn share(&self, rows: usize, chances: &[Vec<f32>], room: usize) -> Vec<usize> {
        match self.settings.drafted {
            Drafted::WhatPays if self.costs.wants_plain(rows) => vec![0; chances.len()],
            Drafted::WhatPays => share::share(rows, chances, room, &self.costs),
            Drafted::All => share::all(chances, room),
        }
    }
}

/// The guesses of one sequence.
#[derive(Debug, Clone)]
pub(super) struct Drafter {
    lookup: Lookup,
    /// Where the end of the history stands before.
    found: Option<Match>,
    odds: Odds,
    /// Tokens of the history that were looked at.
    seen: usize,
}

/// An earlier place in the history that the end of it equals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Match {
    /// The position that comes next there.
    next: usize,
    /// How many tokens before are equal, as far as was looked.
    length: usize,
}

/// Longer matches are not told from this one.
const LONGEST_MATCH: usize = 32;

impl Drafter {
    fn new(odds: Odds) -> Self {
        Self {
            lookup: Lookup::default(),
            found: None,
            odds,
            seen: 0,
        }
    }

    /// The history is `tokens` now: see which guesses have come true, and guess anew.
    fn follow(&mut self, tokens: &[u32], shared: &mut Odds) {
        // What was there at first has not been guessed.
        let from = if self.seen == 0 { tokens.len() } else { self.seen };
        for length in from.max(1)..=tokens.len() {
            let Some(history) = tokens.get(..length).filter(|_| length > self.seen) else {
                continue;
            };
            if let Some(found) = &mut self.found {
                let is_right = history.get(found.next) == history.last();
                for odds in [&mut self.odds, &mut *shared] {
                    odds.record(found.length, is_right);
                }
                found.next += 1;
                found.length += 1;
                if !is_right {
                    self.found = None;
                }
            }
            if self.found.is_none() {
                self.found = self.lookup.find(history).map(|next| Match {
                    next,
                    length: equal_before(history, next),
                });
            }
            self.seen = length;
        }
    }

    fn chances(&self, most: u32) -> Vec<f32> {
        let Some(found) = self.found else {
            return Vec::new();
        };
        (0..most as usize)
            .map(|ahead| self.odds.of(found.length + ahead))
            .collect()
    }

    /// The first `count` drafts behind `tokens`, which [`Drafting::chances`] was asked about last.
    pub(super) fn drafts(&self, tokens: &[u32], count: usize) -> Vec<u32> {
        let Some(found) = self.found else {
            return Vec::new();
        };
        let mut drafts: Vec<u32> = Vec::with_capacity(count);
        for position in (found.next..).take(count) {
            // A match that reaches the end of the history repeats itself.
            let of_drafts = position.checked_sub(tokens.len());
            let token = tokens
                .get(position)
                .or_else(|| of_drafts.and_then(|at| drafts.get(at)));
            let Some(token) = token.copied() else { break };
            drafts.push(token);
        }
        drafts
    }
}

/// How many tokens before `next` equal those before the end of a history.
fn equal_before(history: &[u32], next: usize) -> usize {
    let before = history.get(..next).unwrap_or_default().iter().rev();
    let pairs = before.zip(history.iter().rev()).take(LONGEST_MATCH);
    pairs.take_while(|(earlier, last)| earlier == last).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafter(tokens: &[u32]) -> (Drafter, Odds) {
        let mut shared = Odds::shared();
        let mut drafter = Drafter::new(shared.of_sequence());
        drafter.follow(tokens, &mut shared);
        (drafter, shared)
    }

    #[test]
    fn what_followed_before_is_drafted() {
        let tokens = [9, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2];
        let (drafter, _) = drafter(&tokens);
        assert_eq!(drafter.drafts(&tokens, 3), [3, 4, 5]);
        assert_eq!(drafter.chances(3).len(), 3);
    }

    #[test]
    fn what_ends_in_a_loop_goes_on_in_it() {
        let tokens = [5, 1, 2, 3, 1, 2, 3, 1];
        let (drafter, _) = drafter(&tokens);
        assert_eq!(drafter.drafts(&tokens, 7), [2, 3, 1, 2, 3, 1, 2]);
        let tokens = [7, 7, 7];
        let (drafter, _) = super::tests::drafter(&tokens);
        assert_eq!(drafter.drafts(&tokens, 4), [7; 4]);
    }

    #[test]
    fn nothing_is_drafted_where_nothing_was_before() {
        let tokens: Vec<u32> = (0..100).collect();
        let (drafter, _) = drafter(&tokens);
        assert!(drafter.drafts(&tokens, 8).is_empty() && drafter.chances(8).is_empty());
        let (drafter, _) = super::tests::drafter(&[]);
        assert!(drafter.drafts(&[], 8).is_empty());
    }

    #[test]
    fn guesses_are_judged_whether_they_are_drafted_or_not() {
        let mut tokens: Vec<u32> = (0..40).chain(0..4).collect();
        let (mut drafter, mut shared) = drafter(&tokens);
        let before = drafter.chances(1);
        for token in 4..9 {
            tokens.push(token);
            drafter.follow(&tokens, &mut shared);
        }
        assert!(drafter.chances(1) > before);
        assert_eq!(drafter.drafts(&tokens, 2), [9, 10]);
        // Now another word comes, and later the same place again: it has been wrong once.
        let long = drafter.odds.of(9);
        tokens.push(900);
        drafter.follow(&tokens, &mut shared);
        assert!(drafter.odds.of(9) < long && drafter.chances(1).is_empty());
    }

    #[test]
    fn many_tokens_at_once_are_followed_as_one_by_one() {
        let tokens: Vec<u32> = (0..300_u32).map(|at| at * at % 17).collect();
        let (mut all, mut one) = (drafter(&tokens[..20]), drafter(&tokens[..20]));
        all.0.follow(&tokens, &mut all.1);
        for length in 21..=tokens.len() {
            one.0.follow(&tokens[..length], &mut one.1);
        }
        assert_eq!((all.0.found, all.0.seen), (one.0.found, one.0.seen));
        assert_eq!((&all.0.odds, &all.1), (&one.0.odds, &one.1));
    }
}
