//! Scratch memory of a rank for one step, and what it takes.

use llamero_engine::FormLimits;

use crate::collective::Collective;
use crate::lora::LoraLimits;
use crate::programs::Programs;
use crate::rope::Rope;
use crate::shape::Shape;

/// Positions whose logits are computed at a time: the head is read once for as many.
pub(crate) const LOGIT_ROWS: usize = 64;

/// Scratch memory for a number of tokens.
pub(crate) struct Workspace {
    pub(crate) residual: Vec<f32>,
    pub(crate) normed: Vec<u32>,
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
    /// The high and the low parts.
    pub(crate) queries: [Vec<u32>; 2],
    pub(crate) attended: Vec<u32>,
    pub(crate) gate: Vec<f32>,
    pub(crate) up: Vec<f32>,
    pub(crate) gated: Vec<u32>,
    pub(crate) roots: Vec<f32>,
    pub(crate) sum: Vec<f32>,
    /// `A · x` of the rows that have adapters.
    pub(crate) adapter_sums: Vec<f32>,
    /// The same in bf16.
    pub(crate) adapter_pairs: Vec<u32>,
    pub(crate) rope: Rope,
    /// `[LOGIT_ROWS, vocabulary of the rank]`.
    pub(crate) logits: Vec<f32>,
}

/// Elements of 4 bytes a token of each buffer but angles and logits.
struct Widths {
    hidden: usize,
    q: usize,
    kv: usize,
    ffn: usize,
    roots: usize,
    /// The residual stream's, and what adapters add to a sum.
    sum: usize,
    adapters: usize,
}

impl Widths {
    fn of(shape: &Shape, programs: &Programs, lora: LoraLimits) -> Self {
        let roots = [&programs.attention, &programs.ffn].map(|sum| sum.leaves.roots().len());
        let sum = shape.hidden.saturating_add(lora.reduced());
        Self {
            hidden: shape.hidden,
            q: shape.q_width(),
            kv: shape.kv_width(),
            ffn: shape.ffn,
            roots: sum.saturating_mul(roots.into_iter().fold(1, usize::max)),
            sum,
            adapters: lora.widest(),
        }
    }

    fn per_token(&self) -> usize {
        // residual, sum, normed; q, two queries, attended; k, v; gate, up, gated; roots; of adapters.
        [
            self.hidden,
            self.sum,
            self.hidden.div_ceil(2),
            self.q,
            self.q.div_ceil(2).saturating_mul(3),
            self.kv.saturating_mul(2),
            self.ffn.saturating_mul(2),
            self.ffn.div_ceil(2),
            self.roots,
            self.adapters,
            self.adapters.div_ceil(2),
        ]
        .into_iter()
        .fold(0, usize::saturating_add)
    }
}

/// Logits that are computed at a time: none before the last stage.
fn logit_values(shape: &Shape, tokens: usize) -> usize {
    if !shape.has_head {
        return 0;
    }
    tokens.min(LOGIT_ROWS).saturating_mul(shape.vocab_width())
}

impl Workspace {
    /// Room for `tokens` tokens, whose angles turn by `frequencies`, with adapters up to `lora`.
    pub(crate) fn new(
        shape: &Shape,
        programs: &Programs,
        frequencies: Vec<f64>,
        (tokens, lora): (usize, LoraLimits),
    ) -> Self {
        let widths = Widths::of(shape, programs, lora);
        let floats = |width: usize| vec![0.0f32; tokens.saturating_mul(width)];
        let pairs = |width: usize| vec![0u32; tokens.saturating_mul(width.div_ceil(2))];
        Self {
            residual: floats(widths.hidden),
            normed: pairs(widths.hidden),
            q: floats(widths.q),
            k: floats(widths.kv),
            v: floats(widths.kv),
            queries: [pairs(widths.q), pairs(widths.q)],
            attended: pairs(widths.q),
            gate: floats(widths.ffn),
            up: floats(widths.ffn),
            gated: pairs(widths.ffn),
            roots: floats(widths.roots),
            sum: floats(widths.sum),
            adapter_sums: floats(widths.adapters),
            adapter_pairs: pairs(widths.adapters),
            rope: Rope::new(frequencies, tokens),
            logits: vec![0.0; logit_values(shape, tokens)],
        }
    }

    /// Bytes of activations and of the buffers for exchanges, as [`Self::new`] and the collective allocate them.
    pub(crate) fn bytes(shape: &Shape, programs: &Programs, tokens: usize, lora: LoraLimits) -> usize {
        let widths = Widths::of(shape, programs, lora);
        let sums = [&programs.attention, &programs.ffn];
        let values = tokens.saturating_mul(widths.sum);
        let buffers = sums.map(|sum| Collective::buffer_bytes(&sum.reduction, shape.index, values));
        tokens
            .saturating_mul(widths.per_token())
            .saturating_mul(size_of::<f32>())
            .saturating_add(buffers.into_iter().fold(0, usize::max))
    }

    /// Bytes of logits, and of the hidden states of the sampled positions of every step in flight.
    pub(crate) fn logit_bytes(shape: &Shape, limits: &FormLimits) -> usize {
        if !shape.has_head {
            return 0;
        }
        let tokens = limits.max_batched_tokens as usize;
        let states = [tokens, shape.hidden, size_of::<u16>()]
            .into_iter()
            .fold(limits.steps_in_flight as usize, usize::saturating_mul);
        logit_values(shape, tokens)
            .saturating_mul(size_of::<f32>())
            .saturating_add(states)
    }

    /// What the buffers of this value take, without those of exchanges.
    #[cfg(test)]
    pub(crate) fn allocated(&self) -> (usize, usize, usize) {
        let floats = [
            &self.residual,
            &self.q,
            &self.k,
            &self.v,
            &self.gate,
            &self.up,
            &self.roots,
            &self.sum,
            &self.adapter_sums,
        ];
        let pairs = [
            &self.normed,
            &self.queries[0],
            &self.queries[1],
            &self.attended,
            &self.gated,
            &self.adapter_pairs,
        ];
        let of_floats: usize = floats.iter().map(|all| all.len()).sum();
        let of_pairs: usize = pairs.iter().map(|all| all.len()).sum();
        (
            4 * (of_floats + of_pairs),
            4 * self.logits.len(),
            self.rope.allocated(),
        )
    }
}
