//! What a rank answers for a sampled or scored position, in plain code. Backends may compute it in other ways; `top`,
//! `gumbel` and `scored` are defined exactly, the log-sum-exp of a tile up to the rounding of the backend's numerics class;
//! how tiles are joined is defined by [`mass::roots`].

use std::cmp::Ordering;

use llamero_checkpoint::Runs;

use super::mass;
use super::noise::Noise;
use crate::step::{RowCandidates, SampleKey, TOP_CANDIDATES, VOCAB_TILE};

/// The order of candidates: higher logit first, ties by lower id. NaN comes first, so that it is noticed.
#[must_use]
pub fn by_logit(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    let values = match (a.1.is_nan(), b.1.is_nan()) {
        (false, false) => b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal),
        (a_nan, b_nan) => b_nan.cmp(&a_nan),
    };
    values.then(a.0.cmp(&b.0))
}

/// A rank's share of the logits of one position.
#[derive(Debug, Clone, Copy)]
pub struct ShardLogits<'a> {
    /// The vocabulary tiles of the rank.
    pub tiles: &'a Runs,
    /// Unscaled logits of their tokens in ascending order, biases and masks applied. The vocabulary's last tile may be
    /// shorter than the others.
    pub logits: &'a [f32],
}

impl<'a> ShardLogits<'a> {
    fn tokens(self) -> impl Iterator<Item = (u32, f32)> + Clone + 'a {
        #[expect(clippy::cast_possible_truncation, reason = "a small constant")]
        let tile = VOCAB_TILE as u32;
        let ids = self.tiles.iter().flat_map(move |of| of * tile..(of + 1) * tile);
        ids.zip(self.logits.iter().copied())
    }
}

/// The answer of a rank to one sampled position (row, offset). `position` is that of the token to be sampled.
#[must_use]
pub fn candidates(
    (row, offset): (u32, u32),
    shard: ShardLogits<'_>,
    key: &SampleKey,
    position: u32,
) -> RowCandidates {
    let gumbel = (key.temperature > 0.0)
        .then(|| {
            let noise = Noise::new(key.seed, position);
            shard
                .tokens()
                .map(|(id, logit)| (id, noise.perturb(id, logit, key.temperature), logit))
                .min_by(|a, b| by_logit(&(a.0, a.1), &(b.0, b.1)))
        })
        .flatten();
    let mass = |wanted: bool, temperature| {
        if wanted {
            mass::of_shard(shard.tiles, shard.logits, temperature)
        } else {
            Vec::new()
        }
    };
    RowCandidates {
        row,
        offset,
        top: best(shard, key.top),
        mass: mass(key.mass, key.temperature),
        mass_raw: mass(key.logprobs, 0.0),
        gumbel,
        scored: None,
    }
}

/// The answer of a rank to one scored position (row, offset), whose token is `id`.
#[must_use]
pub fn scored((row, offset): (u32, u32), shard: ShardLogits<'_>, id: u32, top: u16) -> RowCandidates {
    RowCandidates {
        row,
        offset,
        top: best(shard, top),
        mass: Vec::new(),
        mass_raw: mass::of_shard(shard.tiles, shard.logits, 0.0),
        gumbel: None,
        scored: shard
            .tokens()
            .find(|(token, _)| *token == id)
            .map(|(_, logit)| logit),
    }
}

/// The `count` best logits of the shard in order.
fn best(shard: ShardLogits<'_>, count: u16) -> Vec<(u32, f32)> {
    let count = usize::from(count).min(TOP_CANDIDATES);
    if count == 0 {
        return Vec::new();
    }
    let mut order: Vec<(u32, f32)> = shard.tokens().collect();
    if order.len() > count {
        order.select_nth_unstable_by(count - 1, by_logit);
        order.truncate(count);
    }
    order.sort_unstable_by(by_logit);
    order
}
