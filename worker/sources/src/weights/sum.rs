//! The hash of a file that is read whole, computed block by block in the order of the file.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use crate::FetchError;
use crate::client::hex;

/// A hash on its way.
#[derive(Debug, Clone)]
pub(super) struct Sum {
    /// The blocks that are still to come, by number.
    pub(super) blocks: Range<usize>,
    digest: Sha256,
    announced: String,
    path: String,
}

impl Sum {
    /// Of a file whose bytes before the first of `blocks` are `head`.
    pub(super) fn new(blocks: Range<usize>, head: &[u8], announced: String, path: String) -> Self {
        Self {
            blocks,
            digest: Sha256::new_with_prefix(head),
            announced,
            path,
        }
    }

    /// Add the next block.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.blocks.start += 1;
    }

    /// Whether all blocks are in it.
    pub(super) fn is_complete(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Whether the file is what it was announced to be.
    pub(super) fn check(&self) -> Result<(), FetchError> {
        let found = hex(&self.digest.clone().finalize());
        if found == self.announced {
            return Ok(());
        }
        Err(FetchError::Damaged {
            file: self.path.clone(),
            announced: self.announced.clone(),
            found,
        })
    }
}
