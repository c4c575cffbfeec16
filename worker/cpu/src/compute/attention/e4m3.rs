//! Products with keys and values in E4M3. High and low parts are rows of one tile, each with a sum of its own, so that a code is
//! widened once for both of them and for all rows of a group; the two sums join at the end.

use super::{CHUNK, MAX_HEAD_DIM, Queries, Scores, Values, Weights, Worker};
use crate::kernel::pack::{Element, LANES};
use crate::kernel::tile::{MAX_ROWS, Tile};

/// Rows of a task whose two parts are multiplied at once.
pub(super) const AT_ONCE: usize = MAX_ROWS / 2;

impl Worker<'_> {
    /// First row and number of rows of each group.
    fn at_once(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let rows = self.task.len;
        (0..rows)
            .step_by(AT_ONCE)
            .map(move |first| (first, AT_ONCE.min(rows - first)))
    }

    /// Products of all rows with the codes of the keys of the positions `chunk .. chunk + end`.
    pub(super) fn score_codes(&self, queries: &Queries, chunk: usize, end: usize, scores: &mut Scores) {
        let pairs = self.shape.head_dim / 2;
        for at in (0..end).step_by(LANES) {
            let table = &self.task.span.table;
            let (lower, upper) = self.cache.keys(self.layer, table, self.task.kv_head, chunk + at);
            for (first, rows) in self.at_once() {
                let mut sums = [0.0; MAX_ROWS * LANES];
                let tile = Tile {
                    element: Element::E4m3,
                    weights: lower,
                    upper,
                    block_stride: 0,
                    blocks: 1,
                    steps: pairs,
                    inputs: &queries[2 * first * pairs..],
                    input_stride: pairs,
                    rows: 2 * rows,
                };
                tile.run(self.kernel, &mut sums);
                for i in 0..rows {
                    join(
                        &sums,
                        (i, rows + i),
                        &mut scores[(first + i) * CHUNK + at..][..LANES],
                    );
                }
            }
        }
    }

    /// Sums of the codes of the values of the positions `chunk .. chunk + end` by weight, `[group of lanes][row][lane]`.
    pub(super) fn sum_codes(&self, weights: &Weights, chunk: usize, end: usize, sums: &mut Values) {
        let kv = self.cache.shape();
        for (first, rows) in self.at_once() {
            let mut parts = [0.0; 2 * AT_ONCE * MAX_HEAD_DIM];
            for at in (0..end).step_by(kv.tile()) {
                let table = &self.task.span.table;
                let values = self
                    .cache
                    .values(self.layer, table, self.task.kv_head, chunk + at);
                let tile = Tile {
                    element: Element::E4m3,
                    weights: values,
                    upper: None,
                    block_stride: kv.value_group(),
                    blocks: kv.groups(),
                    steps: kv.tile() / 2,
                    inputs: &weights[first * CHUNK + at / 2..],
                    input_stride: CHUNK / 2,
                    rows: 2 * rows,
                };
                tile.run(self.kernel, &mut parts);
            }
            for group in 0..kv.groups() {
                for i in 0..rows {
                    let high = group * 2 * rows + i;
                    let to = group * self.task.len + first + i;
                    join(&parts, (high, high + rows), &mut sums[to * LANES..][..LANES]);
                }
            }
        }
    }
}

/// The sum of a high part and its low part, each 32 lanes of `sums`.
#[inline(always)]
fn join(sums: &[f32], (high, low): (usize, usize), to: &mut [f32]) {
    let lanes = |row: usize| &sums[row * LANES..][..LANES];
    for ((to, high), low) in to.iter_mut().zip(lanes(high)).zip(lanes(low)) {
        *to = high + low;
    }
}
