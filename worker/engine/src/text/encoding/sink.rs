//! Which tokens of a text are kept.

use super::super::tokenizer::TokenizerError;

/// How many tokens of a text are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::text) enum Keep {
    /// At most so many; a text of more is refused as soon as that is known.
    AtMost(usize),
    /// So many from its end; those before are forgotten on the way.
    Last(usize),
}

/// Takes the tokens of a text in order.
#[derive(Debug)]
pub(in crate::text) struct Sink {
    ids: Vec<u32>,
    keep: Keep,
}

impl Sink {
    pub(in crate::text) fn new(keep: Keep) -> Self {
        Self {
            ids: Vec::new(),
            keep,
        }
    }

    /// Take tokens.
    ///
    /// # Errors
    /// [`TokenizerError::TooMany`].
    pub(in crate::text) fn extend(&mut self, ids: &[u32]) -> Result<(), TokenizerError> {
        self.ids.extend_from_slice(ids);
        match self.keep {
            Keep::AtMost(most) if self.ids.len() > most => Err(TokenizerError::TooMany { most }),
            // Seldom enough that moving the rest costs nothing that counts.
            Keep::Last(count) if self.ids.len() / 2 > count => {
                self.forget_all_but(count);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The tokens that are kept.
    pub(in crate::text) fn finish(mut self) -> Vec<u32> {
        if let Keep::Last(count) = self.keep {
            self.forget_all_but(count);
        }
        self.ids
    }

    fn forget_all_but(&mut self, count: usize) {
        let forgotten = self.ids.len().saturating_sub(count);
        self.ids.drain(..forgotten);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_tokens_than_asked_for_are_refused_or_forgotten() {
        let mut sink = Sink::new(Keep::AtMost(3));
        sink.extend(&[1, 2, 3]).unwrap();
        assert!(matches!(
            sink.extend(&[4]),
            Err(TokenizerError::TooMany { most: 3 })
        ));
        for count in 0..12 {
            let mut sink = Sink::new(Keep::Last(count));
            for ids in [&[1, 2][..], &[], &[3, 4, 5], &[6, 7, 8, 9]] {
                sink.extend(ids).unwrap();
            }
            let all: Vec<u32> = (1..10).collect();
            assert_eq!(sink.finish(), all[9 - count.min(9)..]);
        }
    }
}
