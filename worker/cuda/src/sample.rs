//! From final norms to candidates, up to 64 positions at a time.

use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result};
use llamero_checkpoint::Runs;
use llamero_engine::kv_state::Answer;
use llamero_engine::late_values::Adjustments;
use llamero_engine::sampling::mass;
use llamero_engine::sampling::noise::Noise;
use llamero_engine::step::Place;
use llamero_engine::{BackendError, Plan, RowCandidates, RowOutput, SampleKey};

use crate::error::refused;
use crate::ops::{MAX_ROWS, NOTHING, Ops, SEGMENT, TILE, TOP, mask_words};
use crate::pinned::{Lent, Pinned, Pool};
use crate::shape::Shape;
use crate::weights::ModelWeights;
use crate::work::{BIASES, SAMPLE_WORDS, SamplingBuffers};

/// Where regions of a sampling frame start, in words: see [`SAMPLE_WORDS`].
const POSITIONS: usize = MAX_ROWS;
const PICKS: usize = 2 * MAX_ROWS;
const MASKED: usize = 3 * MAX_ROWS;
const SEEDS: usize = 4 * MAX_ROWS;

/// Entries for the device: place of the row in the group, the rank's number of the token, no bias, bits of the penalty. A token may have
/// several penalties, so that each makes entries of its own.
fn repetition_entries(adjustments: &Adjustments, places: &[Place], vocab: &Runs) -> Vec<Vec<[u32; 4]>> {
    let mut all = Vec::new();
    for (place, at) in (0u32..).zip(places) {
        for (penalty, tokens) in adjustments.repetitions(*at) {
            let mine = |token: &u32| Some([place, vocab.position(*token)?, 0, penalty.to_bits()]);
            all.push(tokens.iter().filter_map(mine).collect());
        }
    }
    all
}

/// Entries for the device: place of the row in the group, the rank's number of the token, bits of the sum of its biases.
fn bias_entries(adjustments: &Adjustments, places: &[Place], vocab: &Runs) -> Vec<[u32; 4]> {
    let mut entries = Vec::new();
    for (place, at) in (0u32..).zip(places) {
        let mine = |(token, bias): (u32, f32)| Some([place, vocab.position(token)?, bias.to_bits(), 0]);
        entries.extend(adjustments.bias_sums(*at).into_iter().filter_map(mine));
    }
    entries
}

/// Masks for the device: place of the row, and the bits of the rank's tiles.
fn mask_entries(adjustments: &Adjustments, places: &[Place], tiles: &Runs) -> Vec<(u32, Vec<u32>)> {
    let word = |mask: &[u8], tile: u32, word: usize| {
        let at = tile as usize * TILE / 8 + 4 * word;
        let byte = |i: usize| mask.get(at + i).copied().unwrap_or(0);
        u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
    };
    let mut masks = Vec::new();
    for (place, at) in (0u32..).zip(places) {
        let words = adjustments.masks(*at).map(|mask| -> Vec<u32> {
            tiles
                .iter()
                .flat_map(|tile| (0..TILE / 32).map(move |at| word(mask, tile, at)))
                .collect()
        });
        // What all of them allow.
        let all = words.reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a & b).collect());
        masks.extend(all.map(|all| (place, all)));
    }
    masks
}

/// What a group of positions needs beside the best logits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Wants {
    /// The best under noise.
    pub(crate) noise: bool,
    /// Masses of scaled logits.
    pub(crate) mass: bool,
    /// Masses of unscaled logits.
    pub(crate) raw: bool,
    /// Logits of given tokens.
    pub(crate) scores: bool,
}

/// Host memory of one group: what goes to the device, and what comes back.
pub(crate) struct Room {
    frame: Pinned<u32>,
    top: Pinned<u64>,
    lse: Pinned<f32>,
    raw_lse: Pinned<f32>,
    best: Pinned<u32>,
    picked: Pinned<f32>,
    /// Biases and masks.
    adjustments: Vec<Lent<u32>>,
}

impl Room {
    pub(crate) fn new(context: &Arc<CudaContext>, vocab: usize) -> Result<Self, DriverError> {
        let (tiles, segments) = (vocab.div_ceil(TILE), vocab.div_ceil(SEGMENT));
        Ok(Self {
            frame: Pinned::new(context, SAMPLE_WORDS)?,
            top: Pinned::new(context, MAX_ROWS * TOP)?,
            lse: Pinned::new(context, MAX_ROWS * tiles)?,
            raw_lse: Pinned::new(context, MAX_ROWS * tiles)?,
            best: Pinned::new(context, 4 * MAX_ROWS * segments)?,
            picked: Pinned::new(context, MAX_ROWS)?,
            adjustments: Vec::new(),
        })
    }
}

/// Up to 64 positions that are answered together.
pub(crate) struct Group {
    /// The answers, and which state of the step each has.
    pub(crate) answers: Vec<(usize, Answer)>,
    wants: Wants,
    pub(crate) room: Room,
}

/// What computes logits.
pub(crate) struct Sampler<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) weights: &'a ModelWeights,
    pub(crate) ops: &'a mut Ops,
    pub(crate) pool: &'a Pool,
    pub(crate) buffers: &'a mut SamplingBuffers,
}

impl Group {
    /// Fill the frame for these answers of `plan`.
    pub(crate) fn new(answers: Vec<(usize, Answer)>, plan: &Plan, vocab: &Runs, mut room: Room) -> Self {
        let mut wants = Wants::default();
        let frame = room.frame.as_mut_slice();
        for (place, (_, answer)) in answers.iter().enumerate() {
            let (mut temperature, mut seed, mut pick) = (0f32, 0u64, NOTHING);
            match &plan.rows[answer.row as usize].output {
                RowOutput::Sample { key, .. } => {
                    (temperature, seed) = (key.temperature, key.seed);
                    wants.noise |= key.temperature > 0.0;
                    wants.mass |= key.mass;
                    wants.raw |= key.logprobs;
                }
                RowOutput::Score { ids, .. } => {
                    pick = vocab.position(ids[answer.offset as usize]).unwrap_or(NOTHING);
                    (wants.raw, wants.scores) = (true, true);
                }
                RowOutput::None | RowOutput::Hidden | RowOutput::HiddenSum => {}
            }
            frame[place] = temperature.to_bits();
            frame[POSITIONS + place] = answer.next;
            frame[PICKS + place] = pick;
            frame[SEEDS + 2 * place] = seed as u32;
            frame[SEEDS + 2 * place + 1] = (seed >> 32) as u32;
        }
        Self { answers, wants, room }
    }

    pub(crate) fn wants(&self) -> Wants {
        self.wants
    }

    /// Enqueue what the group needs.
    pub(crate) fn enqueue(
        &mut self,
        sampler: &mut Sampler<'_>,
        states: &cudarc::driver::CudaSlice<u16>,
        adjustments: &Adjustments,
    ) -> Result<(), BackendError> {
        let Some((first, _)) = self.answers.first() else {
            return Ok(());
        };
        let answers = self.answers.iter();
        let places: Vec<Place> = answers.map(|(_, answer)| (answer.row, answer.offset)).collect();
        let states_of = (*first, places.len());
        sampler.enqueue(
            states,
            states_of,
            self.wants,
            &mut self.room,
            Some((&places, adjustments)),
        )
    }

    /// What is known of each position, once everything that [`Sampler::enqueue`] began has ended.
    pub(crate) fn read(&self, plan: &Plan, shape: &Shape) -> Vec<RowCandidates> {
        let answers = self.answers.iter().enumerate();
        answers
            .filter_map(|(place, (_, answer))| {
                let row = Row {
                    room: &self.room,
                    place,
                    shape,
                };
                match &plan.rows[answer.row as usize].output {
                    RowOutput::Sample { key, .. } => Some(row.sampled(answer, key)),
                    RowOutput::Score { ids, top } => {
                        Some(row.scored(answer, ids[answer.offset as usize], *top))
                    }
                    RowOutput::None | RowOutput::Hidden | RowOutput::HiddenSum => None,
                }
            })
            .collect()
    }
}

/// One position's results.
struct Row<'a> {
    room: &'a Room,
    place: usize,
    shape: &'a Shape,
}

impl Row<'_> {
    fn sampled(&self, answer: &Answer, key: &SampleKey) -> RowCandidates {
        let masses = |wanted: bool, lse: &Pinned<f32>| if wanted { self.mass(lse) } else { Vec::new() };
        RowCandidates {
            row: answer.row,
            offset: answer.offset,
            top: self.top(key.top),
            mass: masses(key.mass, &self.room.lse),
            mass_raw: masses(key.logprobs, &self.room.raw_lse),
            gumbel: (key.temperature > 0.0)
                .then(|| self.best(key, answer.next))
                .flatten(),
            scored: None,
        }
    }

    fn scored(&self, answer: &Answer, id: u32, top: u16) -> RowCandidates {
        RowCandidates {
            row: answer.row,
            offset: answer.offset,
            top: self.top(top),
            mass: Vec::new(),
            mass_raw: self.mass(&self.room.raw_lse),
            gumbel: None,
            scored: self
                .shape
                .vocab
                .position(id)
                .map(|_| self.room.picked.as_slice()[self.place]),
        }
    }

    fn top(&self, count: u16) -> Vec<(u32, f32)> {
        let pairs = &self.room.top.as_slice()[self.place * TOP..][..TOP.min(count.into())];
        let there = pairs.iter().take_while(|pair| **pair as u32 != NOTHING);
        there
            .map(|pair| {
                (
                    token_of(&self.shape.vocab, *pair as u32),
                    f32::from_bits((pair >> 32) as u32),
                )
            })
            .collect()
    }

    fn mass(&self, lse: &Pinned<f32>) -> Vec<llamero_engine::step::MassRoot> {
        let tiles = self.shape.vocab_width().div_ceil(TILE);
        let mine = &lse.as_slice()[self.place * tiles..][..tiles];
        mass::roots(&self.shape.vocab_tiles, mine.iter().copied())
    }

    fn best(&self, key: &SampleKey, next: u32) -> Option<(u32, f32, f32)> {
        let segments = self.shape.vocab_width().div_ceil(SEGMENT);
        let mine = &self.room.best.as_slice()[4 * self.place * segments..][..4 * segments];
        let (mine, _) = mine.as_chunks::<4>();
        let order = |entry: &&[u32; 4]| u64::from(entry[1]) << 32 | u64::from(entry[0]);
        let winner = mine.iter().max_by_key(order).filter(|entry| order(entry) != 0)?;
        let (token, logit) = (token_of(&self.shape.vocab, !winner[0]), f32::from_bits(winner[2]));
        // The value by the definition: a device's logarithms may differ from it in the last bit.
        let perturbed = Noise::new(key.seed, next).perturb(token, logit, key.temperature);
        Some((token, perturbed, logit))
    }
}

/// The token of a number among the rank's own.
fn token_of(vocab: &Runs, mut number: u32) -> u32 {
    for run in vocab.as_slice() {
        let len = run.end - run.start;
        if number < len {
            return run.start + number;
        }
        number -= len;
    }
    NOTHING
}

impl Sampler<'_> {
    /// Compute the logits of the group's positions, whose states are `count` rows from `first` on, and adjust them.
    pub(crate) fn logits(
        &mut self,
        states: &cudarc::driver::CudaSlice<u16>,
        (first, count): (usize, usize),
        adjustments: Option<(&[Place], &Adjustments)>,
        room: &mut Room,
    ) -> Result<(), BackendError> {
        let Some(head) = &self.weights.head else {
            return Err(crate::error::bug("a stage without a head is to sample"));
        };
        let stride = self.shape.hidden_leaves.stride();
        let view = states.slice(first * stride..(first + count) * stride);
        self.ops
            .product(&head.matrix, &view, count, &mut self.buffers.logits)?;
        match adjustments {
            Some((places, adjustments)) => self.adjust(places, adjustments, room),
            None => Ok(()),
        }
    }

    fn adjust(
        &mut self,
        places: &[Place],
        adjustments: &Adjustments,
        room: &mut Room,
    ) -> Result<(), BackendError> {
        let vocab = self.shape.vocab_width();
        let vocab_of = &self.shape.vocab;
        let mut changes = repetition_entries(adjustments, places, vocab_of);
        // Biases are added to what the penalties leave.
        changes.push(bias_entries(adjustments, places, vocab_of));
        for part in changes.iter().flat_map(|entries| entries.chunks(BIASES)) {
            let mut words = self.pool.take(4 * part.len()).map_err(refused)?;
            words.as_mut_slice().copy_from_slice(part.as_flattened());
            self.ops
                .upload(words.as_slice(), self.ops.address(&self.buffers.biases))?;
            room.adjustments.push(words);
            let buffers = &mut *self.buffers;
            self.ops
                .add_biases(&mut buffers.logits, vocab, &buffers.biases, part.len())?;
        }
        let masks = mask_entries(adjustments, places, &self.shape.vocab_tiles);
        if masks.is_empty() {
            return Ok(());
        }
        let each = mask_words(vocab);
        let mut words = self.pool.take::<u32>(masks.len() * each).map_err(refused)?;
        let mut masked_rows = self.pool.take(masks.len()).map_err(refused)?;
        for (number, (place, mask)) in masks.iter().enumerate() {
            words.as_mut_slice()[number * each..][..each].copy_from_slice(mask);
            masked_rows.as_mut_slice()[number] = *place;
        }
        self.ops
            .upload(words.as_slice(), self.ops.address(&self.buffers.masks))?;
        room.adjustments.push(words);
        let masked = self.ops.address(&self.buffers.frame) + 4 * MASKED as u64;
        self.ops.upload(masked_rows.as_slice(), masked)?;
        room.adjustments.push(masked_rows);
        let buffers = &mut *self.buffers;
        let masked_rows = buffers.frame.slice(MASKED..MASKED + masks.len());
        self.ops.apply_masks(
            &mut buffers.logits,
            vocab,
            (&masked_rows, &buffers.masks),
            masks.len(),
        )?;
        Ok(())
    }

    /// Enqueue everything from `count` states from `first` on to the results in `room`, whose frame is filled. What is to be
    /// added to the logits goes by answered positions; none: nothing.
    pub(crate) fn enqueue(
        &mut self,
        states: &cudarc::driver::CudaSlice<u16>,
        (first, count): (usize, usize),
        wants: Wants,
        room: &mut Room,
        adjustments: Option<(&[Place], &Adjustments)>,
    ) -> Result<(), BackendError> {
        let frame = self.ops.address(&self.buffers.frame);
        // Without the region of masked rows, which `adjust` fills.
        self.ops.upload(&room.frame.as_slice()[..MASKED], frame)?;
        self.ops
            .upload(&room.frame.as_slice()[SEEDS..], frame + 4 * SEEDS as u64)?;
        self.logits(states, (first, count), adjustments, room)?;
        self.candidates(count, wants)?;
        self.download(count, wants, room)
    }

    /// Candidates of the first `rows` rows of logits.
    fn candidates(&mut self, rows: usize, wants: Wants) -> Result<(), BackendError> {
        let vocab = self.shape.vocab_width();
        let SamplingBuffers {
            logits,
            keys,
            top,
            lse,
            raw_lse,
            best,
            picked,
            frame,
            zeros,
            tiles,
            ..
        } = &mut *self.buffers;
        let region = |start: usize| frame.slice(start..start + MAX_ROWS);
        let (words, positions, picks) = (region(0), region(POSITIONS), region(PICKS));
        let seeds = frame.slice(SEEDS..SEEDS + 2 * MAX_ROWS);
        // SAFETY: words of the frame that hold floats and halves of long numbers, at multiples of eight bytes.
        let typed = unsafe { (words.transmute::<f32>(MAX_ROWS), seeds.transmute::<u64>(MAX_ROWS)) };
        let (Some(temperatures), Some(seeds)) = typed else {
            return Err(crate::error::bug("a sampling frame is too short"));
        };
        self.ops.top(logits, (rows, vocab), keys, top)?;
        if wants.mass {
            self.ops.tile_lse(logits, (rows, vocab), &temperatures, lse)?;
        }
        if wants.raw {
            self.ops.tile_lse(logits, (rows, vocab), &*zeros, raw_lse)?;
        }
        if wants.noise {
            let keyed = (&temperatures, &seeds, &positions);
            self.ops
                .best_perturbed(logits, (rows, vocab), keyed, tiles, best)?;
        }
        if wants.scores {
            self.ops.pick(logits, (rows, vocab), &picks, picked)?;
        }
        Ok(())
    }

    fn download(&mut self, rows: usize, wants: Wants, room: &mut Room) -> Result<(), BackendError> {
        let vocab = self.shape.vocab_width();
        let (tiles, segments) = (rows * vocab.div_ceil(TILE), rows * vocab.div_ceil(SEGMENT));
        let (ops, buffers) = (&*self.ops, &*self.buffers);
        let stream = ops.stream().cu_stream();
        // SAFETY: both sides have room for so many rows; the host's is not read before the step's event.
        unsafe {
            result::memcpy_dtoh_async(
                &mut room.top.as_mut_slice()[..rows * TOP],
                ops.address(&buffers.top),
                stream,
            )
            .map_err(refused)?;
            for (wanted, to, from, count) in [
                (wants.mass, &mut room.lse, &buffers.lse, tiles),
                (wants.raw, &mut room.raw_lse, &buffers.raw_lse, tiles),
                (wants.scores, &mut room.picked, &buffers.picked, rows),
            ] {
                if wanted {
                    result::memcpy_dtoh_async(&mut to.as_mut_slice()[..count], ops.address(from), stream)
                        .map_err(refused)?;
                }
            }
            if wants.noise {
                let to = &mut room.best.as_mut_slice()[..4 * segments];
                result::memcpy_dtoh_async(to, ops.address(&buffers.best), stream).map_err(refused)?;
            }
        }
        Ok(())
    }
}

impl Room {
    /// Drop what the last group left.
    pub(crate) fn clear(&mut self) {
        self.adjustments.clear();
    }
}
