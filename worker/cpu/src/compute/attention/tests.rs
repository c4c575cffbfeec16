//! Attention beside its definition in f64, over rows that bf16 and E4M3 both hold exactly.

use std::time::Duration;

use llamero_checkpoint::{LlamaConfig, ShardPlan, Topology, e4m3};
use llamero_engine::KvDtype;

use super::*;
use crate::kernel::Level;
use crate::kernel::math::from_bf16;
use crate::kv::KvShape;

const POSITIONS: usize = 300;
const HEAD_DIM: usize = 64;
/// Six query heads for each kv head: more than are multiplied at once, and not a multiple of that.
const Q_HEADS: usize = 12;
const KV_HEADS: usize = 2;

struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    /// Codes times a power of two, one of them so large that this is the row's scale.
    fn row(&mut self, exponent: i32) -> Vec<f32> {
        let scale = 2.0f32.powi((self.next() % 5) as i32 + exponent);
        let mut row: Vec<f32> = (0..HEAD_DIM)
            .map(|_| e4m3::decode((self.next() >> 4) as u8 & 0xf7) * scale)
            .collect();
        row[self.next() as usize % HEAD_DIM] = 448.0 * scale;
        row
    }
}

fn shape() -> Shape {
    let config = LlamaConfig {
        hidden_size: 256,
        layers: 1,
        q_heads: Q_HEADS as u32,
        kv_heads: KV_HEADS as u32,
        head_dim: HEAD_DIM as u32,
        ffn_size: 512,
        vocab_size: 1024,
        ..LlamaConfig::of_shape("8b").unwrap()
    };
    let plan = ShardPlan::new(&config, Topology::tensor(1)).unwrap();
    Shape::new(&config, &plan, &plan.shards()[0])
}

/// `[position][head][element]`.
type Rows = Vec<Vec<Vec<f32>>>;

fn random_rows(random: &mut Random, exponent: i32) -> Rows {
    (0..POSITIONS)
        .map(|_| (0..KV_HEADS).map(|_| random.row(exponent)).collect())
        .collect()
}

/// What the `len` last positions read, `[token][head][element]`.
fn attended(
    dtype: KvDtype,
    block_size: usize,
    level: Level,
    (keys, values): (&Rows, &Rows),
    queries: [&[u32]; 2],
    len: usize,
) -> Vec<f32> {
    let (shape, kernel) = (shape(), Kernel::new(level).unwrap());
    let kv = KvShape::new(1, KV_HEADS, HEAD_DIM, block_size, dtype).unwrap();
    let blocks = POSITIONS.div_ceil(block_size);
    let mut cache = KvCache::new(kv, blocks).unwrap();
    // Not in order.
    let table: Arc<[u32]> = (0..blocks as u32).rev().collect();
    for position in 0..POSITIONS {
        for head in 0..KV_HEADS {
            let (key, value) = (&keys[position][head], &values[position][head]);
            cache.write(kernel, 0, &table, head, position, key, value);
        }
    }
    let span = Span {
        first: 0,
        len,
        start: POSITIONS - len,
        table,
    };
    let mut pool = Pool::new(1, Duration::ZERO).unwrap();
    let mut out = vec![0; len * Q_HEADS * HEAD_DIM / 2];
    attend(&mut pool, kernel, &shape, &cache, 0, &[span], queries, &mut out);
    unpack(&out)
}

fn unpack(pairs: &[u32]) -> Vec<f32> {
    let both = |pair: &u32| [from_bf16(*pair as u16), from_bf16((pair >> 16) as u16)];
    pairs.iter().flat_map(both).collect()
}

/// Softmax attention of one query over the first `seen` positions.
fn plain(query: &[f64], keys: &Rows, values: &Rows, head: usize, seen: usize) -> Vec<f64> {
    let dot = |key: &[f32]| -> f64 { query.iter().zip(key).map(|(q, k)| q * f64::from(*k)).sum() };
    let scores = keys[..seen]
        .iter()
        .map(|key| dot(&key[head]) / (HEAD_DIM as f64).sqrt());
    let scores: Vec<f64> = scores.collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mass: f64 = scores.iter().map(|score| (score - most).exp()).sum();
    let mut out = vec![0.0; HEAD_DIM];
    for (score, value) in scores.iter().zip(values) {
        let weight = (score - most).exp() / mass;
        for (out, value) in out.iter_mut().zip(&value[head]) {
            *out += weight * f64::from(*value);
        }
    }
    out
}

#[test]
fn both_types_read_what_the_definition_does() {
    let mut random = Random(3);
    // Scores from about -4 to 4, so that many positions count.
    let (keys, values) = (random_rows(&mut random, -13), random_rows(&mut random, -9));
    for len in [1, 3] {
        let queries: Vec<f32> = (0..len * Q_HEADS * HEAD_DIM)
            .map(|_| (random.next() % 2001) as f32 / 500.0 - 2.0)
            .collect();
        let (mut high, mut low) = (vec![0; queries.len() / 2], vec![0; queries.len() / 2]);
        vector::split(Kernel::detect(), &queries, &mut high, &mut low);
        let parts = (unpack(&high), unpack(&low));
        let exact = parts.0.iter().zip(&parts.1);
        let exact: Vec<f64> = exact
            .map(|(high, low)| f64::from(*high) + f64::from(*low))
            .collect();
        let want: Vec<f64> = (0..len * Q_HEADS)
            .flat_map(|row| {
                let (token, head) = (row / Q_HEADS, row % Q_HEADS / (Q_HEADS / KV_HEADS));
                let query = &exact[row * HEAD_DIM..][..HEAD_DIM];
                plain(query, &keys, &values, head, POSITIONS - len + token + 1)
            })
            .collect();
        for dtype in [KvDtype::Bf16, KvDtype::Fp8E4m3] {
            for block_size in [16, 32, 64] {
                let got = attended(
                    dtype,
                    block_size,
                    Kernel::detect().level(),
                    (&keys, &values),
                    [&high, &low],
                    len,
                );
                for (got, want) in got.iter().zip(&want) {
                    // The result is rounded to bf16, and sums are in f32.
                    let error = (f64::from(*got) - want).abs();
                    assert!(
                        error <= want.abs() / 250.0 + 1e-4,
                        "{dtype:?} in blocks of {block_size}: {got} for {want}"
                    );
                }
            }
        }
    }
}

/// Whoever sees a key or a value that is not finite reads NaN, and nobody else does.
#[test]
fn a_nan_reaches_those_that_see_it_and_no_others() {
    let mut random = Random(5);
    let (keys, values) = (random_rows(&mut random, -13), random_rows(&mut random, -9));
    let queries = vec![0x3f80_3f80; 4 * Q_HEADS * HEAD_DIM / 2];
    let zeros = vec![0; queries.len()];
    for bad in [f32::NAN, f32::INFINITY] {
        for (of_key, of_value) in [(true, false), (false, true)] {
            let (mut keys, mut values) = (keys.clone(), values.clone());
            for (rows, is_bad) in [(&mut keys, of_key), (&mut values, of_value)] {
                if is_bad {
                    rows[POSITIONS - 2][0][17] = bad;
                }
            }
            let rows = (&keys, &values);
            let level = Kernel::detect().level();
            let got = attended(KvDtype::Fp8E4m3, 16, level, rows, [&queries, &zeros], 4);
            for (row, got) in got.chunks_exact(HEAD_DIM).enumerate() {
                let sees = row / Q_HEADS >= 2 && row % Q_HEADS < Q_HEADS / KV_HEADS;
                assert!(
                    got.iter().all(|value| value.is_nan() == sees),
                    "row {row}: {got:?}"
                );
            }
        }
    }
}
