//! A model of 512 tokens whose logits are a hash of the whole history, summed over leaves that ranks share.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use llamero_checkpoint::Runs;

use super::fake_adapters::{FakeAdapters, mixed};
use super::faults_of_fake::Faults;
use super::model::{self, LEAVES, VOCAB};
use crate::adapters::AdapterStore;
use crate::backend::{
    Backend, BackendError, KvCapacity, LoadProgress, LoadWatch, MemoryPlan, StepProgress, Ticket, Waited,
};
use crate::block_tables::BlockTables;
use crate::form::FormSpec;
use crate::kv_state::answers;
use crate::leaf_tree;
use crate::mesh::{Label, Mesh, MeshError, Transfer, Wait};
use crate::pooling;
use crate::sampling::candidates::{ShardLogits, candidates, scored};
use crate::sampling::penalties::repeated;
use crate::step::{
    Era, Late, LogitShard, Place, Plan, PlanRow, RowCandidates, RowOutput, StepOutput, TokenRef, VOCAB_TILE,
};

pub(in crate::runtime) const KV_BLOCKS: u32 = 24;
/// Layers of the model.
const DEPTH: u32 = 3;

pub(in crate::runtime) struct Fake {
    pub(in crate::runtime) faults: Arc<Faults>,
    /// How long an exchange with peers may take.
    patience: Duration,
    /// Computes the whole tree by itself instead of asking peers.
    solo: bool,
    era: Option<Formed>,
    loaded: bool,
    progress: Arc<StepProgress>,
    /// KV blocks of the rank that has fewest.
    blocks: u32,
    /// The KV blocks of an era that is over, how many there are, and when steps were submitted last.
    kept: Option<(Kv, u32, Era)>,
    adapters: Arc<FakeAdapters>,
}

/// The token at each position of each physical block.
type Kv = HashMap<(u32, u32), u32>;

struct Formed {
    mesh: Box<dyn Mesh>,
    tables: BlockTables,
    spec: FormSpec,
    kv: Kv,
    filled_in: Option<Era>,
    steps: HashMap<Ticket, Submitted>,
    /// Computed last.
    last: u64,
}

struct Submitted {
    plan: Plan,
    /// What each row's tokens are mixed with.
    salts: Vec<u8>,
    tokens: Option<Vec<u32>>,
    biases: Option<Vec<RowBiases>>,
    masks: Vec<(Place, Vec<u8>)>,
    repetitions: Vec<(Place, f32, Vec<u32>)>,
    cancelled: Vec<u32>,
    /// Sums over the leaves for each sampled row, once computed.
    sums: Option<Vec<f32>>,
    logits: HashMap<Place, Vec<f32>>,
}

/// What is added to the logits of a position.
type RowBiases = (Place, Vec<(u32, f32)>);

fn bug(reason: impl Into<String>) -> BackendError {
    BackendError::Bug(reason.into())
}

impl Fake {
    pub(in crate::runtime) fn new(faults: Arc<Faults>, patience: Duration) -> Self {
        Self {
            adapters: Arc::clone(&faults.adapters),
            faults,
            patience,
            solo: false,
            era: None,
            loaded: false,
            progress: Arc::default(),
            blocks: KV_BLOCKS,
            kept: None,
        }
    }

    /// One that needs no peers and has so many blocks.
    pub(in crate::runtime) fn solo(blocks: u32) -> Self {
        Self {
            solo: true,
            loaded: true,
            blocks,
            ..Self::new(Arc::default(), Duration::ZERO)
        }
    }

    /// From the next era on.
    pub(in crate::runtime) fn set_blocks(&mut self, blocks: u32) {
        self.blocks = blocks;
    }

    /// Whether no slot holds a block.
    pub(in crate::runtime) fn holds_nothing(&self) -> bool {
        let tables = &self.era.as_ref().unwrap().tables;
        tables.hash() == 0 && (0..tables.slots()).all(|slot| tables.table(slot).is_empty())
    }

    fn formed(&mut self) -> Result<&mut Formed, BackendError> {
        self.era.as_mut().ok_or_else(|| bug("form first"))
    }

    fn step(&mut self, ticket: Ticket) -> Result<&mut Submitted, BackendError> {
        let steps = &mut self.formed()?.steps;
        steps.get_mut(&ticket).ok_or_else(|| bug("no such ticket"))
    }
}

impl Backend for Fake {
    fn load(&mut self, watch: &dyn LoadWatch) -> Result<(), BackendError> {
        self.faults.loaded();
        watch.progress(LoadProgress {
            loaded: 7,
            total: 7,
            read: 9,
        });
        self.loaded = true;
        Ok(())
    }

    fn unload(&mut self) {
        self.era = None;
        self.kept = None;
        self.loaded = false;
    }

    fn memory(&self, spec: &FormSpec) -> Result<MemoryPlan, BackendError> {
        Ok(MemoryPlan {
            adapters: 0,
            kv_block: u64::from(spec.limits.block_size) * 100,
            weights: 5000,
            workspace: u64::from(spec.limits.max_batched_tokens) * 50,
            logits: 30,
            rope: 4,
        })
    }

    fn form(
        &mut self,
        spec: &FormSpec,
        mesh: Box<dyn Mesh>,
        report: &mut dyn FnMut(&str),
    ) -> Result<KvCapacity, BackendError> {
        if !self.loaded {
            return Err(bug("load first"));
        }
        assert_eq!(mesh.era(), spec.era);
        report("makes room");
        self.faults.forming(mesh.abort_handle())?;
        self.dissolve();
        // Ranks differ, so that the group must agree on the smallest.
        let blocks = self.blocks + mesh.members().topology().ranks() - 1 - mesh.rank();
        let (kv, filled_in) = match self.kept.take() {
            Some((kv, before, era)) if before == blocks => (kv, Some(era)),
            _ => (HashMap::new(), None),
        };
        self.era = Some(Formed {
            mesh,
            tables: BlockTables::new(spec.limits.max_sequences, blocks),
            spec: *spec,
            kv,
            filled_in,
            steps: HashMap::new(),
            last: 0,
        });
        Ok(KvCapacity {
            blocks,
            kept: filled_in,
        })
    }

    fn submit(&mut self, plan: &Plan) -> Result<Ticket, BackendError> {
        let salt = |row: &PlanRow| match row.adapter {
            None => Some(0),
            Some(number) => self.adapters.salt(number),
        };
        let salts: Option<Vec<u8>> = plan.rows.iter().map(salt).collect();
        let salts = salts.ok_or_else(|| bug("an adapter is missing"))?;
        let formed = self.formed()?;
        formed
            .tables
            .apply(&plan.blocks)
            .map_err(|error| bug(error.to_string()))?;
        if formed.tables.hash() != plan.state_hash {
            return Err(bug("the state hash differs"));
        }
        formed.filled_in = Some(formed.spec.era);
        let ticket = Ticket(plan.step);
        let submitted = Submitted {
            plan: plan.clone(),
            salts,
            tokens: (plan.late_tokens == 0).then(Vec::new),
            biases: (!plan.late_sampling).then(Vec::new),
            masks: Vec::new(),
            repetitions: Vec::new(),
            cancelled: Vec::new(),
            sums: None,
            logits: HashMap::new(),
        };
        formed.steps.insert(ticket, submitted);
        if formed.steps.len() > formed.spec.limits.steps_in_flight as usize {
            return Err(bug("more steps in flight than agreed"));
        }
        Ok(ticket)
    }

    fn late(&mut self, ticket: Ticket, late: &Late) -> Result<(), BackendError> {
        let step = self.step(ticket)?;
        match late {
            Late::Tokens(tokens) => {
                if step.tokens.is_some() || tokens.len() != step.plan.late_tokens as usize {
                    return Err(bug("late tokens twice, or of another number"));
                }
                step.tokens = Some(tokens.clone());
            }
            Late::Sampling {
                biases,
                masks,
                repetitions,
            } => {
                if step.biases.is_some() {
                    return Err(bug("late sampling values twice, or unasked"));
                }
                step.biases = Some(biases.clone());
                step.masks = masks.clone();
                step.repetitions = repetitions.clone();
            }
            Late::Cancel(rows) => step.cancelled.extend(rows),
        }
        Ok(())
    }

    fn wait(&mut self, ticket: Ticket, _until: Instant) -> Result<Waited, BackendError> {
        for _ in 0..self.faults.depth(DEPTH) {
            self.faults.before_layer(&self.progress)?;
            self.progress.layer();
        }
        let (solo, patience, faults) = (self.solo, self.patience, Arc::clone(&self.faults));
        let formed = self.formed()?;
        faults.before_step(known_tokens(&formed.steps[&ticket].plan))?;
        if formed.steps[&ticket].sums.is_none() {
            if ticket.0 != formed.last + 1 {
                return Err(bug("computed out of order"));
            }
            formed.compute(ticket, solo, patience)?;
            let rows = formed.steps[&ticket].plan.rows.iter();
            faults.compute(rows.map(|row| row.tokens.len()).sum());
            formed.last = ticket.0;
        }
        let mut waited = formed.sample(ticket, &faults)?;
        if let Waited::Done(output) = &mut waited
            && self.faults.is_garbling()
        {
            let unasked = RowCandidates {
                row: 99,
                ..RowCandidates::default()
            };
            output.candidates.push(unasked);
        }
        Ok(waited)
    }

    fn fetch(&mut self, ticket: Ticket, row: u32, offset: u32) -> Result<LogitShard, BackendError> {
        self.faults.full_row();
        let formed = self.formed()?;
        let tokens = formed.tiles().scaled(VOCAB_TILE as u32, VOCAB as u32);
        let step = formed.steps.get(&ticket).ok_or_else(|| bug("no such ticket"))?;
        let logits = step
            .logits
            .get(&(row, offset))
            .ok_or_else(|| bug("not sampled"))?
            .clone();
        Ok(LogitShard { tokens, logits })
    }

    fn save(&mut self, _block: u32) -> Result<Vec<u8>, BackendError> {
        Err(bug("nothing here saves"))
    }

    fn restore(&mut self, _block: u32, _bytes: &[u8]) -> Result<(), BackendError> {
        Err(bug("nothing here restores"))
    }

    fn release(&mut self, ticket: Ticket) {
        if let Some(formed) = &mut self.era {
            formed.steps.remove(&ticket);
        }
    }

    fn dissolve(&mut self) {
        if let Some(Formed {
            kv,
            tables,
            filled_in: Some(era),
            ..
        }) = self.era.take()
        {
            self.kept = Some((kv, tables.blocks(), era));
        }
    }

    fn progress(&self) -> Arc<StepProgress> {
        Arc::clone(&self.progress)
    }

    fn adapters(&self) -> Arc<dyn AdapterStore> {
        Arc::clone(&self.adapters) as Arc<dyn AdapterStore>
    }
}

impl Formed {
    /// Every tile whose number leaves this member's among those of the last stage as the rest, so that shares are sets.
    fn tiles(&self) -> Runs {
        let members = self.mesh.members().last_stage();
        let Some(index) = members.iter().position(|rank| *rank == self.mesh.rank()) else {
            return Runs::default();
        };
        let count = members.len();
        let tiles = (VOCAB / VOCAB_TILE) as u32;
        Runs::new(
            (0..tiles)
                .filter(|tile| *tile as usize % count == index)
                .map(|tile| tile..tile + 1),
        )
    }

    fn place(&self, slot: u32, position: u32) -> (u32, u32) {
        let block = self.tables.table(slot)[(position / self.spec.limits.block_size) as usize];
        (block, position % self.spec.limits.block_size)
    }

    fn history(&self, slot: u32, length: u32) -> Vec<u32> {
        (0..length).map(|at| self.kv[&self.place(slot, at)]).collect()
    }

    /// Write KV and sum over the leaves of all ranks.
    fn compute(&mut self, ticket: Ticket, solo: bool, patience: Duration) -> Result<(), BackendError> {
        let Submitted {
            plan, tokens, salts, ..
        } = &self.steps[&ticket];
        let tokens = tokens.as_ref().ok_or_else(|| bug("late tokens are missing"))?;
        let written: Vec<((u32, u32), u32)> = plan
            .rows
            .iter()
            .zip(salts)
            .flat_map(|(row, salt)| {
                (row.start..)
                    .zip(&row.tokens)
                    .map(move |at| (row.slot, *salt, at))
            })
            .map(|(slot, salt, (position, token))| {
                let token = match token {
                    TokenRef::Known(token) => *token,
                    TokenRef::Late(index) => tokens[*index as usize],
                };
                (self.place(slot, position), mixed(token, salt))
            })
            .collect();
        let block_size = self.spec.limits.block_size;
        for (from, to) in &plan.blocks.copies {
            for offset in 0..block_size {
                if let Some(token) = self.kv.get(&(*from, offset)).copied() {
                    self.kv.insert((*to, offset), token);
                }
            }
        }
        self.kv.extend(written);
        let plan = &self.steps[&ticket].plan;
        let hashes: Vec<u32> = answered(plan)
            .map(|(_, slot, length)| model::hash(&self.history(slot, length)))
            .collect();
        let sums = if solo {
            hashes
                .iter()
                .map(|hash| model::tree_value(&(0..LEAVES), *hash))
                .collect()
        } else {
            sum_over_ranks(self.mesh.as_mut(), ticket.0, &hashes, patience)?
        };
        if let Some(step) = self.steps.get_mut(&ticket) {
            step.sums = Some(sums);
        }
        Ok(())
    }

    fn sample(&mut self, ticket: Ticket, faults: &Faults) -> Result<Waited, BackendError> {
        let tiles = self.tiles();
        if tiles.is_empty() {
            return Ok(Waited::Done(StepOutput::default()));
        }
        let tokens = tiles.scaled(VOCAB_TILE as u32, VOCAB as u32);
        let step = self.steps.get_mut(&ticket).ok_or_else(|| bug("no such ticket"))?;
        let Some(biases) = &step.biases else {
            return Ok(Waited::NeedsSampling);
        };
        let mut output = StepOutput::default();
        let is_first = self.mesh.members().last_stage().first() == Some(&self.mesh.rank());
        let sums = step.sums.iter().flatten();
        for (((row, offset), _, length), sum) in answered(&step.plan).zip(sums) {
            if step.cancelled.contains(&row) {
                continue;
            }
            let place = (row, offset);
            let mut logits: Vec<f32> = tokens.iter().map(|token| model::logit(*sum, token)).collect();
            for (_, penalty, tokens_before) in step.repetitions.iter().filter(|(of, ..)| *of == place) {
                for at in tokens_before.iter().filter_map(|token| tokens.position(*token)) {
                    logits[at as usize] = repeated(logits[at as usize], *penalty);
                }
            }
            for (_, biases) in biases.iter().filter(|(of, _)| *of == place) {
                for (token, bias) in biases {
                    if let Some(at) = tokens.position(*token) {
                        logits[at as usize] += bias;
                    }
                }
            }
            for (_, mask) in step.masks.iter().filter(|(of, _)| *of == place) {
                faults.masked(length, *sum, mask);
                model::mask(mask, tokens.iter().zip(&mut logits));
            }
            let shard = ShardLogits {
                tiles: &tiles,
                logits: &logits,
            };
            match &step.plan.rows[row as usize].output {
                RowOutput::Sample { key, .. } => {
                    output.candidates.push(candidates(place, shard, key, length))
                }
                RowOutput::Score { ids, top } => {
                    output
                        .candidates
                        .push(scored(place, shard, ids[offset as usize], *top));
                }
                RowOutput::Hidden | RowOutput::HiddenSum if is_first => {
                    let state = model::state(*sum);
                    match output.hidden.iter_mut().find(|(of, _)| *of == row) {
                        Some((_, values)) => pooling::add(values, state),
                        None => output.hidden.push((row, state.map(f64::from).to_vec())),
                    }
                }
                RowOutput::None | RowOutput::Hidden | RowOutput::HiddenSum => {}
            }
            step.logits.insert(place, logits);
        }
        Ok(Waited::Done(output))
    }
}

fn known_tokens(plan: &Plan) -> impl Iterator<Item = u32> {
    let tokens = plan.rows.iter().flat_map(|row| &row.tokens);
    tokens.filter_map(|token| match token {
        TokenRef::Known(token) => Some(*token),
        TokenRef::Late(_) => None,
    })
}

/// Answered positions: index of the row and offset, slot, and length of the history.
fn answered(plan: &Plan) -> impl Iterator<Item = ((u32, u32), u32, u32)> {
    let slot = |row: u32| plan.rows[row as usize].slot;
    let answers = answers(plan).into_iter();
    answers.map(move |answer| ((answer.row, answer.offset), slot(answer.row), answer.next))
}

/// The sum over all leaves for each hash. A step without any passes through all ranks too.
fn sum_over_ranks(
    mesh: &mut dyn Mesh,
    step: u64,
    hashes: &[u32],
    patience: Duration,
) -> Result<Vec<f32>, MeshError> {
    let ranks = mesh.members().ranks().to_vec();
    let own = mesh.members().index(mesh.rank()).unwrap();
    let world = ranks.len() as u32;
    let trees: Vec<Vec<leaf_tree::Subtree>> = (0..world)
        .map(|index| Runs::from(index * LEAVES / world..(index + 1) * LEAVES / world))
        .map(|owned| leaf_tree::maximal_subtrees(LEAVES, &owned))
        .collect();
    let hashes = if hashes.is_empty() { &[0][..] } else { hashes };
    let roots = |index: usize| -> Vec<u8> {
        let trees = trees[index].iter();
        let values = trees.flat_map(|tree| hashes.iter().map(|hash| model::tree_value(tree, *hash)));
        values.flat_map(f32::to_le_bytes).collect()
    };
    let mine = roots(own);
    let mut all: Vec<Vec<u8>> = trees
        .iter()
        .map(|trees| vec![0; trees.len() * hashes.len() * 4])
        .collect();
    let mut frames: Vec<Transfer<'_>> = ranks
        .iter()
        .copied()
        .zip(&mut all)
        .filter(|(peer, _)| *peer != ranks[own])
        .map(|(peer, into)| Transfer {
            peer,
            out: Some(&mine),
            into: Some(into),
        })
        .collect();
    let wait = Wait {
        until: Instant::now() + patience,
        spin: Duration::ZERO,
    };
    mesh.exchange(Label { step, tag: 1 }, &mut frames, wait)?;
    all[own] = mine;
    let value = |bytes: &[u8], at: usize| f32::from_le_bytes(bytes[at * 4..][..4].try_into().unwrap());
    let sum = |nth: usize| {
        let mut parts = trees.iter().zip(&all).flat_map(|(trees, bytes)| {
            let each = trees.iter().enumerate();
            each.map(move |(index, tree)| (tree.clone(), value(bytes, index * hashes.len() + nth)))
        });
        leaf_tree::join(&(0..LEAVES), &mut parts, &mut |a, b| a + b).unwrap()
    };
    Ok((0..hashes.len()).map(sum).collect())
}
