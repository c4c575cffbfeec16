//! A model of 512 tokens whose logits are a hash of the whole history, summed over leaves that ranks share.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};

use crate::backend::{Backend, BackendError, FormSpec, KvCapacity, LoadProgress, Ticket};
use crate::block_tables::BlockTables;
use crate::collective::{Abort, Collective, LeafLayout};
use crate::leaf_tree;
use crate::sampling::candidates::candidates;
use crate::sampling::{Mass, Noise, Sampled, SamplingParams, TokenCounts, sample_full_row};
use crate::step::{Late, LogitShard, Plan, StepOutput, TokenRef, VOCAB_TILE};

pub(super) const VOCAB: usize = 4 * VOCAB_TILE;
const LEAVES: u32 = 9;
pub(super) const KV_BLOCKS: u32 = 24;

/// What tests do to a rank from outside, and what they see of it.
#[derive(Default)]
pub(super) struct Faults {
    state: Mutex<FaultState>,
    changed: Condvar,
}

#[derive(Default)]
struct FaultState {
    abort: Option<Arc<dyn Abort>>,
    stalled: bool,
    loads: u32,
    full_rows: u32,
}

impl Faults {
    /// Cut all links of the present era, as a dead process does.
    pub(super) fn cut(&self) {
        self.state.lock().unwrap().abort.as_ref().unwrap().abort();
    }

    /// Take no step from here on, or go on.
    pub(super) fn stall(&self, stalled: bool) {
        self.state.lock().unwrap().stalled = stalled;
        self.changed.notify_all();
    }

    pub(super) fn loads(&self) -> u32 {
        self.state.lock().unwrap().loads
    }

    pub(super) fn full_rows(&self) -> u32 {
        self.state.lock().unwrap().full_rows
    }
}

pub(super) struct Fake {
    pub(super) faults: Arc<Faults>,
    era: Option<Formed>,
    loaded: bool,
}

struct Formed {
    collective: Box<dyn Collective<Buffer = [f32]>>,
    tables: BlockTables,
    block_size: u32,
    kv: HashMap<(u32, u32), u32>,
    steps: HashMap<Ticket, Submitted>,
}

struct Submitted {
    plan: Plan,
    late: Option<Late>,
    logits: HashMap<u32, Vec<f32>>,
}

impl Fake {
    pub(super) fn new(faults: Arc<Faults>) -> Self {
        Self {
            faults,
            era: None,
            loaded: false,
        }
    }
}

impl Backend for Fake {
    type Collective = dyn Collective<Buffer = [f32]>;

    fn load(&mut self, progress: &mut dyn FnMut(LoadProgress)) -> Result<(), BackendError> {
        self.faults.state.lock().unwrap().loads += 1;
        progress(LoadProgress { loaded: 7, total: 7 });
        self.loaded = true;
        Ok(())
    }

    fn form(
        &mut self,
        spec: &FormSpec,
        collective: Box<Self::Collective>,
    ) -> Result<KvCapacity, BackendError> {
        if !self.loaded {
            return Err(BackendError::NotReady("load first"));
        }
        assert_eq!(collective.era(), spec.era);
        self.faults.state.lock().unwrap().abort = Some(collective.abort_handle());
        // Ranks differ, so that the group must agree on the smallest.
        let blocks = KV_BLOCKS + collective.world() - 1 - collective.rank();
        self.era = Some(Formed {
            collective,
            tables: BlockTables::new(spec.max_sequences, blocks),
            block_size: spec.block_size,
            kv: HashMap::new(),
            steps: HashMap::new(),
        });
        Ok(KvCapacity { blocks })
    }

    fn submit(&mut self, plan: &Plan) -> Result<Ticket, BackendError> {
        let going = self
            .faults
            .changed
            .wait_while(self.faults.state.lock().unwrap(), |state| state.stalled);
        drop(going);
        let formed = self.era.as_mut().ok_or(BackendError::NotReady("form first"))?;
        let broken = |reason: String| BackendError::Plan {
            step: plan.step,
            reason,
        };
        formed
            .tables
            .apply(&plan.blocks)
            .map_err(|error| broken(error.to_string()))?;
        if formed.tables.hash() != plan.state_hash {
            return Err(broken("the state hash differs".into()));
        }
        let ticket = Ticket(plan.step);
        let submitted = Submitted {
            plan: plan.clone(),
            late: None,
            logits: HashMap::new(),
        };
        formed.steps.insert(ticket, submitted);
        assert_eq!(formed.steps.len(), 1, "steps are released");
        Ok(ticket)
    }

    fn bind(&mut self, ticket: Ticket, late: &Late) -> Result<(), BackendError> {
        let formed = self.era.as_mut().ok_or(BackendError::NotReady("form first"))?;
        formed.steps.get_mut(&ticket).unwrap().late = Some(late.clone());
        Ok(())
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Option<StepOutput>, BackendError> {
        let formed = self.era.as_mut().ok_or(BackendError::NotReady("form first"))?;
        let Formed {
            collective,
            tables,
            block_size,
            kv,
            steps,
        } = formed;
        let Submitted { plan, late, logits } = steps.get_mut(&ticket).unwrap();
        let late = late.as_ref().expect("bound before polled");
        collective.begin_step(plan.step);
        let place = |slot: u32, position: u32| {
            (
                tables.table(slot)[(position / *block_size) as usize],
                position % *block_size,
            )
        };
        let mut histories = Vec::new();
        for (index, row) in (0..).zip(&plan.rows) {
            for (position, token) in (row.start..).zip(&row.tokens) {
                let TokenRef::Known(token) = token else {
                    panic!("no late tokens here")
                };
                kv.insert(place(row.slot, position), *token);
            }
            if let Some(key) = row.sample {
                let end = row.start + u32::try_from(row.tokens.len()).unwrap();
                let history: Vec<u32> = (0..end).map(|at| kv[&place(row.slot, at)]).collect();
                histories.push((index, key, history));
            }
        }
        let world = collective.world();
        let layout = LeafLayout {
            owners: (0..world)
                .map(|r| r * LEAVES / world..(r + 1) * LEAVES / world)
                .collect(),
        };
        let owned = &layout.owners[collective.rank() as usize];
        // A heartbeat passes through all ranks too.
        let rows = histories.len().max(1);
        let mut roots = Vec::new();
        for tree in leaf_tree::maximal_subtrees(LEAVES, owned) {
            roots.extend((0..rows).map(|row| {
                histories
                    .get(row)
                    .map_or(0.0, |(_, _, history)| tree_value(&tree, hash(history)))
            }));
        }
        let mut sums = vec![0.0; rows];
        collective.reduce_tree(&layout, rows, 1, &roots, &mut sums)?;
        let shard = shard(collective.rank(), world);
        let mut output = StepOutput::default();
        for ((row, key, history), sum) in histories.into_iter().zip(sums) {
            let mut values: Vec<f32> = shard.clone().map(|token| logit(sum, token)).collect();
            for (_, biases) in late.biases.iter().filter(|(of, _)| *of == row) {
                for (token, bias) in biases.iter().filter(|(token, _)| shard.contains(token)) {
                    values[(token - shard.start) as usize] += bias;
                }
            }
            let position = u32::try_from(history.len()).unwrap();
            output
                .candidates
                .push(candidates(row, shard.start, &values, &key, position));
            logits.insert(row, values);
        }
        Ok(Some(output))
    }

    fn logits(&mut self, ticket: Ticket, row: u32) -> Result<LogitShard, BackendError> {
        self.faults.state.lock().unwrap().full_rows += 1;
        let formed = self.era.as_mut().ok_or(BackendError::NotReady("form first"))?;
        let logits = formed.steps[&ticket].logits[&row].clone();
        let first_token = shard(formed.collective.rank(), formed.collective.world()).start;
        Ok(LogitShard { first_token, logits })
    }

    fn release(&mut self, ticket: Ticket) {
        if let Some(formed) = &mut self.era {
            formed.steps.remove(&ticket);
        }
    }

    fn dissolve(&mut self) {
        self.era = None;
    }
}

fn shard(rank: u32, world: u32) -> Range<u32> {
    let tiles = u32::try_from(VOCAB / VOCAB_TILE).unwrap();
    let tile = u32::try_from(VOCAB_TILE).unwrap();
    rank * tiles / world * tile..(rank + 1) * tiles / world * tile
}

fn hash(history: &[u32]) -> u32 {
    history.iter().fold(2_166_136_261, |hash, token| {
        (hash ^ *token).wrapping_mul(16_777_619)
    })
}

/// A value whose sum over leaves depends on their order.
fn tree_value(tree: &leaf_tree::Subtree, hash: u32) -> f32 {
    let mut leaves = (tree.start..tree.end).map(|leaf| {
        let mixed = (hash ^ leaf.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
        (
            leaf..leaf + 1,
            (mixed >> 8) as f32 / 65_536.0 - 128.0 * leaf as f32,
        )
    });
    leaf_tree::join(tree, &mut leaves, &mut |a, b| a + b).unwrap()
}

fn logit(sum: f32, token: u32) -> f32 {
    let mixed = (sum.to_bits() ^ token.wrapping_mul(0xc2b2_ae35)).wrapping_mul(0x27d4_eb2f);
    (mixed >> 16) as f32 / 16_384.0
}

/// What a group must answer: every token from the full row of one rank, without KV, batch or mesh.
pub(super) fn reference(prompt: &[u32], sampling: &SamplingParams, count: usize) -> Vec<u32> {
    let mut history = prompt.to_vec();
    let mut counts = TokenCounts::default();
    for _ in 0..count {
        let sum = tree_value(&(0..LEAVES), hash(&history));
        let mut logits: Vec<f32> = (0..u32::try_from(VOCAB).unwrap())
            .map(|token| logit(sum, token))
            .collect();
        for (token, bias) in counts.biases(sampling) {
            logits[token as usize] += bias;
        }
        let position = u32::try_from(history.len()).unwrap();
        let row = candidates(0, 0, &logits, &sampling.key(), position);
        let mass = Mass::of_ranks(&[&row], sampling.logprobs).unwrap();
        let noise = Noise::new(sampling.seed, position);
        let Sampled { token, .. } = sample_full_row(sampling, noise, &logits, &mass).unwrap();
        counts.record(token);
        history.push(token);
    }
    history.split_off(prompt.len())
}
