//! Llama checkpoints: find, validate, convert, quantise, shard and stream weights. Headers come first: everything that
//! can be wrong with shapes, types and sizes is said before a byte of data is read.
//!
//! | module | what it is |
//! |---|---|
//! | [`adapter`] | LoRA adapters as PEFT saves them |
//! | [`checkpoint`] | an open folder: configuration and headers of all files |
//! | [`config`] | `config.json`, `generation_config.json`, quantisation schemes |
//! | [`safetensors`] | reader by byte range, index, writer |
//! | `error`, `io_error` | what can go wrong |
//! | `companions` | what may lie beside the weights |
//! | [`layout`] | the logical tensors of a Llama, checked against the headers |
//! | [`topology`] | tensor ranks and pipeline stages |
//! | [`members`] | which ranks of a group are there |
//! | `narrow` | numbers as narrower ones |
//! | [`presharded`] | folders with one file a rank |
//! | [`shard`] | which layers, heads, leaves and vocabulary rows a rank holds |
//! | [`runs`] | sets of heads, leaves or rows |
//! | `strips` | which byte ranges to read for some rows and columns of a tensor |
//! | [`piece`] | the parts of tensors that a rank holds |
//! | [`load`] | streaming a rank's shard |
//! | [`remote`] | weight files that are read over a network |
//! | [`pod`] | who of a pod reads what of the tensors that are split by columns |
//! | [`identity`] | which weights these are |
//! | [`lfs`], `tied` | refusals: Git-LFS pointers, a tied model with another head |
//! | [`summary`] | the figures that sizing needs |
//! | [`inspect`] | a report for people |
//! | [`e4m3`], [`dtype`] | number formats |
//! | [`gguf`] | GGUF files: reader and dequantisation |
//! | [`convert`] | GGUF to a Hugging Face folder |
//! | [`quantize`] | bf16 to row-wise FP8 |
//!
//! The way to a rank's weights: [`Checkpoint::open`] → [`ModelLayout::check`] → [`Checkpoint::shard_plan`] →
//! [`load::load_rank`].

#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "what comes in from outside must not be able to end the process, nor become another number"
    )
)]
#![forbid(unsafe_code)]

pub mod adapter;
pub mod checkpoint;
mod companions;
pub mod config;
pub mod convert;
pub mod dtype;
pub mod e4m3;
mod error;
pub mod gguf;
pub mod identity;
pub mod inspect;
mod io_error;
pub mod layout;
pub mod lfs;
pub mod load;
pub mod members;
mod narrow;
pub mod piece;
pub mod pod;
pub mod presharded;
pub mod progress;
pub mod quantize;
pub mod remote;
pub mod runs;
pub mod safetensors;
mod samples;
pub mod shard;
mod strips;
pub mod summary;
mod tied;
pub mod topology;

pub use adapter::{Adapter, AdapterError};
pub use checkpoint::Checkpoint;
pub use config::{GenerationConfig, LlamaConfig};
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use identity::ContentIdentity;
pub use io_error::{IoError, read_if_there};
pub use layout::{ModelLayout, Tensor, TensorId, TensorKind};
pub use members::Members;
pub use piece::Piece;
pub use progress::Progress;
pub use runs::Runs;
pub use shard::{FfnLeaves, RankShard, ShardPlan, Slice, VOCAB_TILE};
pub use summary::{CheckpointSummary, TensorPlan};
pub use topology::Topology;
