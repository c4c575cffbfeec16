//! Attention against doubles, at the edges of chunks and blocks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{close, numbers, of_bf16, ops, padded, to_bf16};
use llamero_cuda::ops::{AttentionShape, Cache, Ops, Places};
use llamero_gpu_emulator::emulated;
use llamero_gpu_emulator::harness::ORDERS;

/// Rows of a batch over one cache: what each sees, and its blocks.
struct Batch {
    shape: AttentionShape,
    q: Vec<f32>,
    keys: Vec<u16>,
    values: Vec<u16>,
    contexts: Vec<usize>,
    tables: Vec<u32>,
}

impl Batch {
    fn new(q_heads: usize, kv_heads: usize, dim: usize, block_tokens: usize, contexts: &[usize]) -> Self {
        let longest = *contexts.iter().max().unwrap();
        let table_stride = longest.div_ceil(block_tokens);
        let shape = AttentionShape {
            q_heads,
            kv_heads,
            group: q_heads / kv_heads,
            skipped: 0,
            dim,
            block_tokens,
            table_stride,
            longest,
            leaf_width: dim,
        };
        let blocks = contexts.len() * table_stride;
        let size = blocks * kv_heads * block_tokens * dim;
        let mut tables: Vec<u32> = (0..blocks as u32).collect();
        // Blocks of a row do not lie in order.
        tables.reverse();
        Self {
            shape,
            q: numbers(1, contexts.len() * q_heads * dim)
                .iter()
                .map(|x| 4.0 * x)
                .collect(),
            keys: to_bf16(&numbers(2, size)),
            values: to_bf16(&numbers(3, size)),
            contexts: contexts.to_vec(),
            tables,
        }
    }

    fn place(&self, row: usize, kv_head: usize, position: usize) -> usize {
        let AttentionShape {
            kv_heads,
            dim,
            block_tokens,
            table_stride,
            ..
        } = self.shape;
        let block = self.tables[row * table_stride + position / block_tokens] as usize;
        ((block * kv_heads + kv_head) * block_tokens + position % block_tokens) * dim
    }

    fn wanted(&self) -> Vec<f64> {
        let AttentionShape {
            q_heads,
            kv_heads,
            dim,
            ..
        } = self.shape;
        let mut out = Vec::new();
        for (row, context) in self.contexts.iter().enumerate() {
            for head in 0..q_heads {
                let q = &self.q[(row * q_heads + head) * dim..][..dim];
                let place = |position| self.place(row, head / (q_heads / kv_heads), position);
                let score = |position| -> f64 {
                    let keys = &self.keys[place(position)..][..dim];
                    q.iter()
                        .zip(keys)
                        .map(|(q, k)| f64::from(*q) * of_bf16(*k))
                        .sum::<f64>()
                        / (dim as f64).sqrt()
                };
                let scores: Vec<f64> = (0..*context).map(score).collect();
                let top = scores.iter().copied().fold(f64::MIN, f64::max);
                let mass: f64 = scores.iter().map(|score| (score - top).exp()).sum();
                let value = |i: usize| -> f64 {
                    let weighted = |(position, score): (usize, &f64)| {
                        (score - top).exp() * of_bf16(self.values[place(position) + i])
                    };
                    scores.iter().enumerate().map(weighted).sum::<f64>() / mass
                };
                out.extend(padded(&(0..dim).map(value).collect::<Vec<_>>(), dim));
            }
        }
        out
    }

    /// The rows of `which`.
    fn run(&self, ops: &mut Ops, which: std::ops::Range<usize>) -> Vec<u16> {
        let (rows, stream) = (which.len(), ops.stream().clone());
        let AttentionShape { q_heads, dim, .. } = self.shape;
        let width = q_heads * dim;
        let shape = AttentionShape {
            longest: *self.contexts[which.clone()].iter().max().unwrap(),
            ..self.shape
        };
        let q = stream
            .clone_htod(&self.q[which.start * width..which.end * width])
            .unwrap();
        let [keys, values] = [&self.keys, &self.values].map(|values| stream.clone_htod(values).unwrap());
        let positions: Vec<u32> = self.contexts[which.clone()]
            .iter()
            .map(|context| *context as u32 - 1)
            .collect();
        let positions = stream.clone_htod(&positions).unwrap();
        let tables = stream.clone_htod(&self.tables).unwrap();
        let slots: Vec<u32> = which.clone().map(|row| row as u32).collect();
        let slots = stream.clone_htod(&slots).unwrap();
        let mut parts = stream.alloc_zeros(shape.parts(rows)).unwrap();
        let mut y = stream.alloc_zeros(rows * width).unwrap();
        let cache = Cache {
            keys: &keys,
            values: &values,
        };
        let places = Places {
            positions: &positions,
            slots: &slots,
            tables: &tables,
        };
        ops.attention(shape, &q, &cache, &places, &mut parts, &mut y, rows)
            .unwrap();
        stream.clone_dtoh(&y).unwrap()
    }

    fn check(&self) {
        let mut ops = ops();
        let all = self.run(&mut ops, 0..self.contexts.len());
        close(all.iter().map(|y| of_bf16(*y)), &self.wanted(), 4e-3);
        let width = self.shape.q_heads * self.shape.dim;
        for row in 0..self.contexts.len() {
            let alone = self.run(&mut ops, row..row + 1);
            assert_eq!(
                alone,
                all[row * width..][..width],
                "a row of {} tokens alone",
                self.contexts[row]
            );
        }
    }
}

emulated! {
    fn three_heads_share_one_of_64() on ORDERS, {
        Batch::new(9, 3, 64, 16, &[1, 255, 256, 257, 600]).check();
    }

    fn four_heads_share_one_of_128() on ORDERS, {
        Batch::new(8, 2, 128, 32, &[33, 513]).check();
    }

    fn sixteen_heads_share_one() on ["order=forward"], {
        Batch::new(16, 1, 128, 256, &[300]).check();
    }

    fn shapes_without_a_kernel_are_refused() on ["order=forward"], {
        let mut batch = Batch::new(2, 1, 64, 16, &[3]);
        batch.shape.dim = 96;
        let stream = ops().stream().clone();
        let (mut parts, mut y) = (stream.alloc_zeros(1).unwrap(), stream.alloc_zeros(1).unwrap());
        let (q, bits) = (stream.alloc_zeros(1).unwrap(), stream.alloc_zeros(1).unwrap());
        let words = stream.alloc_zeros::<u32>(1).unwrap();
        let cache = Cache { keys: &bits, values: &bits };
        let places = Places { positions: &words, slots: &words, tables: &words };
        let error = ops().attention(batch.shape, &q, &cache, &places, &mut parts, &mut y, 1).unwrap_err();
        assert!(error.to_string().contains("no attention kernel"), "{error}");
    }
}
