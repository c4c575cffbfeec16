//! Matrix products: packed weights times rows of bf16 inputs.

use crate::disjoint::DisjointSlice;
use crate::kernel::pack::{Element, LANES};
use crate::kernel::tile::{MAX_ROWS, Tile, blocks_at_once};
use crate::kernel::{Kernel, vector};
use crate::leaves::{LeafProgram, Op};
use crate::pool::Pool;

/// Sums of one tile at most: 8 rows of one block, or 2 rows of 4 blocks.
const TILE_SUMS: usize = MAX_ROWS * LANES;

/// Packed weights `[n, k]` of one rank (see [`crate::kernel::pack`]).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    /// Element type.
    pub(crate) element: Element,
    /// Outputs.
    pub(crate) n: usize,
    /// Inputs of this rank.
    pub(crate) k: usize,
    /// The packed weights.
    pub(crate) weights: &'a [u8],
    /// Factor of each output, `[n]`.
    pub(crate) scale: &'a [f32],
}

/// Rows of bf16 pairs: row `r` starts at `r * stride`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) pairs: &'a [u32],
    pub(crate) stride: usize,
    pub(crate) rows: usize,
}

impl<'a> Inputs<'a> {
    /// Some of the rows.
    pub(crate) fn rows(self, first: usize, rows: usize) -> Self {
        Self {
            pairs: &self.pairs[first * self.stride..],
            stride: self.stride,
            rows,
        }
    }
}

/// Where a product goes: `values[root][row][column]`, with row `r` of a root at `r * stride`.
pub(crate) struct Product<'a> {
    pub(crate) matrix: Matrix<'a>,
    pub(crate) leaves: &'a LeafProgram,
    /// `[roots, rows, stride]`; only the first `n` columns of each row are written.
    pub(crate) out: &'a mut [f32],
    pub(crate) stride: usize,
    /// Multiply by the rows' scales: only for products that no reduction follows.
    pub(crate) scaled: bool,
}

/// A product of some rows into a part of a buffer that others write, too.
pub(crate) struct Piece<'a> {
    pub(crate) inputs: Inputs<'a>,
    pub(crate) matrix: Matrix<'a>,
    pub(crate) leaves: &'a LeafProgram,
    pub(crate) place: Place,
    pub(crate) write: Write,
}

/// Where a piece goes: `values[root][row + r][column + c]` of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Number of the buffer.
    pub(crate) target: usize,
    /// The piece's first row.
    pub(crate) row: usize,
    /// The piece's first column.
    pub(crate) column: usize,
    /// Values from one row to the next.
    pub(crate) stride: usize,
    /// Rows of a root.
    pub(crate) root_rows: usize,
}

/// How sums are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    /// As they are.
    Raw,
    /// Multiplied by the outputs' scales: only where no reduction follows.
    Scaled,
    /// The same, added to what is there.
    Added,
}

/// Compute all `products` of the same `inputs`; the work is shared by blocks of outputs.
pub(crate) fn multiply(pool: &mut Pool, kernel: Kernel, inputs: Inputs<'_>, products: &mut [Product<'_>]) {
    let mut targets = Vec::with_capacity(products.len());
    let mut pieces = Vec::with_capacity(products.len());
    for (target, product) in products.iter_mut().enumerate() {
        pieces.push(Piece {
            inputs,
            matrix: product.matrix,
            leaves: product.leaves,
            place: Place {
                target,
                row: 0,
                column: 0,
                stride: product.stride,
                root_rows: inputs.rows,
            },
            write: if product.scaled { Write::Scaled } else { Write::Raw },
        });
        targets.push(&mut *product.out);
    }
    multiply_pieces(pool, kernel, &mut targets, &pieces);
}

/// Compute all `pieces`; the work is shared by blocks of outputs.
///
/// # Panics
/// When pieces of one buffer are not in ascending order of their rows, or reach out of it.
pub(crate) fn multiply_pieces(
    pool: &mut Pool,
    kernel: Kernel,
    targets: &mut [&mut [f32]],
    pieces: &[Piece<'_>],
) {
    let targets: Vec<DisjointSlice<'_, f32>> =
        targets.iter_mut().map(|out| DisjointSlice::new(out)).collect();
    assert_apart(targets.len(), pieces);
    let parts: Vec<Part<'_>> = pieces
        .iter()
        .map(|piece| {
            let group = blocks_at_once(piece.inputs.rows.min(MAX_ROWS));
            Part {
                piece,
                group,
                tasks: piece.matrix.n.div_ceil(group * LANES),
                out: &targets[piece.place.target],
            }
        })
        .collect();
    let tasks = parts.iter().map(|part| part.tasks).sum();
    pool.run(tasks, &|mut task| {
        for part in &parts {
            if task < part.tasks {
                // Clearing a deep stack costs more than a small product.
                match part.piece.leaves.depth() {
                    1 => part.run::<1>(kernel, task * part.group),
                    2..=8 => part.run::<8>(kernel, task * part.group),
                    _ => part.run::<32>(kernel, task * part.group),
                }
                return;
            }
            task -= part.tasks;
        }
    });
}

/// No two pieces write the same place: those of one buffer have rows of their own.
fn assert_apart(targets: usize, pieces: &[Piece<'_>]) {
    let mut ends: Vec<(usize, Option<(usize, usize)>)> = vec![(0, None); targets];
    for Piece {
        inputs,
        matrix,
        place,
        ..
    } in pieces
    {
        let (end, form) = &mut ends[place.target];
        let own = (place.stride, place.root_rows);
        assert!(
            place.row >= *end && *form.get_or_insert(own) == own,
            "two pieces of a product share a row"
        );
        *end = place.row + inputs.rows;
        assert!(
            *end <= place.root_rows && place.column + matrix.n <= place.stride,
            "a piece of a product reaches out of its place"
        );
    }
}

struct Part<'a> {
    piece: &'a Piece<'a>,
    /// Blocks of a task.
    group: usize,
    tasks: usize,
    out: &'a DisjointSlice<'a, f32>,
}

impl Part<'_> {
    /// All rows of up to `self.group` blocks from block `first`, with at most `DEPTH` sums on the stack.
    fn run<const DEPTH: usize>(&self, kernel: Kernel, first: usize) {
        let Piece {
            inputs,
            matrix,
            leaves,
            place,
            ..
        } = *self.piece;
        let blocks = self.group.min(matrix.n.div_ceil(LANES) - first);
        let block_stride = matrix.element.block_bytes(matrix.k);
        let weights = &matrix.weights[first * block_stride..];
        let mut stack = [[0.0f32; TILE_SUMS]; DEPTH];
        for row in (0..inputs.rows).step_by(MAX_ROWS) {
            let rows = MAX_ROWS.min(inputs.rows - row);
            // The last rows may be fewer than the group was chosen for, never more.
            let sums = blocks * rows * LANES;
            for (root, ops) in leaves.roots().iter().enumerate() {
                let mut level = 0;
                for op in ops {
                    match *op {
                        Op::Leaf { start, steps } => {
                            let top = &mut stack[level][..sums];
                            top.fill(0.0);
                            let tile = Tile {
                                element: matrix.element,
                                weights: &weights[start * matrix.element.step_bytes()..],
                                upper: None,
                                block_stride,
                                blocks,
                                steps,
                                inputs: &inputs.pairs[row * inputs.stride + start..],
                                input_stride: inputs.stride,
                                rows,
                            };
                            tile.run(kernel, top);
                            level += 1;
                        }
                        Op::Join => {
                            level -= 1;
                            let (below, top) = stack.split_at_mut(level);
                            vector::join(kernel, &mut below[level - 1][..sums], &top[0][..sums]);
                        }
                    }
                }
                self.store(root * place.root_rows + row, rows, first, blocks, &stack[0]);
            }
        }
    }

    fn store(&self, first_row: usize, rows: usize, first_block: usize, blocks: usize, sums: &[f32]) {
        let Piece { matrix, place, .. } = self.piece;
        for block in 0..blocks {
            let column = (first_block + block) * LANES;
            let width = LANES.min(matrix.n - column);
            let scale = &matrix.scale[column..];
            for row in 0..rows {
                let from = &sums[(block * rows + row) * LANES..][..width];
                let at = (place.row + first_row + row) * place.stride + place.column + column;
                // SAFETY: pieces have rows of their own, blocks of outputs are disjoint between the tasks of one, and within a
                // task nothing else is alive.
                let to = unsafe { self.out.part(at..at + width) };
                match self.piece.write {
                    Write::Raw => to.copy_from_slice(from),
                    Write::Scaled => {
                        for ((to, from), scale) in to.iter_mut().zip(from).zip(scale) {
                            *to = from * scale;
                        }
                    }
                    Write::Added => {
                        for ((to, from), scale) in to.iter_mut().zip(from).zip(scale) {
                            *to += from * scale;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::pack::pack_row;
    use half::bf16;

    /// Small integers are exact in bf16 and f32, so any order gives the true product.
    #[test]
    fn products_of_small_integers_are_exact() {
        let (n, k) = (70, 24);
        let weight = |o: usize, i: usize| ((o * 7 + i * 5) % 13) as f32 - 6.0;
        let input = |r: usize, i: usize| ((r * 3 + i) % 9) as f32 - 4.0;
        let mut packed = vec![0; Element::Bf16.packed_bytes(n, k)];
        for o in 0..n {
            let bytes: Vec<u8> = (0..k)
                .flat_map(|i| bf16::from_f32(weight(o, i)).to_le_bytes())
                .collect();
            pack_row(Element::Bf16, &mut packed, k, o, 0, &bytes);
        }
        let scale: Vec<f32> = (0..n).map(|o| 1.0 + o as f32).collect();
        let matrix = Matrix {
            element: Element::Bf16,
            n,
            k,
            weights: &packed,
            scale: &scale,
        };
        let leaves = LeafProgram::tree(6, &(0..6).into(), 4);
        let mut pool = Pool::new(2, std::time::Duration::ZERO).unwrap();
        for rows in [1, 2, 5, 8, 19] {
            let pairs: Vec<u32> = (0..rows)
                .flat_map(|r| {
                    (0..k / 2).map(move |i| crate::kernel::math::pair(input(r, 2 * i), input(r, 2 * i + 1)))
                })
                .collect();
            let mut out = vec![f32::NAN; rows * 80];
            let product = Product {
                matrix,
                leaves: &leaves,
                out: &mut out,
                stride: 80,
                scaled: true,
            };
            let inputs = Inputs {
                pairs: &pairs,
                stride: k / 2,
                rows,
            };
            multiply(&mut pool, Kernel::detect(), inputs, &mut [product]);
            for r in 0..rows {
                for o in 0..n {
                    let want: f32 = (0..k).map(|i| input(r, i) * weight(o, i)).sum();
                    assert_eq!(out[r * 80 + o], want * scale[o], "row {r} output {o}");
                }
                assert!(
                    out[r * 80 + n..][..10].iter().all(|v| v.is_nan()),
                    "columns past n stay untouched"
                );
            }
        }
    }
}
