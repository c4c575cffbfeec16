//! How often guesses come true, by the length of the match they come from.

/// The chance of the next guess, by the length of the match: two tokens, three, from 4, 8, 16 and 32 on.
const CLASSES: usize = 6;
/// Before anything is known.
const FIRST: [f32; CLASSES] = [0.2, 0.35, 0.5, 0.7, 0.8, 0.9];

/// Running means of what came of guesses.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Odds {
    chances: [f32; CLASSES],
    /// How much one guess counts.
    weight: f32,
}

impl Odds {
    /// Those of all sequences together.
    pub(super) fn shared() -> Self {
        Self {
            chances: FIRST,
            weight: 1.0 / 32.0,
        }
    }

    /// Those of one sequence, which begin as these are.
    pub(super) fn of_sequence(&self) -> Self {
        Self {
            weight: 1.0 / 8.0,
            ..self.clone()
        }
    }

    /// A guess from a match of so many tokens was right, or not.
    pub(super) fn record(&mut self, length: usize, is_right: bool) {
        let weight = self.weight;
        if let Some(chance) = self.chances.get_mut(class(length)) {
            *chance += weight * (f32::from(u8::from(is_right)) - *chance);
        }
    }

    /// The chance that a guess from a match of so many tokens is right.
    pub(super) fn of(&self, length: usize) -> f32 {
        self.chances.get(class(length)).copied().unwrap_or(0.0)
    }
}

fn class(length: usize) -> usize {
    match length {
        0..=2 => 0,
        3 => 1,
        4..=7 => 2,
        8..=15 => 3,
        16..=31 => 4,
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_follow_what_comes() {
        let mut odds = Odds::shared().of_sequence();
        for guess in 0..200 {
            odds.record(5, guess % 4 == 0);
            odds.record(40, true);
        }
        assert!((0.1..0.45).contains(&odds.of(7)), "{}", odds.of(7));
        assert!(odds.of(32) > 0.99);
        assert_eq!(odds.of(2), FIRST[0], "others are as they were");
    }
}
