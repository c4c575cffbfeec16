//! From the ranks' candidates to a token.
//!
//! | module | what it is |
//! |---|---|
//! | [`noise`] | Gumbel noise keyed by seed, position and token |

pub mod noise;
