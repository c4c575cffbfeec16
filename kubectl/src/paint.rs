//! Colours, where they are wanted.

use std::io::IsTerminal as _;

use crate::options::Colour;

/// Whether output is coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paint {
    on: bool,
}

/// How good a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As it should be.
    Good,
    /// On its way.
    Busy,
    /// Something is wrong.
    Bad,
    /// Beside the point.
    Quiet,
    /// A heading.
    Bold,
}

impl Paint {
    /// As the user wants it for standard output.
    #[must_use]
    pub fn of(wish: Colour) -> Self {
        let quiet = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let on = match wish {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => std::io::stdout().is_terminal() && !quiet("NO_COLOR") && !dumb(),
        };
        Self { on }
    }

    /// Without colours.
    #[must_use]
    pub const fn plain() -> Self {
        Self { on: false }
    }

    /// With colours.
    #[must_use]
    pub const fn coloured() -> Self {
        Self { on: true }
    }

    /// The text in the colour of its mood.
    #[must_use]
    pub fn paint(self, mood: Mood, text: &str) -> String {
        let code = match mood {
            Mood::Good => "32",
            Mood::Busy => "33",
            Mood::Bad => "31",
            Mood::Quiet => "2",
            Mood::Bold => "1",
        };
        if self.on && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Text of objects may come from anybody who may write them: it must not move the cursor or set colours.
#[must_use]
pub fn harmless(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_only_where_they_are_wanted() {
        assert_eq!(Paint::plain().paint(Mood::Bad, "no"), "no");
        assert_eq!(Paint::coloured().paint(Mood::Bad, "no"), "\x1b[31mno\x1b[0m");
        assert_eq!(harmless("a\x1b[2Jb\nc"), "a [2Jb c");
    }
}
