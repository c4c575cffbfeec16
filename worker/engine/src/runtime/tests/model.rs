//! The fake model: logits from a history, and the answers that a group must give.

use llamero_checkpoint::Runs;

use crate::leaf_tree;
use crate::pooling::{self, Pooled, Pooling};
use crate::runtime::Constraint;
use crate::sampling::candidates::{ShardLogits, candidates};
use crate::sampling::penalties::repeated;
use crate::sampling::{Noise, RowAnswers, Sampled, SamplingParams, TokenCounts, sample_full_row};
use crate::step::VOCAB_TILE;

pub(in crate::runtime) const VOCAB: usize = 4 * VOCAB_TILE;
pub(in crate::runtime) const LEAVES: u32 = 9;

/// Answers to prompts that begin with this token repeat what they said: all that counts before a token is the remainder of the last
/// one by eight. Other answers depend on all that was before.
pub(in crate::runtime) const REPEATING: u32 = 509;

pub(in crate::runtime) fn hash(history: &[u32]) -> u32 {
    if let [REPEATING, .., last] = history {
        return hash(&[last % 8]);
    }
    history.iter().fold(2_166_136_261, |hash, token| {
        (hash ^ *token).wrapping_mul(16_777_619)
    })
}

/// A value whose sum over leaves depends on their order.
pub(in crate::runtime) fn tree_value(tree: &leaf_tree::Subtree, hash: u32) -> f32 {
    let mut leaves = (tree.start..tree.end).map(|leaf| {
        let mixed = (hash ^ leaf.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
        (
            leaf..leaf + 1,
            (mixed >> 8) as f32 / 65_536.0 - 128.0 * leaf as f32,
        )
    });
    leaf_tree::join(tree, &mut leaves, &mut |a, b| a + b).unwrap()
}

pub(in crate::runtime) fn logit(sum: f32, token: u32) -> f32 {
    let mixed = (sum.to_bits() ^ token.wrapping_mul(0xc2b2_ae35)).wrapping_mul(0x27d4_eb2f);
    (mixed >> 16) as f32 / 16_384.0
}

/// The hidden state of a position.
pub(in crate::runtime) fn state(sum: f32) -> [f32; 4] {
    [0, 1, 2, 3].map(|at| logit(sum, 1000 + at) - 2.0)
}

/// The embedding of a prompt: what a group must give.
pub(in crate::runtime) fn embedding(prompt: &[u32], pooling: Pooling) -> Vec<f32> {
    let state = |at: usize| state(tree_value(&(0..LEAVES), hash(&prompt[..=at])));
    let mut sum = vec![0.0; 4];
    let first = match pooling {
        Pooling::Last => prompt.len() - 1,
        Pooling::Mean => 0,
    };
    (first..prompt.len()).for_each(|at| pooling::add(&mut sum, state(at)));
    let mut pooled = Pooled::new(pooling);
    pooled.take(0, u32::try_from(prompt.len()).unwrap(), sum).unwrap();
    pooled.vector().unwrap()
}

/// The logits of the whole vocabulary.
fn row(sum: f32) -> Vec<f32> {
    (0..).take(VOCAB).map(|token| logit(sum, token)).collect()
}

/// The likeliest token behind a history.
pub(in crate::runtime) fn best(history: &[u32]) -> u32 {
    let row = row(tree_value(&(0..LEAVES), hash(history)));
    let ids = 0..u32::try_from(VOCAB).unwrap();
    // The first of equal ones.
    let better = |best: u32, id: u32| {
        if row[id as usize] > row[best as usize] {
            id
        } else {
            best
        }
    };
    ids.reduce(better).unwrap()
}

/// Log-probabilities of the whole vocabulary behind a history.
pub(in crate::runtime) fn logprobs(history: &[u32]) -> Vec<f64> {
    let row = row(tree_value(&(0..LEAVES), hash(history)));
    let total: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
    row.iter().map(|logit| f64::from(*logit) - total.ln()).collect()
}

/// Takes away what a mask does not allow.
pub(in crate::runtime) fn mask<'a>(mask: &[u8], logits: impl Iterator<Item = (u32, &'a mut f32)>) {
    assert_eq!(mask.len(), VOCAB / 8);
    for (token, logit) in logits {
        if mask[token as usize / 8] >> (token % 8) & 1 == 0 {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// What a group must answer: every token from the full row of one rank, without KV, batch or mesh.
pub(in crate::runtime) fn reference(prompt: &[u32], sampling: &SamplingParams, count: usize) -> Vec<u32> {
    constrained_reference(prompt, sampling, count, None)
}

/// The same under a constraint.
pub(in crate::runtime) fn constrained_reference(
    prompt: &[u32],
    sampling: &SamplingParams,
    count: usize,
    mut constraint: Option<Box<dyn Constraint>>,
) -> Vec<u32> {
    let tiles = Runs::from(0..(VOCAB / VOCAB_TILE) as u32);
    let mut history = prompt.to_vec();
    let mut counts = TokenCounts::default().behind(prompt, sampling);
    for _ in 0..count {
        let sum = tree_value(&(0..LEAVES), hash(&history));
        let mut logits = row(sum);
        for token in counts.repeated(sampling) {
            let logit = &mut logits[token as usize];
            *logit = repeated(*logit, sampling.repetition_penalty);
        }
        for (token, bias) in counts.biases(sampling) {
            logits[token as usize] += bias;
        }
        if let Some(constraint) = &mut constraint
            && let Some(allowed) = constraint.mask().unwrap()
        {
            mask(&allowed, (0..).zip(&mut logits));
        }
        let position = u32::try_from(history.len()).unwrap();
        let shard = ShardLogits {
            tiles: &tiles,
            logits: &logits,
        };
        let row = RowAnswers::from_iter([candidates((0, 0), shard, &sampling.key(), position)]);
        let mass = row
            .mass(sampling.needs_mass(), sampling.logprobs.is_some())
            .unwrap();
        let noise = Noise::new(sampling.seed, position);
        let Sampled { token, .. } = sample_full_row(sampling, noise, &logits, &mass).unwrap();
        counts.record(token);
        if let Some(constraint) = &mut constraint {
            constraint.accept(token).unwrap();
        }
        history.push(token);
    }
    history.split_off(prompt.len())
}
