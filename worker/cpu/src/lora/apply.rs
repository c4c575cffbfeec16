//! Adding adapters to products.

use super::Segment;
use super::packed::{Site, SiteFactors};
use crate::disjoint::DisjointSlice;
use crate::kernel::{Kernel, vector};
use crate::layout::Role;
use crate::leaves::LeafProgram;
use crate::matmul::{Inputs, Piece, Place, Write, multiply_pieces};
use crate::pool::Pool;

/// Rows of one piece of `A · x`, which has few outputs to share among threads.
const ROWS: usize = 32;
/// Rows per task of rounding.
const ROWS_PER_TASK: usize = 16;

/// The segments that have something at a site of a layer.
pub(crate) struct AtSite<'a> {
    segments: Vec<(&'a Segment, &'a SiteFactors)>,
}

impl<'a> AtSite<'a> {
    pub(crate) fn new(segments: &'a [Segment], layer: usize, site: Site) -> Self {
        let all = segments.iter();
        let segments = all.filter_map(|segment| Some((segment, segment.adapter.at(layer, site)?)));
        Self {
            segments: segments.collect(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Sums of `A · x` of a row at most.
    pub(crate) fn width(&self) -> usize {
        self.segments
            .iter()
            .map(|(_, factors)| factors.a.outputs())
            .max()
            .unwrap_or(0)
    }

    /// `A · x` into columns from `column` on of `out`: `[roots, rows, stride]`, where only rows with adapters are written.
    /// `x` are the rows of `inputs`, and `leaves` the order of summation along them.
    pub(crate) fn down(
        &self,
        pool: &mut Pool,
        kernel: Kernel,
        (inputs, leaves): (Inputs<'_>, &LeafProgram),
        out: &mut [f32],
        (stride, column): (usize, usize),
    ) {
        let mut pieces = Vec::new();
        for (segment, factors) in &self.segments {
            let end = segment.first + segment.rows;
            for row in (segment.first..end).step_by(ROWS) {
                let rows = ROWS.min(end - row);
                pieces.push(Piece {
                    inputs: inputs.rows(row, rows),
                    matrix: factors.a.matrix(),
                    leaves,
                    place: Place {
                        target: 0,
                        row,
                        column,
                        stride,
                        root_rows: inputs.rows,
                    },
                    write: Write::Raw,
                });
            }
        }
        multiply_pieces(pool, kernel, &mut [out], &pieces);
    }

    /// Round what [`Self::down`] gave (its only root, or the root of the whole tree) to bf16: `pairs[row][self.width() / 2]`.
    pub(crate) fn round(
        &self,
        pool: &mut Pool,
        kernel: Kernel,
        sums: &[f32],
        (stride, column): (usize, usize),
        pairs: &mut [u32],
    ) {
        let (width, pairs) = (self.width() / 2, DisjointSlice::new(pairs));
        let rows: Vec<(usize, usize)> = self
            .segments
            .iter()
            .flat_map(|(segment, factors)| {
                (segment.first..segment.first + segment.rows).map(|row| (row, factors.a.outputs()))
            })
            .collect();
        pool.run(rows.len().div_ceil(ROWS_PER_TASK), &|task| {
            for (row, outputs) in rows.iter().skip(task * ROWS_PER_TASK).take(ROWS_PER_TASK) {
                // SAFETY: every row has its own part.
                let out = unsafe { pairs.part(row * width..row * width + outputs / 2) };
                vector::round(kernel, &sums[row * stride + column..][..*outputs], out);
            }
        });
    }

    /// Add `scale · B · pairs` to `out`, one buffer `[rows, outputs]` for each of `roles`.
    pub(crate) fn up(
        &self,
        pool: &mut Pool,
        kernel: Kernel,
        pairs: &[u32],
        rows: usize,
        (roles, out): (&[Role], &mut [&mut [f32]]),
    ) {
        let stride = self.width() / 2;
        let mut pieces = Vec::new();
        for (target, role) in roles.iter().enumerate() {
            for (segment, factors) in &self.segments {
                for part in factors.parts.iter().filter(|part| part.role == *role) {
                    let matrix = part.b.matrix();
                    let inputs = Inputs {
                        pairs: &pairs[part.at / 2..],
                        stride,
                        rows,
                    };
                    pieces.push(Piece {
                        inputs: inputs.rows(segment.first, segment.rows),
                        matrix,
                        leaves: &part.leaves,
                        place: Place {
                            target,
                            row: segment.first,
                            column: 0,
                            stride: matrix.n,
                            root_rows: rows,
                        },
                        write: Write::Added,
                    });
                }
            }
        }
        multiply_pieces(pool, kernel, out, &pieces);
    }
}
