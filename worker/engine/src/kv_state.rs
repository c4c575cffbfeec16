//! Checks of a plan before anything of it is done, and the state that they need: what every backend keeps of its KV blocks.

use std::sync::Arc;

use self::computed::Computed;
use crate::block_tables::BlockTables;
use crate::form::FormLimits;
use crate::step::{BlockDeltas, Plan, PlanRow, RowOutput, TOP_CANDIDATES, TokenRef};

mod computed;

/// Bytes before those of a saved block's keys and values: how many of its positions hold some.
const SAVED_HEADER: usize = size_of::<u32>();

/// Which blocks belong to which slot, and how much of each block is computed once all submitted steps are.
#[derive(Debug)]
pub struct KvState {
    tables: BlockTables,
    /// Tables as steps hold on to them, made again after a change.
    shared: Vec<Option<Arc<[u32]>>>,
    /// Positions of each physical block that hold keys and values, from its start.
    filled: Vec<u32>,
    computed: Computed,
    block_size: u32,
}

impl KvState {
    /// No slot has blocks; `filled` says how many positions of each block hold keys and values.
    #[must_use]
    pub fn new(limits: &FormLimits, filled: Vec<u32>) -> Self {
        let blocks = u32::try_from(filled.len()).unwrap_or(u32::MAX);
        Self {
            tables: BlockTables::new(limits.max_sequences, blocks),
            shared: vec![None; limits.max_sequences as usize],
            filled,
            computed: Computed::new(limits.max_sequences, blocks),
            block_size: limits.block_size,
        }
    }

    /// Positions of each block that hold keys and values.
    #[must_use]
    pub fn into_filled(self) -> Vec<u32> {
        self.filled
    }

    /// Physical blocks of a slot.
    pub fn table(&mut self, slot: u32) -> Arc<[u32]> {
        let table = self.tables.table(slot);
        match self.shared.get_mut(slot as usize) {
            Some(shared) => Arc::clone(shared.get_or_insert_with(|| table.into())),
            None => table.into(),
        }
    }

    /// Positions of a block that hold keys and values; none for a block that does not exist.
    #[must_use]
    pub fn filled(&self, block: u32) -> Option<u32> {
        self.filled.get(block as usize).copied()
    }

    /// Say how many positions of a block hold keys and values.
    pub fn set_filled(&mut self, block: u32, positions: u32) {
        if let Some(filled) = self.filled.get_mut(block as usize) {
            *filled = positions;
            self.computed.shrink(block);
        }
    }

    /// The beginning of a saved block, with room for `block_bytes` of keys and values; none for a block that does not exist.
    #[must_use]
    pub fn begin_saved(&self, block: u32, block_bytes: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(SAVED_HEADER + block_bytes);
        bytes.extend(self.filled(block)?.to_le_bytes());
        Some(bytes)
    }

    /// Of a saved block with `block_bytes` of keys and values: positions that hold some, and the bytes.
    ///
    /// # Errors
    /// It is none of this rank.
    pub fn read_saved<'b>(&self, bytes: &'b [u8], block_bytes: usize) -> Result<(u32, &'b [u8]), String> {
        bytes
            .split_first_chunk::<SAVED_HEADER>()
            .map(|(filled, data)| (u32::from_le_bytes(*filled), data))
            .filter(|(filled, data)| *filled <= self.block_size && data.len() == block_bytes)
            .ok_or_else(|| format!("{} bytes are no saved block of this rank", bytes.len()))
    }

    /// Go on to the state after `plan`. Costs as much as the plan changes.
    ///
    /// # Errors
    /// What is wrong with the plan, with nothing changed.
    pub fn advance(&mut self, plan: &Plan, limits: &FormLimits, vocab_size: usize) -> Result<(), String> {
        check_rows(plan, limits, vocab_size)?;
        let touched = touched(&plan.blocks);
        let before: Vec<(u32, Vec<u32>)> = touched
            .iter()
            .map(|slot| (*slot, self.tables.table(*slot).to_vec()))
            .collect();
        self.tables
            .apply(&plan.blocks)
            .map_err(|error| error.to_string())?;
        self.computed.follow(&plan.blocks);
        let mut changed = Vec::new();
        if let Err(why) = self.fill_all(plan, &mut changed) {
            self.computed.forget();
            for (block, filled) in changed.into_iter().rev() {
                if let Some(place) = self.filled.get_mut(block as usize) {
                    *place = filled;
                }
            }
            let back = BlockDeltas {
                frees: touched,
                appends: before,
                ..BlockDeltas::default()
            };
            // Slots and blocks that were there a moment ago, so this cannot fail.
            self.tables.apply(&back).map_err(|error| error.to_string())?;
            return Err(why);
        }
        for slot in touched {
            if let Some(shared) = self.shared.get_mut(slot as usize) {
                *shared = None;
            }
        }
        Ok(())
    }

    /// With the plan's tables in place: what its copies and rows fill. `changed` takes what was before.
    fn fill_all(&mut self, plan: &Plan, changed: &mut Vec<(u32, u32)>) -> Result<(), String> {
        let hash = self.tables.hash();
        if hash != plan.state_hash {
            return Err(format!(
                "its block tables hash to {:#x}, this rank's to {hash:#x}",
                plan.state_hash
            ));
        }
        for (from, to) in &plan.blocks.copies {
            let (Some(copied), Some(before)) = (self.filled(*from), self.filled(*to)) else {
                return Err(format!(
                    "it copies block {from} to {to}, which are not both there"
                ));
            };
            changed.push((*to, before));
            self.set_filled(*to, copied);
        }
        plan.rows.iter().try_for_each(|row| self.fill(row, changed))
    }

    fn fill(&mut self, row: &PlanRow, changed: &mut Vec<(u32, u32)>) -> Result<(), String> {
        let table = self.tables.table(row.slot);
        let tokens = u32::try_from(row.tokens.len()).ok();
        let Some(end) = tokens.and_then(|tokens| row.start.checked_add(tokens)) else {
            return Err(format!("slot {} has too many tokens", row.slot));
        };
        let needed = end.div_ceil(self.block_size);
        if table.len() < needed as usize {
            let has = table.len();
            return Err(format!(
                "slot {} has {has} blocks, positions up to {end} need {needed}",
                row.slot
            ));
        }
        let whole = row.start / self.block_size;
        let rest = row.start % self.block_size;
        let (before, written) = table.split_at_checked(whole as usize).unwrap_or_default();
        let holds = |block: u32| self.filled.get(block as usize).copied().unwrap_or(0);
        let full = |block: u32| holds(block) == self.block_size;
        let computed = self.computed.reaches(row.slot, before, full)
            && (rest == 0 || written.first().is_some_and(|block| holds(*block) >= rest));
        if !computed {
            return Err(format!(
                "slot {} starts at {}, before which positions are missing",
                row.slot, row.start
            ));
        }
        let starts = (whole..needed).map(|index| index * self.block_size);
        for (first, block) in starts.zip(written) {
            let Some(filled) = self.filled.get_mut(*block as usize) else {
                return Err(format!(
                    "slot {} has block {block}, which does not exist",
                    row.slot
                ));
            };
            changed.push((*block, *filled));
            let before = std::mem::replace(filled, (end - first).min(self.block_size));
            if *filled < before {
                self.computed.shrink(*block);
            }
        }
        Ok(())
    }
}

/// Slots whose tables change, each once.
fn touched(deltas: &BlockDeltas) -> Vec<u32> {
    let truncates = deltas.truncates.iter().map(|(slot, _)| *slot);
    let appends = deltas.appends.iter().map(|(slot, _)| *slot);
    let replaces = deltas.replaces.iter().map(|(slot, ..)| *slot);
    let mut slots: Vec<u32> = deltas
        .frees
        .iter()
        .copied()
        .chain(truncates)
        .chain(appends)
        .chain(replaces)
        .collect();
    slots.sort_unstable();
    slots.dedup();
    slots
}

fn check_rows(plan: &Plan, limits: &FormLimits, vocab_size: usize) -> Result<(), String> {
    let total: usize = plan.rows.iter().map(|row| row.tokens.len()).sum();
    if total > limits.max_batched_tokens as usize {
        return Err(format!(
            "it has {total} tokens, at most {} were agreed on",
            limits.max_batched_tokens
        ));
    }
    let mut seen = vec![false; limits.max_sequences as usize];
    for row in &plan.rows {
        let slot = row.slot;
        match seen.get_mut(slot as usize) {
            None => {
                return Err(format!(
                    "slot {slot} does not exist: there are {}",
                    limits.max_sequences
                ));
            }
            Some(true) => return Err(format!("slot {slot} occurs twice")),
            Some(seen) => *seen = true,
        }
        check_tokens(plan, row, limits, vocab_size)?;
        check_output(row, vocab_size)?;
    }
    Ok(())
}

fn check_tokens(plan: &Plan, row: &PlanRow, limits: &FormLimits, vocab_size: usize) -> Result<(), String> {
    let slot = row.slot;
    if row.tokens.is_empty() {
        return Err(format!("the row of slot {slot} has no tokens"));
    }
    if let (Some(adapter), 0) = (row.adapter, limits.max_adapters) {
        return Err(format!(
            "slot {slot} wants adapter {adapter}, and none was agreed on"
        ));
    }
    let end = u64::from(row.start) + row.tokens.len() as u64;
    if end > u64::from(limits.max_context) {
        return Err(format!(
            "slot {slot} would reach position {end}, past the context of {}",
            limits.max_context
        ));
    }
    for token in &row.tokens {
        match token {
            TokenRef::Known(id) if *id as usize >= vocab_size => {
                return Err(format!(
                    "slot {slot} has a token past the vocabulary of {vocab_size}"
                ));
            }
            TokenRef::Late(index) if *index >= plan.late_tokens => {
                return Err(format!(
                    "slot {slot} has late token {index} of {}",
                    plan.late_tokens
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_output(row: &PlanRow, vocab_size: usize) -> Result<(), String> {
    let (slot, len) = (row.slot, row.tokens.len());
    let top = match &row.output {
        RowOutput::None | RowOutput::Hidden | RowOutput::HiddenSum => 0,
        RowOutput::Sample { last, key } => {
            if *last == 0 || usize::from(*last) > len {
                return Err(format!("slot {slot} samples {last} of {len} positions"));
            }
            if !(key.temperature >= 0.0 && key.temperature.is_finite()) {
                return Err(format!(
                    "slot {slot} has a temperature that is negative or no number"
                ));
            }
            key.top
        }
        RowOutput::Score { ids, top } => {
            if ids.is_empty() || ids.len() > len {
                return Err(format!("slot {slot} scores {} of {len} positions", ids.len()));
            }
            if ids.iter().any(|id| *id as usize >= vocab_size) {
                return Err(format!(
                    "slot {slot} scores an id past the vocabulary of {vocab_size}"
                ));
            }
            *top
        }
    };
    if usize::from(top) > TOP_CANDIDATES {
        return Err(format!(
            "slot {slot} wants {top} candidates, at most {TOP_CANDIDATES} are reported"
        ));
    }
    Ok(())
}

/// The tokens of all rows in order, with the late ones put in.
#[must_use]
#[expect(
    clippy::indexing_slicing,
    reason = "indices were checked with the plan, and the number of late tokens when they came"
)]
pub fn resolve(plan: &Plan, late: &[u32]) -> Vec<u32> {
    let tokens = plan.rows.iter().flat_map(|row| &row.tokens);
    tokens
        .map(|token| match token {
            TokenRef::Known(id) => *id,
            TokenRef::Late(index) => late[*index as usize],
        })
        .collect()
}

/// A position whose answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Index into the plan's rows.
    pub row: u32,
    /// Number among the row's answered positions.
    pub offset: u32,
    /// Index of the token in the batch.
    pub token: usize,
    /// Absolute position of the token after it.
    pub next: u32,
}

/// The answered positions of a plan, in order of (row, offset).
#[must_use]
pub fn answers(plan: &Plan) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut first = 0;
    for (row, planned) in (0u32..).zip(&plan.rows) {
        let len = planned.tokens.len();
        let last = planned.answered();
        let tokens = (planned.start..).zip(first..first + len).skip(len - last);
        answers.extend((0u32..).zip(tokens).map(|(offset, (position, token))| Answer {
            row,
            offset,
            token,
            next: position + 1,
        }));
        first += len;
    }
    answers
}

#[cfg(test)]
mod tests;
