//! What comes of a sampled row.

use crate::sampling::{Sampled, SamplingError};

/// What comes of one sampled row.
pub(super) type Choice = Result<Chosen, SamplingError>;

/// A token, and the likeliest ones beside it when they were asked for.
pub(super) struct Chosen {
    pub(super) sampled: Sampled,
    pub(super) top: Vec<(u32, f32)>,
}
