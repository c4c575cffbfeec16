//! What is computed in loops over tiles, rows and positions, whose lengths forming and the batch have set: the lints about indexing and
//! narrowing casts are off here, and the kernels' own lengths are checked where they are called.

pub(crate) mod attention;
pub(crate) mod forward;
pub(crate) mod kv;
pub(crate) mod matmul;
pub(crate) mod rope;
pub(crate) mod sample;
pub(crate) mod weights;
