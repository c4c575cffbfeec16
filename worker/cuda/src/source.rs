//! The kernels' texts: what all share, then the file.

/// A file of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Products with weights for up to 64 rows.
    Product,
    /// Embedding, norms, rotary positions, SiLU.
    Layer,
    /// Attention of single rows over the paged cache.
    Attention,
    /// Candidates from logits.
    Candidates,
}

impl Source {
    /// All files.
    pub const ALL: [Self; 4] = [Self::Product, Self::Layer, Self::Attention, Self::Candidates];

    /// CUDA C++ that needs no header.
    #[must_use]
    pub fn text(self) -> String {
        let own = match self {
            Self::Product => include_str!("../kernels/product.cu"),
            Self::Layer => include_str!("../kernels/layer.cu"),
            Self::Attention => include_str!("../kernels/attention.cu"),
            Self::Candidates => include_str!("../kernels/candidates.cu"),
        };
        format!("{}\n{own}", include_str!("../kernels/common.cuh"))
    }
}
