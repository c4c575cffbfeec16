//! Products with keys and values in bf16: those of the low parts go on where those of the high parts end, in one chain.

use super::{CHUNK, Queries, Scores, Values, Weights, Worker};
use crate::kernel::pack::{Element, LANES};
use crate::kernel::tile::{MAX_ROWS, Tile};

impl Worker<'_> {
    /// Products of all rows with the keys of the positions `chunk .. chunk + end`.
    pub(super) fn score(&self, queries: &Queries, chunk: usize, end: usize, scores: &mut Scores) {
        let (rows, pairs) = (self.task.len, self.shape.head_dim / 2);
        for at in (0..end).step_by(LANES) {
            let mut sums = [0.0; MAX_ROWS * LANES];
            let table = &self.task.span.table;
            let (lower, upper) = self.cache.keys(self.layer, table, self.task.kv_head, chunk + at);
            let tile = Tile {
                element: Element::Bf16,
                weights: lower,
                upper,
                block_stride: 0,
                blocks: 1,
                steps: pairs,
                inputs: queries,
                input_stride: pairs,
                rows,
            };
            tile.run(self.kernel, &mut sums);
            Tile {
                inputs: &queries[rows * pairs..],
                ..tile
            }
            .run(self.kernel, &mut sums);
            for i in 0..rows {
                scores[i * CHUNK + at..][..LANES].copy_from_slice(&sums[i * LANES..][..LANES]);
            }
        }
    }

    /// Sums of the values of the positions `chunk .. chunk + end` by weight, `[group of lanes][row][lane]`.
    pub(super) fn sum_values(&self, weights: &Weights, chunk: usize, end: usize, sums: &mut Values) {
        let (kv, rows) = (self.cache.shape(), self.task.len);
        let sums = &mut sums[..kv.groups() * rows * LANES];
        // By 32 positions for every size of blocks, so that the order of summation is one.
        for at in (0..end).step_by(LANES) {
            for part in [0, rows] {
                let weights = &weights[part * CHUNK / 2..];
                for at in (at..(at + LANES).min(end)).step_by(kv.tile()) {
                    let table = &self.task.span.table;
                    let values = self
                        .cache
                        .values(self.layer, table, self.task.kv_head, chunk + at);
                    let tile = Tile {
                        element: Element::Bf16,
                        weights: values,
                        upper: None,
                        block_stride: kv.value_group(),
                        blocks: kv.groups(),
                        steps: kv.tile() / 2,
                        inputs: &weights[at / 2..],
                        input_stride: CHUNK / 2,
                        rows,
                    };
                    tile.run(self.kernel, sums);
                }
            }
        }
    }
}
