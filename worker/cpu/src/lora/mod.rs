//! LoRA adapters on one rank: `scale · B · (A · x)` is added to `W · x` for the rows that ask for it.
//!
//! `A · x` is rounded to bf16, as everything that enters a product is. Where outputs are split over ranks, every rank has `A` whole
//! and the rows of `B` that are its own. Where inputs are split (`o`, `down`), every rank has the columns of `A` that are its own
//! and `B` whole; the sums of `A · x` join in the leaf tree of the product that they belong to, in the same exchange. So the bits
//! depend neither on the split nor on other rows, and rows without an adapter go the way that they go without any.
//!
//! | module | what it is |
//! |---|---|
//! | [`packed`] | an adapter's factors on this rank, packed |
//! | [`store`] | the adapters that are there |
//! | [`apply`] | adding them to products |

#[allow(
    clippy::indexing_slicing,
    reason = "loops over the rows of a batch, whose sums have the lengths that forming gave them"
)]
pub(crate) mod apply;
pub(crate) mod packed;
pub(crate) mod store;

use std::sync::Arc;

use llamero_settings::memory::{self, AdapterWidths};

use crate::attention::Span;
use crate::shape::Shape;
use packed::{PackedAdapter, Site};

/// Consecutive rows of a batch that have the same adapter.
#[derive(Clone)]
pub(crate) struct Segment {
    /// Index of the first row in the batch.
    pub(crate) first: usize,
    /// Number of rows.
    pub(crate) rows: usize,
    /// Theirs.
    pub(crate) adapter: Arc<PackedAdapter>,
}

/// The rows of `spans` that have adapters, in ascending order.
pub(crate) fn segments(spans: &[Span], adapters: Vec<Option<Arc<PackedAdapter>>>) -> Vec<Segment> {
    let mut all: Vec<Segment> = Vec::new();
    for (span, adapter) in spans.iter().zip(adapters) {
        let Some(adapter) = adapter else { continue };
        match all.last_mut() {
            Some(last) if last.first + last.rows == span.first && Arc::ptr_eq(&last.adapter, &adapter) => {
                last.rows += span.len;
            }
            _ => all.push(Segment {
                first: span.first,
                rows: span.len,
                adapter,
            }),
        }
    }
    all
}

/// What adapters may take: how many there are, and how large their ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LoraLimits {
    pub(crate) adapters: usize,
    /// Even, as everything is that enters a product.
    pub(crate) rank: usize,
}

impl LoraLimits {
    pub(crate) fn of(limits: &llamero_engine::FormLimits) -> Self {
        if limits.max_adapters == 0 {
            return Self::default();
        }
        Self {
            adapters: limits.max_adapters as usize,
            rank: (limits.max_adapter_rank as usize).next_multiple_of(2),
        }
    }

    /// Sums of `A · x` of a token at most, at the site that has most.
    pub(crate) fn widest(self) -> usize {
        let most = Site::ALL.map(|site| site.roles().len()).into_iter().max();
        self.rank.saturating_mul(most.unwrap_or(0))
    }

    /// Sums of `A · x` of a token at most that travel with a reduction.
    pub(crate) fn reduced(self) -> usize {
        self.rank
    }

    /// Bytes of all adapters on a rank of that shape.
    pub(crate) fn bytes(self, shape: &Shape) -> u64 {
        let widths = AdapterWidths {
            hidden: shape.hidden as u64,
            q: shape.q_width() as u64,
            kv: shape.kv_width() as u64,
            ffn: shape.ffn as u64,
            layers: shape.layers as u64,
        };
        memory::adapter(widths, self.rank as u64).saturating_mul(self.adapters as u64)
    }
}
