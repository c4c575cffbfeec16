//! Settings of the inference engine.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use llamero_settings::limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Lora, Speculation};

/// Settings of the inference engine; what is absent is left to the worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Engine {
    /// Most tokens that one step computes, over all sequences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = *limits::MAX_BATCHED_TOKENS.start(), max = *limits::MAX_BATCHED_TOKENS.end()))]
    pub max_batched_tokens: Option<i32>,
    /// Most sequences that run at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = *limits::MAX_SEQUENCES.start(), max = *limits::MAX_SEQUENCES.end()))]
    pub max_sequences: Option<i32>,
    /// Most requests that wait for a place in a group; one more is answered with 429 and told when to come again. Absent: 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = *limits::MAX_QUEUED_REQUESTS.start(), max = *limits::MAX_QUEUED_REQUESTS.end()))]
    pub max_queued_requests: Option<i32>,
    /// Take names of control tokens in chat messages, such as `<|eot_id|>`, for those tokens, as servers did before. Else they are text, so
    /// that nobody can write a system message into a user's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub parse_special_tokens_in_messages: bool,
    /// The key/value cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<KvCache>,
    /// Room for LoRA adapters. Absent: none are served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// Speculative decoding. Absent: every token is computed by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speculation: Option<Speculation>,
    /// Threads of a CPU rank. Absent: the pod's CPU limit, else its CPU request, shared by its ranks; else the node's processors, shared with the group's other pods there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = *limits::THREADS.start(), max = *limits::THREADS.end()))]
    pub threads: Option<i32>,
}

/// Type in which keys and values are kept: `auto` (bf16), or `fp8` (E4M3 with one scale for each token and head: about half the memory, answers change a
/// little; CPUs only). Absent: `auto`. The names are those of vLLM's `--kv-cache-dtype`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KvCacheDtype {
    /// bf16, that of the model.
    #[default]
    Auto,
    /// E4M3 with one scale for each token and head.
    Fp8,
}

impl Engine {
    /// Type of the key/value cache.
    #[must_use]
    pub fn kv_dtype(&self) -> KvCacheDtype {
        let named = self.kv_cache.as_ref().and_then(|kv| kv.dtype);
        named.unwrap_or_default()
    }
}

/// The key/value cache of a rank.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KvCache {
    /// Type in which keys and values are kept. Absent: `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<KvCacheDtype>,
    /// Memory for keys and values on each rank. Absent: what weights leave of the memory, or one full context where that is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::quantity")]
    pub memory: Option<Quantity>,
}
