//! What a checkpoint is, in the few figures that sizing needs.

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::config::LlamaConfig;
use crate::dtype::Dtype;
use crate::identity::ContentIdentity;
use crate::layout::{ModelLayout, TensorKind};
use crate::piece::rank_bytes;
use crate::shard::RankShard;
use crate::topology::Topology;

/// Group sizes that are listed where the model allows them, beside the one asked for.
const LISTED: [u32; 9] = [1, 2, 3, 4, 5, 8, 9, 16, 32];

/// What one group size costs; the largest of its ranks counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TensorPlan {
    /// Ranks of a stage.
    pub tensor: u32,
    /// Bytes of weights that a rank holds.
    pub weight_bytes_per_rank: u64,
    /// Bytes that one token takes in a rank's KV cache, in bf16.
    pub kv_bytes_per_token_per_rank: u64,
    /// Bytes that a rank takes beside weights and KV cache, whatever the size of a step. Left empty here, where nothing is
    /// computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_bytes_per_rank: Option<u64>,
    /// The same for each token that a step may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_bytes_per_batched_token_per_rank: Option<u64>,
}

/// Facts about a checkpoint, from its headers alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointSummary {
    /// Version of this form: 1.
    pub format_version: u32,
    /// `LlamaForCausalLM`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Transformer layers.
    pub layers: u32,
    /// Query heads of a layer.
    pub q_heads: u32,
    /// Key and value heads of a layer.
    pub kv_heads: u32,
    /// Width of one head.
    pub head_dim: u32,
    /// Width of the feed-forward layer.
    pub ffn_size: u32,
    /// Number of token ids.
    pub vocab_size: u32,
    /// Longest sequence the model was trained for.
    pub max_position_embeddings: u32,
    /// `fp8` if every matrix of every layer is, `bf16` (any plain float) if none is, else `mixed`.
    pub weights: String,
    /// `quant_method` of the configuration.
    pub quantization: Option<String>,
    /// Number of parameters, tied ones once.
    pub parameters: u64,
    /// Bytes of all tensors on disk.
    pub checkpoint_bytes: u64,
    /// Bytes of `tokenizer.json`, by which rank 0 takes memory for it; none when it cannot be seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer_bytes: Option<u64>,
    /// What usable numbers of tensor-parallel ranks cost, with as many pipeline stages as were asked for.
    pub plans: Vec<TensorPlan>,
    /// Why the group size asked for cannot be used.
    pub problem: Option<String>,
    /// What the program that wrote this can compute on: `cpu`, `cuda`. Left empty here, where nothing is computed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<String>,
    /// Those of them whose tensor-parallel ranks have to be in one pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub one_node_backends: Vec<String>,
    /// Those of these that compute pipeline stages, each of which may be in another pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stage_backends: Vec<String>,
    /// Those of them that can keep keys and values in FP8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fp8_kv_backends: Vec<String>,
    /// The commit that the weights are of, where they come from a Hub. Left empty here, where there is only a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// What they are by their files' hashes, where they come from a Hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_identity: Option<ContentIdentity>,
}

impl CheckpointSummary {
    /// Sum up a checked checkpoint for groups of that `topology`.
    #[must_use]
    pub fn new(checkpoint: &Checkpoint, layout: &ModelLayout, topology: Topology) -> Self {
        let config = checkpoint.config();
        let mut sizes = LISTED.to_vec();
        sizes.push(topology.tensor);
        sizes.sort_unstable();
        sizes.dedup();
        Self {
            format_version: 1,
            architecture: "LlamaForCausalLM".to_owned(),
            hidden_size: config.hidden_size,
            layers: config.layers,
            q_heads: config.q_heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            ffn_size: config.ffn_size,
            vocab_size: config.vocab_size,
            max_position_embeddings: config.max_position_embeddings,
            weights: weight_form(layout).to_owned(),
            quantization: config
                .quantization
                .as_ref()
                .map(|quantization| quantization.method.name().to_owned()),
            parameters: parameters(layout),
            checkpoint_bytes: checkpoint.bytes(),
            tokenizer_bytes: checkpoint.tokenizer_bytes(),
            plans: sizes
                .into_iter()
                .filter_map(|tensor| plan(checkpoint, layout, Topology { tensor, ..topology }))
                .collect(),
            problem: checkpoint
                .shard_plan(&topology.into())
                .err()
                .map(|error| error.to_string()),
            backends: Vec::new(),
            one_node_backends: Vec::new(),
            stage_backends: Vec::new(),
            fp8_kv_backends: Vec::new(),
            commit: None,
            content_identity: None,
        }
    }
}

fn plan(checkpoint: &Checkpoint, layout: &ModelLayout, topology: Topology) -> Option<TensorPlan> {
    let config = checkpoint.config();
    let split = checkpoint.shard_plan(&topology.into()).ok()?;
    let shards = split.shards();
    Some(TensorPlan {
        tensor: topology.tensor,
        weight_bytes_per_rank: shards.iter().map(|shard| rank_bytes(layout, shard)).max()?,
        kv_bytes_per_token_per_rank: shards
            .iter()
            .map(|shard| kv_bytes_per_token(config, shard))
            .max()?,
        workspace_bytes_per_rank: None,
        workspace_bytes_per_batched_token_per_rank: None,
    })
}

/// Bytes that one token takes in the KV cache of a rank, in bf16.
#[must_use]
pub fn kv_bytes_per_token(config: &LlamaConfig, shard: &RankShard) -> u64 {
    config.kv_bytes_per_head() * shard.layers.len() as u64 * u64::from(shard.kv_heads.len())
}

fn weight_form(layout: &ModelLayout) -> &'static str {
    let of_layers = || {
        layout
            .tensors
            .iter()
            .filter(|tensor| tensor.id.layer.is_some() && tensor.id.kind.is_linear())
    };
    if of_layers().all(|tensor| tensor.dtype == Dtype::F8E4M3) {
        "fp8"
    } else if of_layers().any(|tensor| tensor.dtype == Dtype::F8E4M3) {
        "mixed"
    } else {
        "bf16"
    }
}

fn parameters(layout: &ModelLayout) -> u64 {
    let again = |kind| kind == TensorKind::Head && layout.is_tied();
    let counted = layout.tensors.iter().filter(|tensor| !again(tensor.id.kind));
    counted.map(|tensor| tensor.rows * tensor.cols).sum()
}
