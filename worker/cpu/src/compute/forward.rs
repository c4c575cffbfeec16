//! The forward pass of Llama on one rank (Touvron et al., 2023; Grattafiori et al., 2024).
//!
//! The residual stream is f32; what enters a matrix product is rounded to bf16; what leaves it is f32.

use llamero_engine::{BackendError, MeshError, StepProgress};

use crate::attention::{Span, attend};
use crate::collective::Collective;
use crate::disjoint::DisjointSlice;
use crate::kernel::math::from_bf16;
use crate::kernel::{Kernel, vector};
use crate::kv::KvCache;
use crate::layout::Role;
use crate::lora::Segment;
use crate::lora::apply::AtSite;
use crate::lora::packed::Site;
use crate::matmul::{Inputs, Matrix, Product, multiply};
use crate::pool::Pool;
use crate::programs::Programs;
use crate::shape::Shape;
use crate::weights::Weights;
use crate::workspace::Workspace;

/// Rows per task of element-wise work.
const ROWS_PER_TASK: usize = 4;

/// What a forward pass reads.
pub(crate) struct Model<'a> {
    pub(crate) kernel: Kernel,
    pub(crate) shape: &'a Shape,
    pub(crate) weights: &'a Weights,
    pub(crate) programs: &'a Programs,
}

/// What a forward pass works with.
pub(crate) struct Machine<'a> {
    pub(crate) pool: &'a mut Pool,
    pub(crate) collective: &'a mut Collective,
    pub(crate) cache: &'a mut KvCache,
    pub(crate) work: &'a mut Workspace,
    pub(crate) progress: &'a StepProgress,
    /// Only the weights are to be touched: this rank has no peers to hear from, and nobody uses what it computes.
    pub(crate) is_warm_up: bool,
}

/// What is computed in a step.
pub(crate) struct Batch<'a> {
    /// Of all spans, in order.
    pub(crate) tokens: &'a [u32],
    pub(crate) spans: &'a [Span],
    /// Rows that have adapters.
    pub(crate) segments: &'a [Segment],
}

impl Model<'_> {
    /// Run the tokens of `batch` through every layer of the stage, writing their keys and values to the cache. The
    /// first stage looks the tokens up; the others take the residual stream from the stage before, f32 as it is, so that the
    /// bits do not depend on where the model is cut.
    pub(crate) fn run(&self, machine: &mut Machine<'_>, batch: &Batch<'_>) -> Result<(), BackendError> {
        let rows = batch.tokens.len();
        machine.work.rope.turn(batch.spans);
        let residual = ..rows * self.shape.hidden;
        if self.shape.has_embedding {
            self.embed(machine, batch.tokens)?;
        } else if machine.is_warm_up {
            machine.work.residual[residual].fill(0.0);
        } else {
            machine
                .collective
                .take_over(&mut machine.work.residual[residual])?;
        }
        for layer in 0..self.shape.layers {
            if machine.progress.is_stopped() {
                return Err(MeshError::Aborted.into());
            }
            self.attention(machine, layer, batch)?;
            self.feed_forward(machine, layer, batch)?;
            machine.progress.layer();
        }
        if !self.shape.has_head && !machine.is_warm_up {
            machine.collective.pass_on(&machine.work.residual[residual])?;
        }
        Ok(())
    }

    /// Look the tokens up. Every rank has the rows of its own vocabulary and sends those of the batch to all others, as
    /// they are stored: that is exact.
    fn embed(&self, machine: &mut Machine<'_>, tokens: &[u32]) -> Result<(), BackendError> {
        let Machine {
            collective,
            work,
            is_warm_up,
            ..
        } = machine;
        let (shape, hidden) = (self.shape, self.shape.hidden);
        let len = tokens.len() * hidden;
        // Two halves of a buffer that is free until the first sum.
        let (mine, all) = bytemuck::cast_slice_mut::<f32, u16>(&mut work.sum[..len]).split_at_mut(len);
        let owner = |token: u32| shape.vocabularies.iter().position(|vocab| vocab.contains(token));
        let owners: Vec<usize> = tokens.iter().map(|token| owner(*token).unwrap_or(0)).collect();
        let mut counts = vec![0; shape.vocabularies.len()];
        owners.iter().for_each(|owner| counts[*owner] += hidden);
        let mut free = mine.chunks_exact_mut(hidden);
        for row in tokens.iter().filter_map(|token| shape.vocab.position(*token)) {
            if let Some(out) = free.next() {
                self.weights.embed(row as usize, out);
            }
        }
        let mine = &mine[..counts[shape.index]];
        if *is_warm_up {
            all.fill(0);
        } else if collective.world() == counts.len() {
            collective.all_gather(&counts, mine, all)?;
        } else {
            return Err(BackendError::Bug(format!(
                "a model that is split over {} ranks has the links of {}",
                counts.len(),
                collective.world()
            )));
        }
        // Where the next row of each owner is.
        let mut next: Vec<usize> = counts
            .iter()
            .scan(0, |end, count| Some(std::mem::replace(end, *end + count)))
            .collect();
        for (owner, out) in owners.iter().zip(work.residual.chunks_exact_mut(hidden)) {
            let row = &all[next[*owner]..][..hidden];
            next[*owner] += hidden;
            out.iter_mut()
                .zip(row)
                .for_each(|(to, from)| *to = from_bf16(*from));
        }
        Ok(())
    }

    /// The final norm of the batch's tokens `wanted`, as pairs `[wanted, hidden / 2]`; nothing before the last stage.
    pub(crate) fn final_norm(&self, work: &Workspace, wanted: &[usize]) -> Vec<u32> {
        let hidden = self.shape.hidden;
        let Some(head) = self.weights.layout().head else {
            return Vec::new();
        };
        let weight = self.weights.floats(head.norm, hidden);
        let mut normed = vec![0; wanted.len() * hidden / 2];
        for (token, out) in wanted.iter().zip(normed.chunks_exact_mut(hidden / 2)) {
            let row = &work.residual[token * hidden..][..hidden];
            vector::rms_norm(self.kernel, row, weight, self.shape.epsilon, out);
        }
        normed
    }

    /// Logits of this rank's vocabulary: `out[row][id]`, from what [`Self::final_norm`] gave.
    pub(crate) fn logits(&self, pool: &mut Pool, normed: &[u32], out: &mut [f32]) {
        let stride = self.shape.hidden / 2;
        let inputs = Inputs {
            pairs: normed,
            stride,
            rows: normed.len() / stride,
        };
        let Some(head) = self.weights.layout().head else {
            return;
        };
        let head = self.weights.matrix(head.matrix);
        multiply(pool, self.kernel, inputs, &mut [self.product(head, out)]);
    }

    fn attention(
        &self,
        machine: &mut Machine<'_>,
        layer: usize,
        batch: &Batch<'_>,
    ) -> Result<(), BackendError> {
        let Machine {
            pool, cache, work, ..
        } = machine;
        let (shape, rows, spans) = (self.shape, batch.tokens.len(), batch.spans);
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
        self.adapt(pool, work, (layer, Site::Attention), batch);
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
        self.reduce(machine, (layer, Site::Output), batch)
    }

    fn feed_forward(
        &self,
        machine: &mut Machine<'_>,
        layer: usize,
        batch: &Batch<'_>,
    ) -> Result<(), BackendError> {
        let Machine { pool, work, .. } = machine;
        let (shape, rows) = (self.shape, batch.tokens.len());
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
        self.adapt(pool, work, (layer, Site::FeedForward), batch);
        let width = shape.ffn;
        let gated = DisjointSlice::new(&mut work.gated);
        per_row(pool, rows, &|row| {
            let (gate, up) = (
                &work.gate[row * width..][..width],
                &work.up[row * width..][..width],
            );
            // SAFETY: every row has its own part.
            let out = unsafe { gated.part(row * width / 2..(row + 1) * width / 2) };
            vector::silu_mul(self.kernel, gate, up, out);
        });
        self.reduce(machine, (layer, Site::Down), batch)
    }

    fn norm(&self, pool: &mut Pool, work: &mut Workspace, weight: usize, rows: usize) {
        let hidden = self.shape.hidden;
        let weight = self.weights.floats(weight, hidden);
        let normed = DisjointSlice::new(&mut work.normed);
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
                let (cos, sin) = work.rope.at(token);
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
                    cache.write(self.kernel, layer, &span.table, head, position, key, value);
                }
            }
        }
    }

    /// Add what adapters have at a site whose outputs are split over ranks.
    fn adapt(&self, pool: &mut Pool, work: &mut Workspace, (layer, site): (usize, Site), batch: &Batch<'_>) {
        let at = AtSite::new(batch.segments, layer, site);
        if at.is_empty() {
            return;
        }
        let rows = batch.tokens.len();
        let inputs = Inputs {
            pairs: &work.normed,
            stride: self.shape.hidden / 2,
            rows,
        };
        let place = (at.width(), 0);
        let reads = (inputs, &self.programs.hidden);
        at.down(pool, self.kernel, reads, &mut work.adapter_sums, place);
        let pairs = &mut work.adapter_pairs;
        at.round(pool, self.kernel, &work.adapter_sums, place, pairs);
        let (q, k, v, gate, up) = (
            &mut work.q,
            &mut work.k,
            &mut work.v,
            &mut work.gate,
            &mut work.up,
        );
        let mut out: Vec<&mut [f32]> = match site {
            Site::Attention => vec![q, k, v],
            _ => vec![gate, up],
        };
        at.up(pool, self.kernel, pairs, rows, (site.roles(), &mut out));
    }

    /// Add a product that is split by inputs over all ranks to the residual stream, and what adapters add to it.
    fn reduce(
        &self,
        machine: &mut Machine<'_>,
        (layer, site): (usize, Site),
        batch: &Batch<'_>,
    ) -> Result<(), BackendError> {
        let Machine {
            pool,
            collective,
            work,
            ..
        } = machine;
        let (pairs, sum) = match site {
            Site::Output => (&work.attended, &self.programs.attention),
            _ => (&work.gated, &self.programs.ffn),
        };
        let role = site.roles()[0];
        let matrix = self
            .weights
            .matrix(self.weights.layout().layers[layer].matrix(role));
        let (rows, hidden) = (batch.tokens.len(), matrix.n);
        let inputs = Inputs {
            pairs,
            stride: matrix.k / 2,
            rows,
        };
        let at = AtSite::new(batch.segments, layer, site);
        // Sums of adapters stand behind those of their rows, and travel with them.
        let stride = hidden + at.width();
        let roots = &mut work.roots[..sum.leaves.roots().len() * rows * stride];
        let product = Product {
            matrix,
            leaves: &sum.leaves,
            out: roots,
            stride,
            scaled: false,
        };
        multiply(pool, self.kernel, inputs, &mut [product]);
        if !at.is_empty() {
            let reads = (inputs, &sum.leaves);
            at.down(pool, self.kernel, reads, roots, (stride, hidden));
        }
        // A lone rank's only root is the root of the tree.
        let total: &[f32] = if collective.world() == 1 {
            &roots[..rows * stride]
        } else {
            let total = &mut work.sum[..rows * stride];
            collective.reduce_tree(&sum.reduction, roots, total)?;
            total
        };
        for (out, total) in work
            .residual
            .chunks_exact_mut(hidden)
            .zip(total.chunks_exact(stride))
        {
            vector::add_scaled(self.kernel, out, total, matrix.scale);
        }
        if !at.is_empty() {
            let pairs = &mut work.adapter_pairs;
            at.round(pool, self.kernel, total, (stride, hidden), pairs);
            let mut out: [&mut [f32]; 1] = [&mut work.residual];
            at.up(pool, self.kernel, pairs, rows, (&[role], &mut out));
        }
        Ok(())
    }
}

/// Run `row(0)` … `row(rows - 1)` on the pool, a few rows a task.
fn per_row(pool: &mut Pool, rows: usize, row: &(dyn Fn(usize) + Sync)) {
    pool.run(rows.div_ceil(ROWS_PER_TASK), &|task| {
        (task * ROWS_PER_TASK..((task + 1) * ROWS_PER_TASK).min(rows)).for_each(row);
    });
}
