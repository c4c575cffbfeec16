//! Stop strings, found across the borders of tokens.

/// Watches the text of one answer for stop strings. Text that may turn out to be the beginning of one is held back. The
/// first string to be completed counts; of several completed by the same character, the longest.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    /// One for each of them.
    matches: Vec<Match>,
    /// The longest end of the text so far that a stop string begins with.
    held: String,
}

/// How much of a string the text ends with: Knuth, Morris and Pratt (1977), a few steps a byte however long the string is.
#[derive(Debug, Clone)]
struct Match {
    /// For every beginning of the string, how long the longest shorter beginning is that it ends with.
    borders: Vec<usize>,
    /// Bytes of the string that the text ends with.
    length: usize,
}

impl Match {
    fn new(string: &[u8]) -> Self {
        let mut borders: Vec<usize> = Vec::with_capacity(string.len());
        for &byte in string {
            let before = borders.last().copied();
            borders.push(before.map_or(0, |before| longer(string, &borders, before, byte)));
        }
        Self { borders, length: 0 }
    }

    /// The text goes on with `byte`. The string must not be complete.
    fn push(&mut self, string: &[u8], byte: u8) {
        self.length = longer(string, &self.borders, self.length, byte);
    }
}

/// Bytes of the string that a text ends with once `byte` follows; before it the text ended with `length` of them, not all.
fn longer(string: &[u8], borders: &[usize], mut length: usize, byte: u8) -> usize {
    loop {
        if string.get(length) == Some(&byte) {
            return length + 1;
        }
        let Some(&shorter) = length.checked_sub(1).and_then(|last| borders.get(last)) else {
            return 0;
        };
        length = shorter;
    }
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
            matches: strings
                .iter()
                .map(|string| Match::new(string.as_bytes()))
                .collect(),
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
        let mut bytes = [0; 4];
        for character in piece.chars() {
            self.held.push(character);
            for (string, found) in self.strings.iter().zip(&mut self.matches) {
                for byte in character.encode_utf8(&mut bytes).bytes() {
                    found.push(string.as_bytes(), byte);
                }
            }
            if let Some(index) = self.completed() {
                let string = self.strings.get(index).map_or("", String::as_str);
                text.push_str(self.held.strip_suffix(string).unwrap_or(&self.held));
                self.finish();
                return StopStep {
                    text,
                    stopped: Some(index),
                };
            }
            // Whole characters: what the text ends with begins where a string does.
            let possible = self.matches.iter().map(|found| found.length).max().unwrap_or(0);
            let free = self.held.len() - possible;
            text.extend(self.held.drain(..free));
        }
        StopStep { text, stopped: None }
    }

    /// The answer ended for another reason: what was held back.
    pub fn finish(&mut self) -> String {
        for found in &mut self.matches {
            found.length = 0;
        }
        std::mem::take(&mut self.held)
    }

    fn completed(&self) -> Option<usize> {
        let matches = self.strings.iter().zip(&self.matches).enumerate();
        matches
            .filter(|(_, (string, found))| !string.is_empty() && found.length == string.len())
            .max_by_key(|(_, (string, _))| string.len())
            .map(|(index, _)| index)
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

    /// A stop string that the text almost ends with at every character.
    #[test]
    fn long_answers_with_long_stop_strings_take_no_time() {
        let strings = (0..16).map(|last| "a".repeat(255) + &char::from(b'b' + last).to_string());
        let mut stops = StopStrings::new(strings.collect());
        let mut shown = 0;
        for _ in 0..1_000 {
            shown += stops.push(&"a".repeat(1_000)).text.len();
        }
        assert_eq!(shown, 1_000_000 - 255);
        assert_eq!(stops.push("d").stopped, Some(2));
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
