//! Where an answer is free text, which no form restricts, and where a call of a tool may begin or has begun.

use llguidance::Matcher;

use super::calls::Place;
use crate::text::tool_calls::opening::{self, Opening, opening};

/// Watches an answer that is free text or calls: while it may be either, the form restricts it; once it is text, nothing does, until Llama's
/// `<|python_tag|>` begins it anew.
#[derive(Clone)]
pub(super) struct FreeText {
    tag: Option<u32>,
    behind_tag: Matcher,
    place: Place,
    stretch: Stretch,
    /// What has come of a beginning.
    begun: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stretch {
    /// A call may begin.
    Beginning,
    Text,
    Calls,
}

impl FreeText {
    /// At the beginning of an answer. `behind_tag` restricts what stands behind the token `tag`.
    pub(super) fn new(tag: Option<u32>, behind_tag: Matcher) -> Self {
        Self {
            tag,
            behind_tag,
            place: Place::Answer,
            stretch: Stretch::Beginning,
            begun: Vec::new(),
        }
    }

    pub(super) fn is_text(&self) -> bool {
        self.stretch == Stretch::Text
    }

    /// The tag, where it may come: the parser of calls hears it there.
    pub(super) fn tag(&self) -> Option<u32> {
        let begins =
            self.place == Place::Answer && self.stretch == Stretch::Beginning && self.begun.is_empty();
        self.tag.filter(|_| self.is_text() || begins)
    }

    /// The tag has come. What restricts the answer behind it.
    pub(super) fn begin_behind_tag(&mut self) -> Matcher {
        self.place = Place::PythonTag;
        self.stretch = Stretch::Beginning;
        self.begun.clear();
        self.behind_tag.deep_clone()
    }

    /// More of the answer.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        if self.stretch != Stretch::Beginning {
            return;
        }
        self.begun.extend_from_slice(bytes);
        self.stretch = match opening(&self.begun, self.place == Place::PythonTag) {
            Opening::More if self.begun.len() <= opening::MOST => return,
            Opening::More | Opening::Text => Stretch::Text,
            Opening::Call { .. } => Stretch::Calls,
        };
        self.begun = Vec::new();
    }
}
