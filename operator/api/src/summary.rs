//! What an inspect pod found in a checkpoint's headers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The checkpoint as its headers describe it, and how it would be sharded. Written by `llamero-worker inspect --json` to the
/// pod's termination message (at most 4096 bytes), kept in `status.checkpoint` of the deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointSummary {
    /// Version of this format: 1.
    pub format_version: i32,
    /// First entry of `architectures` in `config.json`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Number of transformer layers.
    pub layers: i64,
    /// Query heads per layer; the largest tensor-parallel size.
    pub q_heads: i64,
    /// Key/value heads per layer.
    pub kv_heads: i64,
    /// Width of one head.
    pub head_dim: i64,
    /// Width of the feed-forward layer.
    pub ffn_size: i64,
    /// Tokens in the vocabulary.
    pub vocab_size: i64,
    /// Longest context that the checkpoint was made for.
    pub max_position_embeddings: i64,
    /// `fp8`, `bf16` or `mixed`.
    pub weights: String,
    /// `fbgemm_fp8`, `compressed-tensors`, `modelopt`, `fp8`, or absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// Number of weights.
    pub parameters: i64,
    /// Bytes of all tensors in the files.
    pub checkpoint_bytes: i64,
    /// Bytes of `tokenizer.json`, by which rank 0 takes memory for it; absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer_bytes: Option<i64>,
    /// Usable tensor-parallel sizes, with as many pipeline stages as the deployment asks for.
    pub plans: Vec<ShardPlan>,
    /// Why the wanted tensor-parallel size cannot be used, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What the worker image that wrote this can compute on: `cpu`, `cuda`. Absent: `cpu` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub backends: Vec<String>,
    /// Those of `backends` that compute a model on one device only, without tensor or pipeline parallelism. Written by older
    /// worker images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub one_device_backends: Vec<String>,
    /// Those of `backends` whose tensor-parallel ranks have to be in one pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub one_node_backends: Vec<String>,
    /// Those of `oneNodeBackends` that compute pipeline stages, each of which may be in another pod. Absent: none, as older worker
    /// images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub stage_backends: Vec<String>,
    /// Those of `backends` that can keep keys and values in FP8 (`engine.kvCache.dtype`). Absent: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub fp8_kv_backends: Vec<String>,
    /// The commit that was looked into, where the weights come from a Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub commit: Option<String>,
    /// What the weights are by the names, sizes and hashes of their files, where they come from a Hub: 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub content_identity: Option<String>,
}

impl CheckpointSummary {
    /// What the worker image can compute on.
    #[must_use]
    pub fn backends(&self) -> Vec<&str> {
        if self.backends.is_empty() {
            vec![CPU_BACKEND]
        } else {
            self.backends.iter().map(String::as_str).collect()
        }
    }
}

/// The backend that every worker image has.
pub const CPU_BACKEND: &str = "cpu";

/// What one rank needs at a tensor-parallel size; maxima over the ranks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShardPlan {
    /// Number of tensor-parallel ranks.
    pub tensor: i64,
    /// Bytes of weights that a rank keeps in memory.
    pub weight_bytes_per_rank: i64,
    /// Bytes of key/value cache that one token takes on a rank, in bf16.
    pub kv_bytes_per_token_per_rank: i64,
    /// Bytes that a CPU rank takes beside weights and cache, whatever the size of a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_bytes_per_rank: Option<i64>,
    /// The same for each token that a step may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_bytes_per_batched_token_per_rank: Option<i64>,
}

/// What an inspect pod writes: a summary, or a sentence that says what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum InspectOutcome {
    /// The checkpoint cannot be read.
    Error {
        /// What is wrong and what to do about it.
        error: String,
    },
    /// What the checkpoint is.
    Summary(Box<CheckpointSummary>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_outcomes() {
        let summary = r#"{"formatVersion":1,"architecture":"LlamaForCausalLM","hiddenSize":576,"layers":30,"qHeads":9,"kvHeads":3,
            "headDim":64,"ffnSize":1536,"vocabSize":49152,"maxPositionEmbeddings":8192,"weights":"fp8","quantization":null,
            "parameters":134515008,"checkpointBytes":135000000,
            "plans":[{"tensor":1,"weightBytesPerRank":134000000,"kvBytesPerTokenPerRank":23040}],"problem":null}"#;
        let InspectOutcome::Summary(read) = serde_json::from_str(summary).unwrap() else {
            panic!("no summary")
        };
        assert_eq!(
            (read.q_heads, read.plans[0].kv_bytes_per_token_per_rank),
            (9, 23040)
        );
        let failed: InspectOutcome = serde_json::from_str(r#"{"error":"no config.json in /model"}"#).unwrap();
        assert_eq!(
            failed,
            InspectOutcome::Error {
                error: "no config.json in /model".into()
            }
        );
    }
}
