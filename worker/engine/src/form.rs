//! What the ranks of a group form with.

use crate::step::Era;

/// Type in which keys and values are kept. Part of the numerics class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum KvDtype {
    /// bfloat16.
    #[default]
    Bf16,
    /// E4M3 with one scale per token and head.
    Fp8E4m3,
}

/// The limits of a group, which all its ranks form with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FormLimits {
    /// Largest number of sequences at once (slots).
    pub max_sequences: u32,
    /// Largest number of tokens in one step.
    pub max_batched_tokens: u32,
    /// Longest sequence in tokens, prompt and output together.
    pub max_context: u32,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Steps that may be submitted and not yet released.
    pub steps_in_flight: u32,
    /// Type of the KV cache.
    pub kv_dtype: KvDtype,
    /// Adapters (LoRA) that may be loaded at once; 0 where none are.
    pub max_adapters: u32,
    /// The largest rank of an adapter; 0 where none are.
    pub max_adapter_rank: u32,
}

/// What a rank forms with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FormSpec {
    /// Membership and connection.
    pub era: Era,
    /// The same on all ranks.
    pub limits: FormLimits,
    /// Bytes this rank uses for KV blocks.
    pub kv_bytes: u64,
}
