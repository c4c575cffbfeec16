//! Names of KV blocks by what they hold, so that a prompt that begins as an earlier one did finds what was computed for that.
//!
//! The name of a full block is the SHA-256 (FIPS 180-4) of the name of the block before it and of its own tokens. Before the
//! first block stands a root, which says on which weights, in which arithmetic, in which block size, with which adapter and
//! for whom it was computed. So a name stands for all tokens up to the end of its block, and for all that their keys and
//! values depend on.
//!
//! Token ids are not compared when a name is found: that would need those of all blocks before, too. All 256 bits are kept,
//! so nobody finds two contents with one name, whoever chooses the prompts.

use llamero_checkpoint::ContentIdentity;
use sha2::{Digest, Sha256};

/// The name of a block and of all before it, or a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixHash([u8; 32]);

/// What is hashed; the first byte of each input, so that no two kinds have one name.
#[derive(Clone, Copy)]
enum Kind {
    Group = 0,
    Request = 1,
    Block = 2,
}

impl PrefixHash {
    /// What a group computes: content identity of the weights, numerics class, tokens per block.
    #[must_use]
    pub fn of_group(content: &str, numerics: &str, block_size: u32) -> Self {
        let mut hash = begin(Kind::Group);
        for text in [content, numerics] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hash.update(block_size.to_le_bytes());
        Self(hash.finalize().into())
    }

    /// For requests with this salt and adapter: blocks are shared among those only. `self` is that of the group.
    #[must_use]
    pub fn of_requests(&self, salt: &str, adapter: Option<ContentIdentity>) -> Self {
        let mut hash = begin(Kind::Request);
        hash.update(self.0);
        // By what it is: a number is given again by the next leader, and a name to the next adapter.
        let adapter = adapter.map_or_else(String::new, |adapter| adapter.to_string());
        hash.update((adapter.len() as u64).to_le_bytes());
        hash.update(adapter);
        hash.update(salt);
        Self(hash.finalize().into())
    }

    /// Of the full block with `tokens` that follows the one with this name.
    #[must_use]
    pub fn followed_by(&self, tokens: &[u32]) -> Self {
        let mut hash = begin(Kind::Block);
        hash.update(self.0);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}

fn begin(kind: Kind) -> Sha256 {
    let mut hash = Sha256::new();
    hash.update([kind as u8]);
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_block_depends_on_is_in_its_name() {
        let group = PrefixHash::of_group("weights", "avx", 16);
        let adapter = |digit: char| digit.to_string().repeat(64).parse::<ContentIdentity>().unwrap();
        let names = [
            group,
            PrefixHash::of_group("weight", "savx", 16),
            PrefixHash::of_group("weights", "avx", 32),
            group.of_requests("", None),
            group.of_requests("", Some(adapter('0'))),
            group.of_requests("", Some(adapter('1'))),
            // What an adapter begins with, as a salt.
            group.of_requests(&adapter('0').to_string(), None),
            group.of_requests("a", None),
            group.of_requests("", None).followed_by(&[1, 2]),
            group.of_requests("", None).followed_by(&[2, 1]),
            group.of_requests("a", None).followed_by(&[1, 2]),
            group.of_requests("", None).followed_by(&[1]).followed_by(&[2]),
        ];
        for (i, a) in names.iter().enumerate() {
            assert!(names[i + 1..].iter().all(|b| a != b), "{i}");
        }
        assert_eq!(group, PrefixHash::of_group("weights", "avx", 16));
    }
}
