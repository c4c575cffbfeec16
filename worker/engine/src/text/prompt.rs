//! A prompt as a chat template wrote it.

use std::ops::Range;

/// Text, and the control tokens that the template itself put into it. A name of a control token that came with a message is text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompt {
    text: String,
    /// Where the template's control tokens stand in `text`, by name, in order; and their ids.
    control: Vec<(Range<usize>, u32)>,
}

impl Prompt {
    /// All of it as one string: what the reference's `apply_chat_template(tokenize=False)` gives.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The stretches of text, each with the control token behind it; the last one has none.
    pub fn stretches(&self) -> impl Iterator<Item = (&str, Option<u32>)> {
        let starts = std::iter::once(0).chain(self.control.iter().map(|(range, _)| range.end));
        let ends = self.control.iter().map(|(range, id)| (range.start, Some(*id)));
        let ends = ends.chain(std::iter::once((self.text.len(), None)));
        starts
            .zip(ends)
            .map(|(start, (end, control))| (self.text.get(start..end).unwrap_or_default(), control))
    }

    /// Cut off what stands behind the last occurrence of `text`, as transformers does to go on with a message. Templates may trim
    /// messages, so white space around `text` need not be there. False, and nothing is cut, when it does not occur or is empty. Names of control
    /// tokens are no place where it occurs.
    pub fn end_behind(&mut self, text: &str) -> bool {
        let trimmed = text.trim();
        let is_text = |start: usize| {
            let end = start + trimmed.len();
            self.control
                .iter()
                .all(|(range, _)| range.end <= start || end <= range.start)
        };
        let mut found = self.text.rmatch_indices(trimmed).map(|(start, _)| start);
        let found = found
            .find(|start| is_text(*start))
            .filter(|_| !trimmed.is_empty());
        let Some(start) = found else { return false };
        let behind = text.trim_start();
        let whole = self
            .text
            .get(start..)
            .is_some_and(|rest| rest.starts_with(behind));
        let end = start + if whole { behind.len() } else { trimmed.len() };
        self.text.truncate(end);
        self.control.retain(|(range, _)| range.end <= end);
        true
    }

    /// Add a character of text.
    pub(super) fn push(&mut self, character: char) {
        self.text.push(character);
    }

    /// Add text.
    pub(super) fn push_str(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Add a control token.
    pub(super) fn push_control(&mut self, name: &str, id: u32) {
        let start = self.text.len();
        self.text.push_str(name);
        self.control.push((start..self.text.len(), id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_stand_around_the_control_tokens() {
        let mut prompt = Prompt::default();
        prompt.push_control("<s>", 7);
        prompt.push_str("a<s>");
        prompt.push('b');
        prompt.push_control("</s>", 8);
        assert_eq!(prompt.text(), "<s>a<s>b</s>");
        let stretches: Vec<_> = prompt.stretches().collect();
        assert_eq!(stretches, [("", Some(7)), ("a<s>b", Some(8)), ("", None)]);
    }

    #[test]
    fn a_prompt_ends_behind_the_last_occurrence() {
        let cut = |text: &str| {
            let mut prompt = Prompt::default();
            prompt.push_str("say hi");
            prompt.push_control("</s>", 8);
            prompt.push_str("hi there ");
            prompt.push_control("</s>", 8);
            let found = prompt.end_behind(text);
            (found, prompt.text().to_owned(), prompt.stretches().count())
        };
        assert_eq!(cut("hi"), (true, "say hi</s>hi".to_owned(), 2));
        assert_eq!(cut(" hi there "), (true, "say hi</s>hi there ".to_owned(), 2));
        assert_eq!(cut("hi there\n"), (true, "say hi</s>hi there".to_owned(), 2));
        // Within the name of a control token nothing ends.
        assert_eq!(cut("s"), (true, "s".to_owned(), 1));
        assert_eq!(cut("/s"), (false, "say hi</s>hi there </s>".to_owned(), 3));
        for nothing in ["ho", "", " "] {
            assert_eq!(cut(nothing), (false, "say hi</s>hi there </s>".to_owned(), 3));
        }
    }
}
