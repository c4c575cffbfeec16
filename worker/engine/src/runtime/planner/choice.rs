//! What comes of an answered row.

use crate::sampling::{Sampled, SamplingError, Scored};

/// What comes of one answered row.
pub(super) type Choice = Result<Answered, SamplingError>;

/// What a row answered.
pub(super) enum Answered {
    /// It was sampled: the token behind it, or behind those of its drafts that are right, too.
    Tokens(Vec<Chosen>),
    /// Its tokens were scored: one entry for each answered position.
    Scores(Vec<Scored>),
    /// The hidden state of its last position, or the sum of all.
    Hidden(Vec<f64>),
}

/// A token, and the likeliest ones beside it, or those of a list, when they were asked for.
pub(super) struct Chosen {
    pub(super) sampled: Sampled,
    pub(super) top: Vec<(u32, f32)>,
}
