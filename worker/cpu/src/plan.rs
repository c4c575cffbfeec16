//! Checks of a plan before anything of it is done, and the state that they need.

use llamero_engine::{BlockTables, FormSpec, Late, Plan, PlanRow, TokenRef};

/// Which blocks belong to which slot, and how much of each block is computed.
#[derive(Debug, Clone)]
pub(crate) struct KvState {
    tables: BlockTables,
    /// Positions of each physical block that hold keys and values, from its start.
    filled: Vec<u32>,
    block_size: u32,
}

impl KvState {
    pub(crate) fn new(spec: &FormSpec, blocks: u32) -> Self {
        Self {
            tables: BlockTables::new(spec.max_sequences, blocks),
            filled: vec![0; blocks as usize],
            block_size: spec.block_size,
        }
    }

    /// Physical blocks of a slot.
    pub(crate) fn table(&self, slot: u32) -> &[u32] {
        self.tables.table(slot)
    }

    /// The state after `plan`, or what is wrong with the plan.
    pub(crate) fn after(&self, plan: &Plan, spec: &FormSpec, vocab_size: usize) -> Result<Self, String> {
        check_sizes(plan, spec, vocab_size)?;
        let mut next = self.clone();
        next.tables
            .apply(&plan.blocks)
            .map_err(|error| error.to_string())?;
        let hash = next.tables.hash();
        if hash != plan.state_hash {
            return Err(format!(
                "its block tables hash to {:#x}, this rank's to {hash:#x}",
                plan.state_hash
            ));
        }
        for (from, to) in &plan.blocks.copies {
            next.filled[*to as usize] = next.filled[*from as usize];
        }
        for row in &plan.rows {
            next.fill(row)?;
        }
        Ok(next)
    }

    fn fill(&mut self, row: &PlanRow) -> Result<(), String> {
        let table = self.tables.table(row.slot);
        let end = row.start + row.tokens.len() as u32;
        let needed = end.div_ceil(self.block_size) as usize;
        if table.len() < needed {
            let has = table.len();
            return Err(format!(
                "slot {} has {has} blocks, positions up to {end} need {needed}",
                row.slot
            ));
        }
        let whole = (row.start / self.block_size) as usize;
        let rest = row.start % self.block_size;
        let holds = |block: u32| self.filled[block as usize];
        let computed = table[..whole]
            .iter()
            .all(|block| holds(*block) == self.block_size)
            && (rest == 0 || holds(table[whole]) >= rest);
        if !computed {
            return Err(format!(
                "slot {} starts at {}, before which positions are missing",
                row.slot, row.start
            ));
        }
        for (i, block) in (0u32..).zip(&table[whole..needed]) {
            let first = (whole as u32 + i) * self.block_size;
            self.filled[*block as usize] = (end - first).min(self.block_size);
        }
        Ok(())
    }
}

fn check_sizes(plan: &Plan, spec: &FormSpec, vocab_size: usize) -> Result<(), String> {
    let total: usize = plan.rows.iter().map(|row| row.tokens.len()).sum();
    if total > spec.max_batched_tokens as usize {
        return Err(format!(
            "it has {total} tokens, at most {} were agreed on",
            spec.max_batched_tokens
        ));
    }
    let mut seen = vec![false; spec.max_sequences as usize];
    for row in &plan.rows {
        let slot = row.slot;
        match seen.get_mut(slot as usize) {
            None => {
                return Err(format!(
                    "slot {slot} does not exist: there are {}",
                    spec.max_sequences
                ));
            }
            Some(true) => return Err(format!("slot {slot} occurs twice")),
            Some(seen) => *seen = true,
        }
        if row.tokens.is_empty() {
            return Err(format!("the row of slot {slot} has no tokens"));
        }
        let end = u64::from(row.start) + row.tokens.len() as u64;
        if end > u64::from(spec.max_context) {
            return Err(format!(
                "slot {slot} would reach position {end}, past the context of {}",
                spec.max_context
            ));
        }
        if usize::from(row.drafts) >= row.tokens.len() {
            return Err(format!(
                "slot {slot} has {} drafts among {} tokens",
                row.drafts,
                row.tokens.len()
            ));
        }
        if row
            .sample
            .is_some_and(|key| !(key.temperature >= 0.0 && key.temperature.is_finite()))
        {
            return Err(format!(
                "slot {slot} has a temperature that is negative or no number"
            ));
        }
        let known = |token: &TokenRef| matches!(token, TokenRef::Known(id) if *id as usize >= vocab_size);
        if row.tokens.iter().any(known) {
            return Err(format!(
                "slot {slot} has a token past the vocabulary of {vocab_size}"
            ));
        }
    }
    Ok(())
}

/// The tokens of all rows in order, with the late ones put in.
pub(crate) fn resolve(plan: &Plan, late: &Late, vocab_size: usize) -> Result<Vec<u32>, String> {
    let mut tokens = Vec::new();
    for token in plan.rows.iter().flat_map(|row| &row.tokens) {
        tokens.push(match token {
            TokenRef::Known(id) => *id,
            TokenRef::Late(index) => *late
                .tokens
                .get(*index as usize)
                .ok_or_else(|| format!("late token {index} was not given, only {}", late.tokens.len()))?,
        });
    }
    if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
        return Err(format!("token {token} is past the vocabulary of {vocab_size}"));
    }
    Ok(tokens)
}

/// Whether biases and masks fit the plan.
pub(crate) fn check_late(plan: &Plan, late: &Late, vocab_size: usize) -> Result<(), String> {
    let rows = late
        .biases
        .iter()
        .map(|(row, _)| row)
        .chain(late.masks.iter().map(|(row, _)| row));
    for row in rows {
        if *row as usize >= plan.rows.len() {
            return Err(format!(
                "row {row} of a bias or mask does not exist: there are {}",
                plan.rows.len()
            ));
        }
    }
    if let Some((token, _)) = late
        .biases
        .iter()
        .flat_map(|(_, b)| b)
        .find(|(token, _)| *token as usize >= vocab_size)
    {
        return Err(format!(
            "the bias of token {token} is past the vocabulary of {vocab_size}"
        ));
    }
    let wanted = vocab_size.div_ceil(8);
    if let Some((row, mask)) = late.masks.iter().find(|(_, mask)| mask.len() != wanted) {
        return Err(format!(
            "the mask of row {row} has {} bytes instead of {wanted}",
            mask.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use llamero_engine::Era;
    use llamero_engine::step::{BlockDeltas, SampleKey};

    const SPEC: FormSpec = FormSpec {
        era: Era {
            generation: 1,
            epoch: 1,
        },
        max_sequences: 2,
        max_batched_tokens: 64,
        max_context: 100,
        block_size: 16,
        kv_bytes: 0,
    };

    fn plan(state: &KvState, rows: Vec<PlanRow>, blocks: BlockDeltas) -> Plan {
        let mut tables = state.tables.clone();
        let state_hash = tables.apply(&blocks).map_or(0, |()| tables.hash());
        Plan {
            era: SPEC.era,
            step: 1,
            micro_batch: 0,
            rows,
            blocks,
            state_hash,
        }
    }

    fn row(slot: u32, start: u32, tokens: u32) -> PlanRow {
        PlanRow {
            slot,
            start,
            tokens: vec![TokenRef::Known(1); tokens as usize],
            drafts: 0,
            sample: None,
        }
    }

    fn appends(slot: u32, blocks: &[u32]) -> BlockDeltas {
        BlockDeltas {
            appends: vec![(slot, blocks.to_vec())],
            ..BlockDeltas::default()
        }
    }

    #[test]
    fn positions_follow_what_is_computed() {
        let start = KvState::new(&SPEC, 8);
        let step = |state: &KvState, rows, deltas| state.after(&plan(state, rows, deltas), &SPEC, 100);
        let one = step(&start, vec![row(0, 0, 20)], appends(0, &[3, 5])).unwrap();
        let two = step(&one, vec![row(0, 20, 1)], BlockDeltas::default()).unwrap();
        assert!(
            step(&one, vec![row(0, 21, 1)], BlockDeltas::default())
                .unwrap_err()
                .contains("missing")
        );
        // A rewind forgets what comes after it.
        let back = step(&two, vec![row(0, 17, 1)], BlockDeltas::default()).unwrap();
        assert!(
            step(&back, vec![row(0, 20, 1)], BlockDeltas::default())
                .unwrap_err()
                .contains("missing")
        );
        assert!(
            step(&one, vec![row(0, 20, 13)], BlockDeltas::default())
                .unwrap_err()
                .contains("blocks")
        );
        // A block that another sequence filled may be used from its end on.
        let shared = step(&one, vec![row(1, 16, 2)], appends(1, &[3, 6])).unwrap();
        assert_eq!(shared.table(1), [3, 6]);
        // A copy brings along how much is computed.
        let mut deltas = appends(1, &[3, 6]);
        deltas.copies = vec![(5, 6)];
        step(&one, vec![row(1, 20, 1)], deltas).unwrap();
    }

    #[test]
    fn what_breaks_the_contract_is_named() {
        let start = KvState::new(&SPEC, 8);
        let refusal = |rows: Vec<PlanRow>| {
            start
                .after(&plan(&start, rows, appends(0, &[1, 2])), &SPEC, 100)
                .unwrap_err()
        };
        assert!(refusal(vec![row(2, 0, 1)]).contains("slot 2"));
        assert!(refusal(vec![row(0, 0, 1), row(0, 1, 1)]).contains("twice"));
        assert!(refusal(vec![row(0, 0, 0)]).contains("no tokens"));
        assert!(refusal(vec![row(0, 0, 65)]).contains("agreed"));
        assert!(refusal(vec![row(0, 90, 11)]).contains("context"));
        assert!(
            refusal(vec![PlanRow {
                drafts: 1,
                ..row(0, 0, 1)
            }])
            .contains("drafts")
        );
        let hot = SampleKey {
            seed: 0,
            temperature: f32::NAN,
            logprobs: false,
        };
        assert!(
            refusal(vec![PlanRow {
                sample: Some(hot),
                ..row(0, 0, 1)
            }])
            .contains("temperature")
        );
        assert!(
            refusal(vec![PlanRow {
                tokens: vec![TokenRef::Known(100)],
                ..row(0, 0, 1)
            }])
            .contains("vocabulary")
        );
        let mut wrong = plan(&start, vec![], appends(0, &[1]));
        wrong.state_hash ^= 1;
        assert!(start.after(&wrong, &SPEC, 100).unwrap_err().contains("hash"));
        assert!(
            start
                .after(&plan(&start, vec![], appends(0, &[8])), &SPEC, 100)
                .unwrap_err()
                .contains("block 8")
        );
    }

    #[test]
    fn late_values_must_fit() {
        let start = KvState::new(&SPEC, 8);
        let late_row = PlanRow {
            tokens: vec![TokenRef::Late(0), TokenRef::Known(2)],
            ..row(0, 0, 1)
        };
        let plan = plan(&start, vec![late_row], appends(0, &[1]));
        let late = |tokens: Vec<u32>| Late {
            tokens,
            ..Late::default()
        };
        assert_eq!(resolve(&plan, &late(vec![7]), 100), Ok(vec![7, 2]));
        assert!(resolve(&plan, &late(vec![]), 100).is_err());
        assert!(resolve(&plan, &late(vec![100]), 100).is_err());
        let bias = |row, token| Late {
            biases: vec![(row, vec![(token, 1.0)])],
            ..Late::default()
        };
        assert_eq!(check_late(&plan, &bias(0, 99), 100), Ok(()));
        assert!(check_late(&plan, &bias(1, 99), 100).is_err());
        assert!(check_late(&plan, &bias(0, 100), 100).is_err());
        assert!(
            check_late(
                &plan,
                &Late {
                    masks: vec![(0, vec![0; 12])],
                    ..Late::default()
                },
                100
            )
            .is_err()
        );
    }
}
