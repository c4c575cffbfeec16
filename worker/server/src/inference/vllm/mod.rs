//! The public contract of the crate `vllm-proto`.
//!
//! | module | what it is |
//! |---|---|
//! | [`generate`] | `vllm.Inference`: `Generate`, `GenerateStream` |
//! | [`request`] | its request: what is served, and what is refused by name |
//! | [`control`] | `vllm.Control` |

pub mod control;
pub mod generate;
pub mod request;
