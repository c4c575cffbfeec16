//! The forward pass of Llama on one rank (Touvron et al., 2023; Grattafiori et al., 2024).
//!
//! The residual stream is f32; what enters a matrix product is rounded to bf16; what leaves it is f32.

use llamero_engine::{BackendError, Collective, LeafLayout};

use crate::attention::{Span, attend};
use crate::kernel::math::from_bf16;
use crate::kernel::{Kernel, vector};
use crate::kv::KvCache;
use crate::layout::Role;
use crate::leaves::LeafProgram;
use crate::matmul::{Inputs, Matrix, Product, multiply};
use crate::pool::Pool;
use crate::rope::Rope;
use crate::shape::{Shape, leaf_count};
use crate::shared::Shared;
use crate::weights::Weights;

/// Rows per task of element-wise work.
const ROWS_PER_TASK: usize = 4;

/// The orders of summation of one rank's products.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    hidden: LeafProgram,
    pub(crate) attention: LeafProgram,
    pub(crate) ffn: LeafProgram,
}

impl Programs {
    pub(crate) fn new(shape: &Shape) -> Self {
        let tree = |layout: &LeafLayout, width| {
            LeafProgram::tree(leaf_count(layout), &layout.owners[shape.rank], width)
        };
        Self {
            hidden: LeafProgram::chain(shape.hidden),
            attention: tree(&shape.attention_leaves, shape.head_dim),
            ffn: tree(&shape.ffn_leaves, shape.ffn_leaf),
        }
    }
}

/// What a forward pass reads.
pub(crate) struct Model<'a> {
    pub(crate) kernel: Kernel,
    pub(crate) shape: &'a Shape,
    pub(crate) weights: &'a Weights,
    pub(crate) programs: &'a Programs,
    pub(crate) rope: &'a Rope,
}

/// Scratch memory for `tokens` tokens.
pub(crate) struct Workspace {
    residual: Vec<f32>,
    normed: Vec<u32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// The high and the low parts.
    queries: [Vec<u32>; 2],
    attended: Vec<u32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    gated: Vec<u32>,
    roots: Vec<f32>,
    sum: Vec<f32>,
}

impl Workspace {
    pub(crate) fn new(shape: &Shape, programs: &Programs, tokens: usize) -> Self {
        let roots = programs
            .attention
            .roots()
            .len()
            .max(programs.ffn.roots().len())
            .max(1);
        let floats = |width: usize| vec![0.0f32; tokens * width];
        let pairs = |width: usize| vec![0u32; tokens * width.div_ceil(2)];
        Self {
            residual: floats(shape.hidden),
            normed: pairs(shape.hidden),
            q: floats(shape.q_width()),
            k: floats(shape.kv_width()),
            v: floats(shape.kv_width()),
            queries: [pairs(shape.q_width()), pairs(shape.q_width())],
            attended: pairs(shape.q_width()),
            gate: floats(shape.ffn.len()),
            up: floats(shape.ffn.len()),
            gated: pairs(shape.ffn.len()),
            roots: floats(shape.hidden * roots),
            sum: floats(shape.hidden),
        }
    }
}

impl Model<'_> {
    /// Run `tokens` (of all `spans`, in order) through every layer, writing their keys and values to `cache`.
    pub(crate) fn run(
        &self,
        pool: &mut Pool,
        collective: &mut dyn Collective<Buffer = [f32]>,
        cache: &mut KvCache,
        work: &mut Workspace,
        tokens: &[u32],
        spans: &[Span],
    ) -> Result<(), BackendError> {
        let shape = self.shape;
        let rows = tokens.len();
        let hidden = shape.hidden;
        for (token, row) in tokens.iter().zip(work.residual.chunks_exact_mut(hidden)) {
            for (to, from) in row
                .iter_mut()
                .zip(self.weights.embedding(*token as usize, hidden))
            {
                *to = from_bf16(*from);
            }
        }
        for layer in 0..shape.layers {
            self.attention(pool, collective, cache, work, layer, rows, spans)?;
            self.feed_forward(pool, collective, work, layer, rows)?;
        }
        Ok(())
    }

    /// Logits of this rank's vocabulary for the batch's tokens `sampled`: `out[i][id]`.
    pub(crate) fn logits(&self, pool: &mut Pool, work: &mut Workspace, sampled: &[usize], out: &mut [f32]) {
        let hidden = self.shape.hidden;
        let layout = self.weights.layout();
        let weight = self.weights.floats(layout.final_norm, hidden);
        for (i, token) in sampled.iter().enumerate() {
            let row = &work.residual[token * hidden..][..hidden];
            let normed = &mut work.normed[i * hidden / 2..][..hidden / 2];
            vector::rms_norm(self.kernel, row, weight, self.shape.epsilon, normed);
        }
        let inputs = Inputs {
            pairs: &work.normed,
            stride: hidden / 2,
            rows: sampled.len(),
        };
        let head = self.weights.matrix(layout.head);
        multiply(pool, self.kernel, inputs, &mut [self.product(head, out)]);
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the step's state is borrowed part by part"
    )]
    fn attention(
        &self,
        pool: &mut Pool,
        collective: &mut dyn Collective<Buffer = [f32]>,
        cache: &mut KvCache,
        work: &mut Workspace,
        layer: usize,
        rows: usize,
        spans: &[Span],
    ) -> Result<(), BackendError> {
        let shape = self.shape;
        let at = &self.weights.layout().layers[layer];
        self.norm(pool, work, at.input_norm, rows);
        let matrix = |role| self.weights.matrix(at.matrix(role));
        let inputs = Inputs {
            pairs: &work.normed,
            stride: shape.hidden / 2,
            rows,
        };
        multiply(
            pool,
            self.kernel,
            inputs,
            &mut [
                self.product(matrix(Role::Q), &mut work.q),
                self.product(matrix(Role::K), &mut work.k),
                self.product(matrix(Role::V), &mut work.v),
            ],
        );
        self.rotate_and_store(cache, work, layer, spans);
        let queries = work
            .queries
            .each_ref()
            .map(|part| &part[..rows * shape.q_width() / 2]);
        attend(
            pool,
            self.kernel,
            shape,
            cache,
            layer,
            spans,
            queries,
            &mut work.attended,
        );
        let inputs = Inputs {
            pairs: &work.attended,
            stride: shape.q_width() / 2,
            rows,
        };
        let reduction = Reduction {
            leaves: &self.programs.attention,
            layout: &shape.attention_leaves,
        };
        self.reduce(
            pool,
            collective,
            inputs,
            matrix(Role::O),
            &reduction,
            &mut Sums {
                residual: &mut work.residual,
                roots: &mut work.roots,
                sum: &mut work.sum,
            },
        )
    }

    fn feed_forward(
        &self,
        pool: &mut Pool,
        collective: &mut dyn Collective<Buffer = [f32]>,
        work: &mut Workspace,
        layer: usize,
        rows: usize,
    ) -> Result<(), BackendError> {
        let shape = self.shape;
        let at = &self.weights.layout().layers[layer];
        self.norm(pool, work, at.post_norm, rows);
        let matrix = |role| self.weights.matrix(at.matrix(role));
        let inputs = Inputs {
            pairs: &work.normed,
            stride: shape.hidden / 2,
            rows,
        };
        multiply(
            pool,
            self.kernel,
            inputs,
            &mut [
                self.product(matrix(Role::Gate), &mut work.gate),
                self.product(matrix(Role::Up), &mut work.up),
            ],
        );
        let width = shape.ffn.len();
        let gated = Shared::new(&mut work.gated);
        per_row(pool, rows, &|row| {
            let (gate, up) = (
                &work.gate[row * width..][..width],
                &work.up[row * width..][..width],
            );
            // SAFETY: every row has its own part.
            let out = unsafe { gated.part(row * width / 2..(row + 1) * width / 2) };
            vector::silu_mul(self.kernel, gate, up, out);
        });
        let inputs = Inputs {
            pairs: &work.gated,
            stride: width / 2,
            rows,
        };
        let reduction = Reduction {
            leaves: &self.programs.ffn,
            layout: &shape.ffn_leaves,
        };
        self.reduce(
            pool,
            collective,
            inputs,
            matrix(Role::Down),
            &reduction,
            &mut Sums {
                residual: &mut work.residual,
                roots: &mut work.roots,
                sum: &mut work.sum,
            },
        )
    }

    fn norm(&self, pool: &mut Pool, work: &mut Workspace, weight: usize, rows: usize) {
        let hidden = self.shape.hidden;
        let weight = self.weights.floats(weight, hidden);
        let normed = Shared::new(&mut work.normed);
        per_row(pool, rows, &|row| {
            // SAFETY: every row has its own part.
            let out = unsafe { normed.part(row * hidden / 2..(row + 1) * hidden / 2) };
            let x = &work.residual[row * hidden..][..hidden];
            vector::rms_norm(self.kernel, x, weight, self.shape.epsilon, out);
        });
    }

    /// A product over the whole width in one chain, scaled, with rows side by side.
    fn product<'a>(&'a self, matrix: Matrix<'a>, out: &'a mut [f32]) -> Product<'a> {
        Product {
            matrix,
            leaves: &self.programs.hidden,
            out,
            stride: matrix.n,
            scaled: true,
        }
    }

    /// Turn queries and keys by their positions; round and store keys and values.
    fn rotate_and_store(&self, cache: &mut KvCache, work: &mut Workspace, layer: usize, spans: &[Span]) {
        let shape = self.shape;
        let (q_width, kv_width, head_dim) = (shape.q_width(), shape.kv_width(), shape.head_dim);
        for span in spans {
            for i in 0..span.len {
                let (token, position) = (span.first + i, span.start + i);
                let (cos, sin) = self.rope.at(position);
                let q = &mut work.q[token * q_width..][..q_width];
                q.chunks_exact_mut(head_dim)
                    .for_each(|head| vector::rotate(self.kernel, head, cos, sin));
                let [high, low] = work
                    .queries
                    .each_mut()
                    .map(|part| &mut part[token * q_width / 2..][..q_width / 2]);
                vector::split(self.kernel, q, high, low);
                let keys = work.k[token * kv_width..][..kv_width].chunks_exact_mut(head_dim);
                let values = work.v[token * kv_width..][..kv_width].chunks_exact(head_dim);
                for (head, (key, value)) in keys.zip(values).enumerate() {
                    vector::rotate(self.kernel, key, cos, sin);
                    cache.write(layer, &span.table, head, position, key, value);
                }
            }
        }
    }

    /// Add a product that is split by inputs over all ranks to the residual stream.
    fn reduce(
        &self,
        pool: &mut Pool,
        collective: &mut dyn Collective<Buffer = [f32]>,
        inputs: Inputs<'_>,
        matrix: Matrix<'_>,
        reduction: &Reduction<'_>,
        sums: &mut Sums<'_>,
    ) -> Result<(), BackendError> {
        let (rows, hidden) = (inputs.rows, matrix.n);
        let roots = &mut sums.roots[..reduction.leaves.roots().len() * rows * hidden];
        let product = Product {
            matrix,
            leaves: reduction.leaves,
            out: roots,
            stride: hidden,
            scaled: false,
        };
        multiply(pool, self.kernel, inputs, &mut [product]);
        // A lone rank's only root is the root of the tree.
        let total: &[f32] = if collective.world() == 1 {
            &sums.roots[..rows * hidden]
        } else {
            let sum = &mut sums.sum[..rows * hidden];
            let roots = &sums.roots[..reduction.leaves.roots().len() * rows * hidden];
            collective.reduce_tree(reduction.layout, rows, hidden, roots, sum)?;
            sum
        };
        for (out, total) in sums
            .residual
            .chunks_exact_mut(hidden)
            .zip(total.chunks_exact(hidden))
        {
            vector::add_scaled(self.kernel, out, total, matrix.scale);
        }
        Ok(())
    }
}

struct Reduction<'a> {
    leaves: &'a LeafProgram,
    layout: &'a LeafLayout,
}

struct Sums<'a> {
    residual: &'a mut [f32],
    roots: &'a mut [f32],
    sum: &'a mut [f32],
}

/// Run `row(0)` … `row(rows - 1)` on the pool, a few rows a task.
fn per_row(pool: &mut Pool, rows: usize, row: &(dyn Fn(usize) + Sync)) {
    pool.run(rows.div_ceil(ROWS_PER_TASK), &|task| {
        (task * ROWS_PER_TASK..((task + 1) * ROWS_PER_TASK).min(rows)).for_each(row);
    });
}
