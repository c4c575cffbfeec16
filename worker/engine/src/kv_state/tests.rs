use proptest::prelude::*;

use crate::{Era, KvDtype, SampleKey};

use super::*;

const ERA: Era = Era {
    generation: 1,
    epoch: 1,
};

const LIMITS: FormLimits = FormLimits {
    max_sequences: 2,
    max_batched_tokens: 64,
    max_context: 100,
    block_size: 16,
    steps_in_flight: 2,
    kv_dtype: KvDtype::Bf16,
    max_adapters: 0,
    max_adapter_rank: 0,
};

struct Both {
    state: KvState,
    /// As the leader has them.
    tables: BlockTables,
}

impl Both {
    fn new() -> Self {
        Self {
            state: KvState::new(&LIMITS, vec![0; 8]),
            tables: BlockTables::new(2, 8),
        }
    }

    fn plan(&self, rows: Vec<PlanRow>, blocks: BlockDeltas) -> (Plan, BlockTables) {
        let mut tables = self.tables.clone();
        let state_hash = tables.apply(&blocks).map_or(0, |()| tables.hash());
        let plan = Plan {
            era: ERA,
            step: 1,
            rows,
            blocks,
            late_tokens: 0,
            late_sampling: false,
            state_hash,
        };
        (plan, tables)
    }

    /// Computed positions of a slot once `deltas` are applied.
    fn end_after(&self, deltas: &BlockDeltas, slot: u32) -> u32 {
        let mut tables = self.tables.clone();
        let _ = tables.apply(deltas);
        let mut end = 0;
        for block in tables.table(slot) {
            let filled = self.state.filled[*block as usize];
            end += filled;
            if filled < LIMITS.block_size {
                break;
            }
        }
        end
    }

    fn step(&mut self, rows: Vec<PlanRow>, blocks: BlockDeltas) {
        let (plan, tables) = self.plan(rows, blocks);
        self.state.advance(&plan, &LIMITS, 100).unwrap();
        self.tables = tables;
    }

    /// Why the plan is refused; it leaves no trace.
    fn refusal(&mut self, rows: Vec<PlanRow>, blocks: BlockDeltas) -> String {
        let (plan, _) = self.plan(rows, blocks);
        let (filled, hash) = (self.state.filled.clone(), self.state.tables.hash());
        let tables: Vec<_> = (0..2).map(|slot| self.state.table(slot)).collect();
        let why = self.state.advance(&plan, &LIMITS, 100).unwrap_err();
        assert_eq!((&self.state.filled, self.state.tables.hash()), (&filled, hash));
        for (slot, table) in (0..).zip(tables) {
            assert_eq!(self.state.tables.table(slot), &*table);
            assert_eq!(self.state.table(slot), table);
        }
        why
    }
}

fn row(slot: u32, start: u32, tokens: u32) -> PlanRow {
    PlanRow {
        slot,
        start,
        tokens: vec![TokenRef::Known(1); tokens as usize],
        adapter: None,
        output: RowOutput::None,
    }
}

fn appends(slot: u32, blocks: &[u32]) -> BlockDeltas {
    BlockDeltas {
        appends: vec![(slot, blocks.to_vec())],
        ..BlockDeltas::default()
    }
}

fn none() -> BlockDeltas {
    BlockDeltas::default()
}

#[test]
fn positions_follow_what_is_computed() {
    let mut both = Both::new();
    both.step(vec![row(0, 0, 20)], appends(0, &[3, 5]));
    assert!(both.refusal(vec![row(0, 21, 1)], none()).contains("missing"));
    assert!(both.refusal(vec![row(0, 20, 13)], none()).contains("blocks"));
    both.step(vec![row(0, 20, 1)], none());
    // A rewind forgets what comes after it.
    both.step(vec![row(0, 17, 1)], none());
    assert!(both.refusal(vec![row(0, 20, 1)], none()).contains("missing"));
    // A block that another sequence filled may be used from its end on.
    both.step(vec![row(1, 16, 2)], appends(1, &[3, 6]));
    assert_eq!(&*both.state.table(1), [3, 6]);
}

#[test]
fn a_copy_brings_along_how_much_is_computed() {
    let mut both = Both::new();
    both.step(vec![row(0, 0, 20)], appends(0, &[3, 5]));
    let mut deltas = appends(1, &[3, 5]);
    // The second entry is exchanged for a copy of its own, as when a shared block is written.
    deltas.replaces = vec![(1, 1, 6)];
    let row = || vec![row(1, 20, 1)];
    assert!(both.refusal(row(), deltas.clone()).contains("missing"));
    deltas.copies = vec![(5, 6)];
    both.step(row(), deltas);
    assert_eq!(&*both.state.table(1), [3, 6]);
    both.step(
        vec![],
        BlockDeltas {
            truncates: vec![(1, 1)],
            ..none()
        },
    );
    assert_eq!(&*both.state.table(1), [3]);
}

fn any_step() -> impl Strategy<Value = (Vec<(u32, u32, u32)>, BlockDeltas)> {
    let blocks = prop::collection::vec(0_u32..8, 1..3);
    (
        prop::collection::vec((0_u32..2, 0_u32..4, 0_u32..20), 0..3),
        prop::option::weighted(0.1, 0_u32..2),
        prop::option::weighted(0.2, (0_u32..2, 0_u32..3)),
        prop::option::weighted(0.5, (0_u32..2, blocks)),
        prop::option::weighted(0.2, (0_u32..2, 0_u32..3, 0_u32..8)),
        prop::option::weighted(0.2, (0_u32..8, 0_u32..8)),
    )
        .prop_map(|(rows, free, truncate, append, replace, copy)| {
            let deltas = BlockDeltas {
                frees: free.into_iter().collect(),
                truncates: truncate.into_iter().collect(),
                appends: append.into_iter().collect(),
                replaces: replace.into_iter().collect(),
                copies: copy.into_iter().collect(),
            };
            (rows, deltas)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Also where blocks are shared, written twice and copied over each other.
    #[test]
    fn what_is_known_already_changes_no_answer(steps in prop::collection::vec(any_step(), 1..30)) {
        let (mut both, mut looking) = (Both::new(), Both::new());
        for (rows, deltas) in steps {
            // Mostly where the slot ends, so that sequences grow.
            let ends: Vec<u32> = (0..2).map(|slot| looking.end_after(&deltas, slot)).collect();
            let rows: Vec<_> = rows
                .into_iter()
                .map(|(slot, back, tokens)| row(slot, ends[slot as usize].saturating_sub(back / 3 * 9), tokens + 1))
                .collect();
            let (plan, tables) = both.plan(rows, deltas);
            looking.state.computed.forget();
            let answer = both.state.advance(&plan, &LIMITS, 100);
            prop_assert_eq!(&answer, &looking.state.advance(&plan, &LIMITS, 100));
            prop_assert_eq!(&both.state.filled, &looking.state.filled);
            if answer.is_ok() {
                both.tables = tables.clone();
                looking.tables = tables;
            }
        }
    }
}

#[test]
fn what_breaks_the_contract_is_named() {
    let refusal = |rows: Vec<PlanRow>| Both::new().refusal(rows, appends(0, &[1, 2]));
    assert!(refusal(vec![row(2, 0, 1)]).contains("slot 2"));
    assert!(refusal(vec![row(0, 0, 1), row(0, 1, 1)]).contains("twice"));
    assert!(refusal(vec![row(0, 0, 0)]).contains("no tokens"));
    assert!(refusal(vec![row(0, 0, 65)]).contains("agreed"));
    assert!(refusal(vec![row(0, 90, 11)]).contains("context"));
    let with = |change: &dyn Fn(&mut PlanRow)| {
        let mut row = row(0, 0, 1);
        change(&mut row);
        refusal(vec![row])
    };
    let sample = |last, temperature, top| RowOutput::Sample {
        last,
        key: SampleKey {
            seed: 0,
            temperature,
            top,
            mass: false,
            logprobs: false,
        },
    };
    assert!(with(&|row| row.output = sample(2, 0.0, 1)).contains("2 of 1"));
    assert!(with(&|row| row.output = sample(0, 0.0, 1)).contains("0 of 1"));
    assert!(with(&|row| row.output = sample(1, f32::NAN, 1)).contains("temperature"));
    assert!(with(&|row| row.output = sample(1, 0.0, 65)).contains("candidates"));
    assert!(
        with(&|row| row.output = RowOutput::Score {
            ids: vec![100],
            top: 0
        })
        .contains("vocabulary")
    );
    assert!(
        with(&|row| row.output = RowOutput::Score {
            ids: vec![1; 2],
            top: 0
        })
        .contains("2 of 1")
    );
    assert!(with(&|row| row.adapter = Some(0)).contains("adapter"));
    assert!(with(&|row| row.tokens = vec![TokenRef::Known(100)]).contains("vocabulary"));
    assert!(with(&|row| row.tokens = vec![TokenRef::Late(0)]).contains("late token"));
    assert!(Both::new().refusal(vec![], appends(0, &[8])).contains("block 8"));
    let mut both = Both::new();
    let (mut wrong, _) = both.plan(vec![], appends(0, &[1]));
    wrong.state_hash ^= 1;
    assert!(
        both.state
            .advance(&wrong, &LIMITS, 100)
            .unwrap_err()
            .contains("hash")
    );
    assert!(both.state.table(0).is_empty());
}

#[test]
fn late_tokens_stand_where_they_are_named() {
    let late_row = PlanRow {
        tokens: vec![TokenRef::Late(0), TokenRef::Known(2)],
        ..row(0, 0, 1)
    };
    let (plan, _) = Both::new().plan(vec![late_row], appends(0, &[1]));
    assert_eq!(resolve(&plan, &[7]), [7, 2]);
}

#[test]
fn saved_blocks_say_how_much_of_them_is_filled() {
    let mut state = KvState::new(&LIMITS, vec![0; 2]);
    state.set_filled(1, 9);
    let mut saved = state.begin_saved(1, 3).unwrap();
    saved.extend([1, 2, 3]);
    assert_eq!(state.read_saved(&saved, 3), Ok((9, &[1, 2, 3][..])));
    assert!(state.read_saved(&saved, 4).is_err());
    saved[0] = 17;
    assert!(state.read_saved(&saved, 3).is_err());
    assert!(state.read_saved(&saved[..2], 3).is_err());
    assert_eq!(state.begin_saved(2, 3), None);
}
