//! Stop strings, found across the borders of tokens.

/// Watches the text of one answer for stop strings. Text that may turn out to be the beginning of one is held back. The
/// first string to be completed counts; of several completed by the same character, the longest.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    /// The longest end of the text so far that a stop string begins with.
    held: String,
}

/// What to do with a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopStep {
    /// Text that may be shown now.
    pub text: String,
    /// Index of the stop string that was completed; it and what follows are not shown.
    pub stopped: Option<usize>,
}

impl StopStrings {
    /// Watch for these; empty strings are ignored.
    #[must_use]
    pub fn new(strings: Vec<String>) -> Self {
        Self {
            strings,
            held: String::new(),
        }
    }

    /// The stop strings.
    #[must_use]
    pub fn strings(&self) -> &[String] {
        &self.strings
    }

    /// Take the next piece of text.
    pub fn push(&mut self, piece: &str) -> StopStep {
        let mut text = String::new();
        for character in piece.chars() {
            self.held.push(character);
            if let Some(index) = self.completed() {
                let keep = self.held.len() - self.strings[index].len();
                text.push_str(&self.held[..keep]);
                self.held.clear();
                return StopStep {
                    text,
                    stopped: Some(index),
                };
            }
            let free = self.held.len() - self.possible_start();
            text.extend(self.held.drain(..free));
        }
        StopStep { text, stopped: None }
    }

    /// The answer ended for another reason: what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn completed(&self) -> Option<usize> {
        let complete = |string: &String| !string.is_empty() && self.held.ends_with(string.as_str());
        let matches = self
            .strings
            .iter()
            .enumerate()
            .filter(|(_, string)| complete(string));
        matches
            .max_by_key(|(_, string)| string.len())
            .map(|(index, _)| index)
    }

    /// Length of the longest end of `held` with which a stop string begins.
    fn possible_start(&self) -> usize {
        let starts = |string: &String| {
            let ends = string.char_indices().map(|(at, _)| at).rev();
            ends.filter(|&at| at <= self.held.len())
                .find(|&at| self.held.ends_with(&string[..at]))
                .unwrap_or(0)
        };
        self.strings.iter().map(starts).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(strings: &[&str]) -> StopStrings {
        StopStrings::new(strings.iter().map(|&s| s.to_owned()).collect())
    }

    fn step(text: &str, stopped: Option<usize>) -> StopStep {
        StopStep {
            text: text.to_owned(),
            stopped,
        }
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_shown() {
        let mut stops = stops(&["\n\nUser:"]);
        assert_eq!(stops.push("hi\n"), step("hi", None));
        assert_eq!(stops.push("\nUs"), step("", None));
        assert_eq!(stops.push("er: what"), step("", Some(0)));
    }

    #[test]
    fn a_false_start_is_shown_after_all() {
        let mut stops = stops(&["aab"]);
        assert_eq!(stops.push("aa"), step("", None));
        assert_eq!(stops.push("a"), step("a", None));
        assert_eq!(stops.push("c"), step("aac", None));
        assert_eq!(stops.push("a"), step("", None));
        assert_eq!(stops.finish(), "a");
    }

    #[test]
    fn the_first_to_be_completed_wins_and_of_equals_the_longest() {
        assert_eq!(stops(&["abcd", "bc"]).push("xabcd"), step("xa", Some(1)));
        assert_eq!(stops(&["bc", "abc"]).push("xabc"), step("x", Some(1)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn borders_of_pieces_do_not_matter(
            strings in prop::collection::vec("[aб€]{1,4}", 0..4),
            pieces in prop::collection::vec("[aб€c]{0,5}", 0..12),
        ) {
            let whole = pieces.concat();
            let mut split = StopStrings::new(strings.clone());
            let mut shown = String::new();
            let mut stopped = None;
            for piece in &pieces {
                let step = split.push(piece);
                shown.push_str(&step.text);
                if step.stopped.is_some() {
                    stopped = step.stopped;
                    break;
                }
            }
            if stopped.is_none() {
                shown.push_str(&split.finish());
            }
            // By definition: the shortest beginning of the text that ends with a stop string.
            let ends = (0..=whole.len()).filter(|&end| whole.is_char_boundary(end));
            let cut = ends.filter_map(|end| {
                let found = strings.iter().filter(|string| whole[..end].ends_with(string.as_str()));
                found.map(|string| end - string.len()).min()
            }).next();
            prop_assert_eq!(stopped.is_some(), cut.is_some());
            prop_assert_eq!(shown, whole[..cut.unwrap_or(whole.len())].to_owned());
        }
    }
}
