//! The kernels' texts: what all share, then the file.

use sha2::{Digest, Sha256};

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
    /// Exchanges between ranks over memory of their GPUs.
    Exchange,
    /// Random numbers and reading at full speed: what measuring needs.
    Measure,
}

impl Source {
    /// All files.
    pub const ALL: [Self; 6] = [
        Self::Product,
        Self::Layer,
        Self::Attention,
        Self::Candidates,
        Self::Exchange,
        Self::Measure,
    ];

    /// CUDA C++ that needs no header.
    #[must_use]
    pub fn text(self) -> String {
        let own = match self {
            Self::Product => include_str!("../kernels/product.cu"),
            Self::Layer => include_str!("../kernels/layer.cu"),
            Self::Attention => include_str!("../kernels/attention.cu"),
            Self::Candidates => include_str!("../kernels/candidates.cu"),
            Self::Exchange => include_str!("../kernels/exchange.cu"),
            Self::Measure => include_str!("../kernels/measure.cu"),
        };
        format!("{}\n{own}", include_str!("../kernels/common.cuh"))
    }

    /// Which kernels these are, in few letters: ranks whose kernels differ do not compute the same bits.
    #[must_use]
    pub fn digest() -> String {
        let mut hash = Sha256::new();
        for source in Self::ALL {
            hash.update(source.text().as_bytes());
        }
        short(hash)
    }
}

/// As many letters of a hash as tell two apart.
pub(crate) fn short(hash: Sha256) -> String {
    let bytes = hash.finalize();
    bytes.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}
