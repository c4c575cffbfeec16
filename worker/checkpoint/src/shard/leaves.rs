//! The leaves of the feed-forward layer.

use crate::error::ShardError;

const LEAVES: u32 = 32;
const LEAF_UNIT: u32 = 64;

/// The leaves of the feed-forward layer: a property of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FfnLeaves {
    /// How many there are.
    pub count: u32,
    /// Columns of `down` in each.
    pub width: u32,
}

impl FfnLeaves {
    /// 32 leaves if their width is a multiple of 64, else leaves of 64.
    ///
    /// # Errors
    /// [`ShardError::OddFfn`].
    pub fn of(ffn_size: u32) -> Result<Self, ShardError> {
        if ffn_size == 0 || !ffn_size.is_multiple_of(LEAF_UNIT) {
            return Err(ShardError::OddFfn { ffn_size });
        }
        if ffn_size.is_multiple_of(LEAVES * LEAF_UNIT) {
            return Ok(Self {
                count: LEAVES,
                width: ffn_size / LEAVES,
            });
        }
        Ok(Self {
            count: ffn_size / LEAF_UNIT,
            width: LEAF_UNIT,
        })
    }
}
