//! What of a history need not be computed: blocks that hold its beginning already, or will before they are read.
//!
//! A block is found in two ways:
//! - By its name in the pool, once a step that was answered has computed it. It can be found after its sequence is gone, too.
//! - With a sequence that begins alike and runs, or has rows in flight, once its row was sent in an earlier step, answered or not. Every rank computes the
//!   steps in the order in which it got them, and computes also those rows whose answers nobody wants any more
//!   ([`Late::Cancel`]), so a later step reads what the earlier one has written, whatever becomes of the sequence meanwhile: its next
//!   chunk and its first answer rely on the same. Never in the step that writes the block: its rows are computed side by side. Only
//!   as far as the sequence's tokens were known when it was admitted: later ones may be sent as late tokens, and a sequence that ends
//!   before they are sampled gets any. When the era ends, the steps in flight end with it, those that would have read the
//!   block among them; it has no name by then, and nobody finds it in the next era.
//!
//! What the batch that is being made computes can be read by the next one. So a sequence that would find much more then is not
//! admitted before, and needs neither a slot nor blocks for that: of many with one prompt the first is computed, and the others begin in
//! the step behind its last chunk with what is their own. That step would have come anyway. Nobody waits longer than for one
//! batch: a budget that is left for admissions means that all who run got all the tokens they have. Who stands behind waits,
//! too: whoever was admitted meanwhile could take the budget, the slot and the blocks of who waits for hundreds of batches. Should the
//! sequence that is waited for be preempted or go away before it has computed all, who waited computes what is still missing.
//!
//! Only whole blocks are shared. Of the last one, which is not full, less than a block is computed again, and every sequence would
//! need a copy of its own to write behind it, so that neither memory nor much time is to be gained.

use super::Scheduler;
use crate::schedule::prefix::PrefixHash;
use crate::schedule::sequence::Sequence;
#[cfg(doc)]
use crate::step::Late;

/// A sequence waits for the next batch when that spares it so many tokens. A step has costs whatever is in it, about
/// those of 10 tokens for a small model on a CPU and of 100 for an 8B one on a GPU; who waits has one step more before its
/// first token, and a burst of equal prompts saves as many times the tokens.
pub(super) const WORTH_WAITING: u32 = 64;

/// What of a history is in the KV cache already.
pub(super) struct CachedPrefix {
    /// Full blocks that it can share.
    pub(super) shared: Vec<u32>,
    /// How many of them, from the first on, have names.
    pub(super) named: u32,
    /// The full block behind those that it can have a copy of.
    pub(super) copied: Option<u32>,
    /// Tokens that need not be computed.
    pub(super) tokens: u32,
    /// Tokens more that need not be computed in the next batch.
    pub(super) coming: u32,
}

impl Scheduler {
    /// The longest beginning of a history that full blocks hold.
    pub(super) fn cached_prefix(&self, sequence: &mut Sequence) -> CachedPrefix {
        let block_size = self.limits.block_size;
        // What is to be scored must be computed.
        let most = sequence.unscored().map_or(u32::MAX, |from| from / block_size);
        let names = sequence.names(block_size);
        let names = names.get(..most as usize).unwrap_or(names);
        let mut shared: Vec<u32> = names.iter().map_while(|name| self.pool.find(name)).collect();
        let named = blocks(shared.len());
        let mut next = named;
        // Those that leave have rows in flight, which are computed all the same.
        let leaving = self.leaving.iter().map(|(sequence, _)| sequence);
        for runner in self.running.iter().chain(leaving) {
            let Some(placed) = &runner.placed else { continue };
            let alike = common(names, runner.known_names());
            let (sent, planned) = runner.computes_known(self.batches);
            let ready = alike.min(sent / block_size);
            let more = placed.blocks.get(shared.len()..ready as usize);
            shared.extend(more.unwrap_or_default());
            next = next.max(alike.min(planned / block_size));
        }
        let found = blocks(shared.len());
        let tokens = found.saturating_mul(block_size);
        let is_all = tokens > 0 && tokens >= sequence.len();
        CachedPrefix {
            copied: if is_all { shared.pop() } else { None },
            named: named.min(blocks(shared.len())),
            tokens: tokens - u32::from(is_all),
            coming: next.saturating_sub(found).saturating_mul(block_size),
            shared,
        }
    }

    /// The same, and sequences wait for a batch when that spares them so many tokens.
    #[cfg(test)]
    pub(in crate::schedule) fn with_worth_waiting(mut self, tokens: u32) -> Self {
        self.worth_waiting = tokens;
        self
    }
}

/// How many names two histories have in common from the first on. A name stands for all tokens before it, so none is equal
/// behind one that is not.
fn common(of: &[PrefixHash], with: &[PrefixHash]) -> u32 {
    let (mut equal, mut other) = (0, of.len().min(with.len()));
    while equal < other {
        let middle = (equal + other) / 2;
        if of.get(middle) == with.get(middle) {
            equal = middle + 1;
        } else {
            other = middle;
        }
    }
    blocks(equal)
}

fn blocks(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
