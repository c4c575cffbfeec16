//! Causal attention over the paged cache.
//!
//! Each query row walks over absolute chunks of 256 positions in order and merges their partial results by their
//! maxima (Milakov and Gimelshein, 2018). Nothing in a row's arithmetic depends on which rows share its tile, so other sequences and prefill
//! chunks do not change its bits: positions that a row must not see have the weight zero at the end of its chains.
//!
//! Queries and softmax weights enter the dot products as two bf16 parts each, so that attention adds hardly any rounding of its
//! own: some models amplify it at the first positions of a text.
//!
//! | module | what it is |
//! |---|---|
//! | `bf16` | products with keys and values in bf16 |
//! | `e4m3` | products with their codes, whose scales go to scores and softmax weights |

mod bf16;
mod e4m3;

use std::sync::Arc;

use crate::disjoint::DisjointSlice;
use crate::kernel::math::exp;
use crate::kernel::pack::{Element, LANES};
use crate::kernel::tile::MAX_ROWS;
use crate::kernel::{Kernel, vector};
use crate::kv::{CHUNK, Half, KvCache};
use crate::pool::Pool;
use crate::shape::Shape;

/// Consecutive tokens of one sequence in a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    /// Index of the first token in the batch.
    pub(crate) first: usize,
    /// Number of tokens.
    pub(crate) len: usize,
    /// Absolute position of the first token.
    pub(crate) start: usize,
    /// Physical blocks of the sequence.
    pub(crate) table: Arc<[u32]>,
}

/// Up to eight query rows of one sequence that attend to the same kv head.
struct Task<'a> {
    span: &'a Span,
    kv_head: usize,
    rows: [Row; MAX_ROWS],
    len: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Row {
    /// Index of the token in the batch.
    token: usize,
    /// The rank's query head.
    head: usize,
    position: usize,
}

/// Largest head that is supported, in elements.
pub(crate) const MAX_HEAD_DIM: usize = 256;

/// `out[token][head]` (bf16 pairs) of all tokens, from rotated `queries[token][head]`: the high and the low parts, each
/// bf16 pairs.
#[allow(
    clippy::too_many_arguments,
    reason = "what is read, where it goes, and who computes"
)]
pub(crate) fn attend(
    pool: &mut Pool,
    kernel: Kernel,
    shape: &Shape,
    cache: &KvCache,
    layer: usize,
    spans: &[Span],
    queries: [&[u32]; 2],
    out: &mut [u32],
) {
    let tasks = tasks(shape, spans);
    let out = DisjointSlice::new(out);
    pool.run(tasks.len(), &|index| {
        let worker = Worker {
            kernel,
            shape,
            cache,
            layer,
            task: &tasks[index],
        };
        worker.run(queries, &out);
    });
}

fn tasks<'a>(shape: &Shape, spans: &'a [Span]) -> Vec<Task<'a>> {
    let mut tasks = Vec::new();
    for span in spans {
        for kv_head in 0..shape.kv_heads {
            let heads: Vec<usize> = (0..shape.kv_of.len())
                .filter(|q| shape.kv_of[*q] == kv_head)
                .collect();
            let mut task = Task {
                span,
                kv_head,
                rows: [Row::default(); MAX_ROWS],
                len: 0,
            };
            for i in 0..span.len {
                for head in &heads {
                    if task.len == MAX_ROWS {
                        tasks.push(task);
                        task = Task {
                            span,
                            kv_head,
                            rows: [Row::default(); MAX_ROWS],
                            len: 0,
                        };
                    }
                    task.rows[task.len] = Row {
                        token: span.first + i,
                        head: *head,
                        position: span.start + i,
                    };
                    task.len += 1;
                }
            }
            tasks.push(task);
        }
    }
    // The longest first, so that threads end together.
    tasks.sort_by_key(|task| std::cmp::Reverse(task.rows[..task.len].last().map_or(0, |row| row.position)));
    tasks
}

/// One task, and what it reads.
struct Worker<'a> {
    kernel: Kernel,
    shape: &'a Shape,
    cache: &'a KvCache,
    layer: usize,
    task: &'a Task<'a>,
}

/// `[row][position of the chunk]`.
type Scores = [f32; MAX_ROWS * CHUNK];
/// The high and the low parts of softmax weights, bf16 pairs `[input][position of the chunk / 2]`; see [`Worker::input`].
type Weights = [u32; MAX_ROWS * CHUNK];
/// The high and the low parts of queries, bf16 pairs `[input][element / 2]`.
type Queries = [u32; MAX_ROWS * MAX_HEAD_DIM];
/// `[row][element]`, or in the order of the tiles that sum it up.
type Values = [f32; MAX_ROWS * MAX_HEAD_DIM];
/// Scales of the keys and of the values of a chunk's positions.
type Scales = [[f32; CHUNK]; 2];
/// Largest scaled score and sum of the weights of each row.
type Softmax = [(f32, f32); MAX_ROWS];

const UNSEEN: Softmax = [(f32::NEG_INFINITY, 0.0); MAX_ROWS];

impl Worker<'_> {
    fn run(&self, queries: [&[u32]; 2], out: &DisjointSlice<'_, u32>) {
        let Some(last) = self.rows().last() else { return };
        let queries = self.gather(queries);
        let mut scores = [0.0; MAX_ROWS * CHUNK];
        let mut weights = [0; MAX_ROWS * CHUNK];
        let mut total = [0.0; MAX_ROWS * MAX_HEAD_DIM];
        let mut state = UNSEEN;
        for chunk in (0..=last.position).step_by(CHUNK) {
            let end = CHUNK.min(last.position + 1 - chunk);
            let mut sums = [0.0; MAX_ROWS * MAX_HEAD_DIM];
            let part = match self.element() {
                Element::Bf16 => {
                    self.score(&queries, chunk, end, &mut scores);
                    let part = self.weigh(chunk, None, &mut scores, &mut weights);
                    self.sum_values(&weights, chunk, end, &mut sums);
                    part
                }
                Element::E4m3 => {
                    let scales = self.scales(chunk, end);
                    self.score_codes(&queries, chunk, end, &mut scores);
                    let part = self.weigh(chunk, Some(&scales), &mut scores, &mut weights);
                    self.sum_codes(&weights, chunk, end, &mut sums);
                    part
                }
            };
            self.merge(chunk, &part, &sums, &mut state, &mut total);
        }
        self.store(&state, &mut total, out);
    }

    fn rows(&self) -> &[Row] {
        &self.task.rows[..self.task.len]
    }

    /// Where the pairs of a row begin among those of all tokens and heads.
    fn place(&self, row: &Row) -> usize {
        (row.token * self.shape.kv_of.len() + row.head) * (self.shape.head_dim / 2)
    }

    fn element(&self) -> Element {
        self.cache.shape().element
    }

    /// Which row of the kernel's inputs the high (0) or the low (1) part of the task's row `i` is: all high parts before all low
    /// ones, or so by groups of rows that are multiplied at once.
    fn input(&self, part: usize, i: usize) -> usize {
        let at_once = match self.element() {
            Element::Bf16 => MAX_ROWS,
            Element::E4m3 => e4m3::AT_ONCE,
        };
        let first = i - i % at_once;
        2 * first + part * at_once.min(self.task.len - first) + i % at_once
    }

    /// The task's own queries, side by side.
    fn gather(&self, queries: [&[u32]; 2]) -> Queries {
        let pairs = self.shape.head_dim / 2;
        let mut gathered = [0; MAX_ROWS * MAX_HEAD_DIM];
        for (part, from) in queries.iter().enumerate() {
            for (i, row) in self.rows().iter().enumerate() {
                let at = self.place(row);
                gathered[self.input(part, i) * pairs..][..pairs].copy_from_slice(&from[at..at + pairs]);
            }
        }
        gathered
    }

    fn scales(&self, chunk: usize, end: usize) -> Scales {
        let mut scales = [[0.0; CHUNK]; 2];
        let (table, head) = (&self.task.span.table, self.task.kv_head);
        for (half, scales) in [Half::Keys, Half::Values].into_iter().zip(&mut scales) {
            self.cache
                .scales(self.layer, table, head, chunk, half, &mut scales[..end]);
        }
        scales
    }

    /// Softmax over the positions of the chunk that each row sees; the others weigh zero. Scales of keys go to the scores, those
    /// of values to the weights, but not to their sum.
    fn weigh(
        &self,
        chunk: usize,
        scales: Option<&Scales>,
        scores: &mut Scores,
        weights: &mut Weights,
    ) -> Softmax {
        let scale = 1.0 / (self.shape.head_dim as f32).sqrt();
        let mut part = UNSEEN;
        for (i, row) in self.rows().iter().enumerate() {
            let seen = (row.position + 1).saturating_sub(chunk).min(CHUNK);
            let scores = &mut scores[i * CHUNK..][..CHUNK];
            if let Some([keys, _]) = scales {
                vector::multiply(self.kernel, &mut scores[..seen], keys);
            }
            if seen > 0 {
                part[i] = vector::softmax_chunk(self.kernel, &mut scores[..seen], scale);
            }
            if let Some([_, values]) = scales {
                vector::multiply(self.kernel, &mut scores[..seen], values);
            }
            scores[seen..].fill(0.0);
            let (high, low) = weights.split_at_mut(self.input(1, i) * CHUNK / 2);
            let high = &mut high[self.input(0, i) * CHUNK / 2..][..CHUNK / 2];
            vector::split(self.kernel, scores, high, &mut low[..CHUNK / 2]);
        }
        part
    }

    /// Add a chunk's sums to the total of all chunks before it, both scaled to the larger maximum.
    fn merge(&self, chunk: usize, part: &Softmax, sums: &Values, state: &mut Softmax, total: &mut Values) {
        let rows = self.task.len;
        for i in 0..rows {
            let (max, mass) = part[i];
            if mass == 0.0 && max == f32::NEG_INFINITY {
                continue;
            }
            let most = if max > state[i].0 { max } else { state[i].0 };
            // The first chunk meets an empty state: its weight is then zero and ours one.
            let (a, b) = if chunk == 0 {
                (0.0, 1.0)
            } else {
                (exp(state[i].0 - most), exp(max - most))
            };
            state[i] = (most, state[i].1.mul_add(a, mass * b));
            for group in 0..self.cache.shape().groups() {
                let from = &sums[(group * rows + i) * LANES..][..LANES];
                let to = &mut total[i * MAX_HEAD_DIM + group * LANES..][..LANES];
                vector::merge(self.kernel, to, a, from, b);
            }
        }
    }

    /// Divide by the sums of the weights, round, and write to the places of the rows.
    fn store(&self, state: &Softmax, total: &mut Values, out: &DisjointSlice<'_, u32>) {
        let head_dim = self.shape.head_dim;
        for (i, row) in self.rows().iter().enumerate() {
            let values = &mut total[i * MAX_HEAD_DIM..][..head_dim];
            for value in &mut *values {
                *value /= state[i].1;
            }
            let at = self.place(row);
            // SAFETY: every (token, head) belongs to one row of one task.
            vector::round(self.kernel, values, unsafe { out.part(at..at + head_dim / 2) });
        }
    }
}

#[cfg(test)]
mod tests;
