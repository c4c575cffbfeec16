//! From a checkpoint's headers to memory per rank, or a refusal that says what would fit, before any accelerator is taken.

use std::borrow::Cow;

use llamero_api::{
    CheckpointSummary, LlamaDeploymentSpec,
    deployment::{KvCacheDtype, PlanStatus},
    quantity::{self, human},
    summary::ShardPlan,
};
use llamero_settings::memory::AdapterWidths;
use llamero_settings::{kv, memory};

use crate::{
    devices,
    observed::Node,
    resources::{self, Resources},
};

/// Tokens in a step where nobody says otherwise: what `llamero-worker serve` takes without `--max-batched-tokens`.
const USUAL_BATCHED_TOKENS: i64 = 512;
/// Memory of the node that a rank on a device takes beside its part of the embedding: the driver's, buffers that weights are read into,
/// tokenizer, requests.
const HOST_PROCESS: i64 = 2 << 30;
/// Memory of a device beside weights and cache: context, kernels, workspace, collective buffers.
pub const DEVICE_WORKSPACE: i64 = 2 << 30;
/// Tokens of a KV block, the unit in which a worker gives memory to sequences.
pub const KV_BLOCK_TOKENS: i64 = 16;
/// Bytes that a token of a step takes for each of the ranks of adapters: their sums, also those of the other ranks' leaves.
const ADAPTER_WORKSPACE: i64 = 256;
/// Full contexts that the cache of a CPU rank holds when memory allows more.
const CPU_SEQUENCES: i64 = 16;
/// Full contexts that the cache holds when nobody said how much memory there is.
const UNKNOWN_MEMORY_SEQUENCES: i64 = 4;

/// What is known of the memory that a rank may use.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Budget {
    bytes: Option<i64>,
    /// Which field says so.
    field: Cow<'static, str>,
    /// Tokens that a step may have.
    batched_tokens: i64,
    /// What a CPU rank's process takes whatever it computes: tokenizer, requests, connections.
    process: i64,
    /// What is set aside for adapters.
    adapters: i64,
    device: bool,
}

impl Budget {
    /// What a rank takes beside weights and cache.
    fn workspace(&self, shard: &ShardPlan) -> i64 {
        if self.device {
            return DEVICE_WORKSPACE;
        }
        let per_token = shard.workspace_bytes_per_batched_token_per_rank.unwrap_or(0);
        self.process
            .saturating_add(self.adapters)
            .saturating_add(shard.workspace_bytes_per_rank.unwrap_or(0))
            .saturating_add(per_token.saturating_mul(self.batched_tokens))
    }
}

/// Bytes of the node's memory that each rank on a device takes: its part of the embedding stays there, pinned, because a step reads a
/// few rows of it only; so do its parts of the rows that pipeline stages give each other.
#[must_use]
pub fn host_bytes_beside_device(spec: &LlamaDeploymentSpec, summary: Option<&CheckpointSummary>) -> i64 {
    let (tensor, pipeline) = (
        i64::from(spec.parallelism.tensor.max(1)),
        i64::from(spec.parallelism.pipeline),
    );
    let width = summary.map_or(0, |summary| summary.hidden_size);
    let embedding = summary.map_or(0, |summary| {
        summary.vocab_size.saturating_mul(width).saturating_mul(2) / tensor
    });
    // Rows of f32 come in and go out, of every step under way.
    let stages = match pipeline {
        ..2 => 0,
        _ => {
            // As workers round it up: kernels take so many rows at once.
            let rows = batched_tokens(spec).saturating_add(63) / 64 * 64;
            rows.saturating_mul(width).saturating_mul(2 * 4 * (pipeline + 1)) / tensor
        }
    };
    embedding.saturating_add(stages).saturating_add(HOST_PROCESS)
}

fn batched_tokens(spec: &LlamaDeploymentSpec) -> i64 {
    spec.engine
        .max_batched_tokens
        .map_or(USUAL_BATCHED_TOKENS, i64::from)
}

/// Sizes a group. `fits: false` comes with a message that says why and what would fit. Where nodes have devices of several sizes, and nobody
/// says which are meant, it is sized by the smallest that it fits on; placement leaves out nodes whose devices are smaller.
#[must_use]
pub fn plan(spec: &LlamaDeploymentSpec, summary: &CheckpointSummary, nodes: &[Node]) -> PlanStatus {
    let sizes = unstated(spec).map(|name| devices::sizes(nodes, &spec.worker, name));
    let mut sizes = sizes.unwrap_or_default().into_iter().peekable();
    loop {
        let plan = with_devices(spec, summary, sizes.next());
        if plan.fits || sizes.peek().is_none() {
            return plan;
        }
    }
}

/// The resource whose size nobody states.
fn unstated(spec: &LlamaDeploymentSpec) -> Option<&str> {
    let accelerator = spec.accelerator.as_ref().filter(|a| a.memory.is_none())?;
    accelerator.resource.as_deref()
}

/// Sizes a group whose devices have so many bytes by their labels, if those tell.
fn with_devices(
    spec: &LlamaDeploymentSpec,
    summary: &CheckpointSummary,
    labelled: Option<i64>,
) -> PlanStatus {
    let context = spec
        .model
        .max_context_length
        .unwrap_or(summary.max_position_embeddings);
    let mut plan = PlanStatus {
        ranks: spec.ranks(),
        nodes: spec.pods(),
        ranks_per_pod: spec.ranks_per_pod(),
        max_context_length: context,
        ..PlanStatus::default()
    };
    let summary = &of_kv_type(spec, summary);
    match size(
        spec,
        summary,
        &budget(spec, summary, labelled),
        context,
        &mut plan,
    ) {
        Ok(note) => {
            plan.fits = true;
            plan.message = note;
        }
        Err(refusal) => plan.message = refusal,
    }
    plan
}

/// The summary with what a token takes in the type of cache that is asked for; an inspect pod says it for bf16.
fn of_kv_type<'a>(spec: &LlamaDeploymentSpec, summary: &'a CheckpointSummary) -> Cow<'a, CheckpointSummary> {
    if spec.engine.kv_dtype() == KvCacheDtype::Auto {
        return Cow::Borrowed(summary);
    }
    let in_fp8 = |in_bf16: i64| {
        let bytes = |value| u64::try_from(value).unwrap_or(0);
        let in_fp8 = kv::bytes_in_fp8(bytes(in_bf16), bytes(summary.head_dim));
        i64::try_from(in_fp8).unwrap_or(i64::MAX)
    };
    let mut summary = summary.clone();
    for plan in &mut summary.plans {
        plan.kv_bytes_per_token_per_rank = in_fp8(plan.kv_bytes_per_token_per_rank);
    }
    Cow::Owned(summary)
}

fn size(
    spec: &LlamaDeploymentSpec,
    summary: &CheckpointSummary,
    budget: &Budget,
    context: i64,
    plan: &mut PlanStatus,
) -> Result<String, String> {
    if context > summary.max_position_embeddings {
        return Err(format!(
            "model.maxContextLength is {context}, but the checkpoint was made for at most {}: lower model.maxContextLength",
            summary.max_position_embeddings
        ));
    }
    let shard = shard_of(summary, i64::from(spec.parallelism.tensor))?;
    plan.weight_bytes_per_rank = shard.weight_bytes_per_rank;
    plan.kv_bytes_per_token_per_rank = shard.kv_bytes_per_token_per_rank;

    let one_context = kv_bytes(shard, context);
    let wanted = spec
        .engine
        .kv_cache
        .as_ref()
        .and_then(|kv| kv.memory.as_ref())
        .and_then(|m| quantity::units(m).ok());
    if let Some(wanted) = wanted.filter(|wanted| *wanted < one_context) {
        return Err(format!(
            "engine.kvCache.memory is {}, but one context of {context} tokens takes {} on each rank: raise it, or lower model.maxContextLength",
            human(wanted),
            human(one_context)
        ));
    }
    let workspace = budget.workspace(shard);
    let fixed = shard.weight_bytes_per_rank.saturating_add(workspace);
    let at_least = fixed.saturating_add(wanted.unwrap_or(one_context));
    if let Some(bytes) = budget.bytes.filter(|bytes| *bytes < at_least) {
        return Err(format!(
            "a rank needs {} (weights {}, keys and values {}, workspace {}), but {} gives it {}; {}",
            human(at_least),
            human(shard.weight_bytes_per_rank),
            human(wanted.unwrap_or(one_context)),
            human(workspace),
            budget.field,
            human(bytes),
            what_would_fit(summary, shard, budget, bytes, context)
        ));
    }
    let sequences = |n: i64| n.max(1).saturating_mul(one_context);
    let max_sequences = spec.engine.max_sequences.map_or(CPU_SEQUENCES, i64::from);
    plan.kv_bytes_per_rank = match (wanted, budget.bytes) {
        (Some(wanted), _) => wanted,
        (None, Some(bytes)) if budget.device => bytes - fixed,
        (None, Some(bytes)) => (bytes - fixed).min(sequences(max_sequences)),
        // A device whose memory nobody knows: the worker measures it.
        (None, None) if budget.device => 0,
        (None, None) => sequences(max_sequences.min(UNKNOWN_MEMORY_SEQUENCES)),
    };
    plan.kv_tokens = whole_blocks(plan.kv_bytes_per_rank / shard.kv_bytes_per_token_per_rank.max(1));
    plan.memory_bytes_per_rank = fixed.saturating_add(plan.kv_bytes_per_rank);
    Ok(match budget.bytes {
        None if budget.device => {
            let why = "no label of a node that the pods may use tells the memory of a device";
            format!(
                "{why}, so it was not checked that the model fits: set accelerator.memory to what a rank may use of its device"
            )
        }
        _ => String::new(),
    })
}

/// What a rank holds of the checkpoint when it is split over `tensor` ranks.
fn shard_of(summary: &CheckpointSummary, tensor: i64) -> Result<&ShardPlan, String> {
    summary
        .plans
        .iter()
        .find(|shard| shard.tensor == tensor)
        .ok_or_else(|| {
            let usable: Vec<String> = summary
                .plans
                .iter()
                .map(|shard| shard.tensor.to_string())
                .collect();
            let why = summary
                .problem
                .clone()
                .unwrap_or_else(|| format!("the checkpoint cannot be split over {tensor} ranks"));
            if usable.is_empty() {
                return why;
            }
            format!("{why}; parallelism.tensor can be {}", usable.join(", "))
        })
}

/// Keys and values of one sequence of so many tokens: the last block is taken whole.
fn kv_bytes(shard: &ShardPlan, tokens: i64) -> i64 {
    let blocks = tokens.saturating_add(KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    blocks
        .saturating_mul(KV_BLOCK_TOKENS)
        .saturating_mul(shard.kv_bytes_per_token_per_rank)
}

/// Tokens in blocks that fit whole.
fn whole_blocks(tokens: i64) -> i64 {
    tokens - tokens % KV_BLOCK_TOKENS
}

fn what_would_fit(
    summary: &CheckpointSummary,
    shard: &ShardPlan,
    budget: &Budget,
    bytes: i64,
    context: i64,
) -> String {
    let need = |plan: &ShardPlan, tokens: i64| {
        plan.weight_bytes_per_rank
            .saturating_add(budget.workspace(plan))
            .saturating_add(kv_bytes(plan, tokens))
    };
    let mut offers = Vec::new();
    let larger = summary
        .plans
        .iter()
        .filter(|plan| plan.tensor > shard.tensor && need(plan, context) <= bytes);
    if let Some(plan) = larger.min_by_key(|plan| plan.tensor) {
        offers.push(format!("parallelism.tensor {}", plan.tensor));
    }
    let rest = bytes - need(shard, 0);
    let tokens = rest / shard.kv_bytes_per_token_per_rank.max(1);
    if tokens >= 256 {
        offers.push(format!("model.maxContextLength {}", tokens - tokens % 256));
    }
    offers.push(format!("{} a rank", human(need(shard, context))));
    format!("what would fit: {}", offers.join(", or "))
}

fn budget(spec: &LlamaDeploymentSpec, summary: &CheckpointSummary, labelled: Option<i64>) -> Budget {
    let accelerator = spec.accelerator.as_ref();
    let batched_tokens = batched_tokens(spec);
    let process = process(spec, summary);
    let adapters = adapters(spec, summary, batched_tokens);
    if let Some(name) = accelerator.and_then(|a| a.resource.as_deref()) {
        let stated = accelerator
            .and_then(|a| a.memory.as_ref())
            .and_then(|m| quantity::units(m).ok());
        return Budget {
            bytes: stated.or(labelled),
            field: if stated.is_some() {
                "accelerator.memory".into()
            } else {
                format!("the largest {name} of the nodes that the pods may use (label {name}.memory)").into()
            },
            batched_tokens,
            process,
            adapters,
            device: true,
        };
    }
    let resources = spec.worker.resources.as_ref();
    let of = |map: Option<Resources>| map.map(|r| r.get(resources::MEMORY)).filter(|bytes| *bytes > 0);
    let limit = of(resources.map(|r| Resources::from_quantities(&r.limits)));
    let request = of(resources.map(|r| Resources::from_quantities(&r.requests)));
    Budget {
        bytes: limit
            .or(request)
            .map(|bytes| bytes / i64::from(spec.ranks_per_pod())),
        field: if limit.is_some() {
            "worker.resources.limits.memory".into()
        } else {
            "worker.resources.requests.memory".into()
        },
        batched_tokens,
        process,
        adapters,
        device: false,
    }
}

/// What a rank's process takes beside what it computes with; the worker checks the same.
fn process(spec: &LlamaDeploymentSpec, summary: &CheckpointSummary) -> i64 {
    let tokenizer = summary
        .tokenizer_bytes
        .and_then(|bytes| u64::try_from(bytes).ok());
    let ranks = u32::try_from(spec.ranks_per_pod()).unwrap_or(1);
    i64::try_from(memory::of_rank(tokenizer, ranks)).unwrap_or(i64::MAX)
}

/// What is set aside for adapters on the rank that has most of the model, a little rounded up where shares are uneven.
fn adapters(spec: &LlamaDeploymentSpec, summary: &CheckpointSummary, batched_tokens: i64) -> i64 {
    let Some(lora) = &spec.engine.lora else {
        return 0;
    };
    let share = |whole: i64, ranks: i32| {
        whole.max(0).saturating_add(i64::from(ranks.max(1)) - 1) / i64::from(ranks.max(1))
    };
    let tensor = spec.parallelism.tensor;
    let q_heads = share(summary.q_heads, tensor);
    // A rank may touch one kv head more than its query heads fill.
    let kv_heads = share(summary.kv_heads, tensor)
        .saturating_add(1)
        .min(summary.kv_heads);
    // The feed-forward layer is cut into leaves of a 32nd or of 64 columns.
    let leaf = (summary.ffn_size / 32).max(64);
    let ffn = share(summary.ffn_size, tensor)
        .saturating_add(leaf)
        .min(summary.ffn_size);
    let size = |value: i64| u64::try_from(value).unwrap_or(0);
    let widths = AdapterWidths {
        hidden: size(summary.hidden_size),
        q: size(q_heads.saturating_mul(summary.head_dim)),
        kv: size(kv_heads.saturating_mul(summary.head_dim)),
        ffn: size(ffn),
        layers: size(share(summary.layers, spec.parallelism.pipeline)),
    };
    let factors =
        memory::adapter(widths, size(lora.max_rank.into())).saturating_mul(size(lora.max_adapters.into()));
    let workspace = i64::from(lora.max_rank)
        .saturating_mul(ADAPTER_WORKSPACE)
        .saturating_mul(batched_tokens);
    i64::try_from(factors)
        .unwrap_or(i64::MAX)
        .saturating_add(workspace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> LlamaDeploymentSpec {
        let mut whole = json!({"model": {"source": {"hostPath": {"path": "/m"}}, "maxContextLength": 4096}, "parallelism": {"tensor": 2}});
        for (key, part) in value.as_object().unwrap() {
            whole[key] = part.clone();
        }
        serde_json::from_value(whole).unwrap()
    }

    /// What the process of a rank takes that has a pod of its own.
    const PROCESS: i64 = 480 << 20;

    /// 70 GiB of weights, 1 MiB of cache a token, at TP 1.
    fn summary() -> CheckpointSummary {
        let plans = [1, 2, 4, 8].map(|tensor| ShardPlan {
            tensor,
            weight_bytes_per_rank: (70 << 30) / tensor,
            kv_bytes_per_token_per_rank: (1 << 20) / tensor,
            workspace_bytes_per_rank: None,
            workspace_bytes_per_batched_token_per_rank: None,
        });
        CheckpointSummary {
            format_version: 1,
            architecture: "LlamaForCausalLM".into(),
            hidden_size: 8192,
            layers: 80,
            q_heads: 64,
            kv_heads: 8,
            head_dim: 128,
            ffn_size: 28672,
            vocab_size: 128_256,
            max_position_embeddings: 8192,
            weights: "fp8".into(),
            quantization: None,
            parameters: 70 << 30,
            checkpoint_bytes: 70 << 30,
            tokenizer_bytes: Some(8 << 20),
            plans: plans.to_vec(),
            problem: Some("tensor 3 does not divide".into()),
            backends: vec![],
            one_device_backends: vec![],
            one_node_backends: vec![],
            stage_backends: vec![],
            fp8_kv_backends: vec!["cpu".into()],
            commit: None,
            content_identity: None,
        }
    }

    #[test]
    fn a_device_with_room_gives_the_rest_to_the_cache() {
        let plan = plan(
            &spec(json!({"accelerator": {"resource": "nvidia.com/gpu", "memory": "48Gi"}})),
            &summary(),
            &[],
        );
        assert!(plan.fits, "{}", plan.message);
        assert_eq!(plan.kv_bytes_per_rank, (48 - 35 - 2) << 30);
        assert_eq!(plan.kv_tokens, 11 << 11);
        assert_eq!((plan.ranks, plan.nodes), (2, 2));
    }

    /// 405B in FP8 and in bf16 on two nodes of eight devices of 80 GiB, as in the sample: 16 ranks of 63 layers and one kv head.
    #[test]
    fn llama_405b_fits_two_nodes_with_its_whole_context() {
        let layers = 63;
        let of_layer =
            |bytes: i64| bytes * (2 * 16_384 * 16_384 + 2 * 1024 * 16_384 + 3 * 53_248 * 16_384) / 8;
        // Embedding or head, of which each stage has one.
        let table = 128_256 * 16_384 * 2 / 8;
        for bytes in [1, 2] {
            let shard = ShardPlan {
                tensor: 8,
                weight_bytes_per_rank: layers * of_layer(bytes) + table,
                kv_bytes_per_token_per_rank: layers * 128 * 2 * 2,
                workspace_bytes_per_rank: None,
                workspace_bytes_per_batched_token_per_rank: None,
            };
            let summary = CheckpointSummary {
                hidden_size: 16_384,
                layers: 126,
                q_heads: 128,
                ffn_size: 53_248,
                max_position_embeddings: 131_072,
                plans: vec![shard],
                problem: None,
                ..summary()
            };
            let spec = spec(json!({
                "model": {"source": {"hostPath": {"path": "/m"}}, "maxContextLength": 131_072},
                "parallelism": {"tensor": 8, "pipeline": 2},
                "accelerator": {"resource": "nvidia.com/gpu", "perNode": 8, "memory": "80Gi"}
            }));
            let plan = plan(&spec, &summary, &[]);
            assert!(plan.fits, "{}", plan.message);
            assert_eq!((plan.ranks, plan.nodes, plan.ranks_per_pod), (16, 2, 8));
            assert!(plan.kv_tokens >= 6 * 131_072, "{plan:?}");
            // Pinned: the table, 24 MiB of rows between stages, and the process.
            let host = host_bytes_beside_device(&spec, Some(&summary));
            assert_eq!(host, table + (24 << 20) + HOST_PROCESS);
        }
    }

    #[test]
    fn a_refusal_says_what_would_fit() {
        let refused = plan(
            &spec(json!({"accelerator": {"resource": "nvidia.com/gpu", "memory": "38Gi"}})),
            &summary(),
            &[],
        );
        assert!(!refused.fits);
        assert_eq!(
            refused.message,
            "a rank needs 39.0 GiB (weights 35.0 GiB, keys and values 2.0 GiB, workspace 2.0 GiB), but accelerator.memory gives it 38.0 GiB; \
             what would fit: parallelism.tensor 4, or model.maxContextLength 2048, or 39.0 GiB a rank"
        );
    }

    #[test]
    fn an_unusable_split_names_the_usable_ones() {
        let refused = plan(&spec(json!({"parallelism": {"tensor": 3}})), &summary(), &[]);
        assert_eq!(
            refused.message,
            "tensor 3 does not divide; parallelism.tensor can be 1, 2, 4, 8"
        );
    }

    #[test]
    fn a_context_beyond_the_checkpoint_is_refused() {
        let model = json!({"model": {"source": {"hostPath": {"path": "/m"}}, "maxContextLength": 9000}});
        assert!(
            plan(&spec(model), &summary(), &[])
                .message
                .contains("at most 8192")
        );
    }

    /// Half, and two scales of four bytes for each layer and kv head: 8,192 tokens of the summary's 1 MiB in bf16, of heads of 128.
    #[test]
    fn a_cache_in_fp8_holds_almost_twice_the_tokens() {
        let sized = |dtype: &str, memory: &str| {
            let engine = json!({"maxSequences": 1, "kvCache": {"memory": memory, "dtype": dtype}});
            plan(
                &spec(json!({"parallelism": {"tensor": 1}, "engine": engine})),
                &summary(),
                &[],
            )
        };
        let [bf16, fp8] = ["auto", "fp8"].map(|dtype| sized(dtype, "8Gi"));
        assert!(bf16.fits && fp8.fits, "{} {}", bf16.message, fp8.message);
        assert_eq!(
            (bf16.kv_bytes_per_token_per_rank, bf16.kv_tokens),
            (1 << 20, 8192)
        );
        assert_eq!(fp8.kv_bytes_per_token_per_rank, (1 << 19) + 2048 * 8);
        assert_eq!(fp8.kv_tokens, 15_872);
        // One context of 4,096 tokens fits where it did not.
        let [bf16, fp8] = ["auto", "fp8"].map(|dtype| sized(dtype, "3Gi"));
        assert!(
            !bf16.fits && bf16.message.contains("takes 4.0 GiB"),
            "{}",
            bf16.message
        );
        assert!(fp8.fits, "{}", fp8.message);
    }

    /// What the worker sets aside for them, and what their sums take in a step.
    #[test]
    fn adapters_count_as_memory_of_a_rank() {
        let sized = |engine: serde_json::Value| {
            plan(
                &spec(json!({"parallelism": {"tensor": 1}, "engine": engine})),
                &summary(),
                &[],
            )
        };
        let bytes = |engine| sized(engine).memory_bytes_per_rank;
        let without = bytes(json!({}));
        let one = bytes(json!({"lora": {"maxAdapters": 1, "maxRank": 16}})) - without;
        let two = bytes(json!({"lora": {"maxAdapters": 2, "maxRank": 16}})) - without;
        let summary = summary();
        let kv = summary.kv_heads * summary.head_dim;
        let (hidden, q, ffn) = (
            summary.hidden_size,
            summary.q_heads * summary.head_dim,
            summary.ffn_size,
        );
        // In bf16, as many as the factors have elements at least.
        let elements =
            summary.layers * 16 * (3 * hidden + q + 2 * kv + q + hidden + 2 * (hidden + ffn) + ffn + hidden);
        let factors = two - one;
        assert!(
            factors >= 2 * elements && factors < 3 * elements,
            "{factors} bytes for {elements}"
        );
        assert!(one > factors && one - factors < 8 << 20, "{one} bytes");
    }

    /// 1,000 tokens take 63 blocks, which hold 1,008.
    #[test]
    fn a_context_takes_whole_blocks() {
        let one = 1008 << 20;
        let sized = |kv_cache: serde_json::Value| {
            let model = json!({"source": {"hostPath": {"path": "/m"}}, "maxContextLength": 1000});
            let engine = json!({"maxSequences": 1, "kvCache": kv_cache});
            plan(
                &spec(json!({"model": model, "parallelism": {"tensor": 1}, "engine": engine})),
                &summary(),
                &[],
            )
        };
        let usual = sized(json!({}));
        assert!(usual.fits, "{}", usual.message);
        assert_eq!((usual.kv_bytes_per_rank, usual.kv_tokens), (one, 1008));
        let refused = sized(json!({"memory": (1000 << 20).to_string()}));
        assert!(
            !refused.fits && refused.message.contains("engine.kvCache.memory"),
            "{}",
            refused.message
        );
        assert!(sized(json!({"memory": one.to_string()})).fits);
        let more = sized(json!({"memory": (one + (15 << 20)).to_string()}));
        assert_eq!(more.kv_tokens, 1008, "a part of a block holds nothing");
    }

    #[test]
    fn memory_of_devices_comes_from_node_labels() {
        let node = Node {
            labels: [("nvidia.com/gpu.memory".into(), (48 << 10).to_string())].into(),
            allocatable: Resources::new().with("nvidia.com/gpu", 8),
            ..Node::default()
        };
        let sized = plan(
            &spec(json!({"accelerator": {"resource": "nvidia.com/gpu"}})),
            &summary(),
            &[node],
        );
        assert_eq!(sized.kv_bytes_per_rank, 11 << 30);
        let unknown = plan(
            &spec(json!({"accelerator": {"resource": "nvidia.com/gpu"}})),
            &summary(),
            &[],
        );
        assert!(unknown.fits && unknown.message.contains("set accelerator.memory"));
    }

    #[test]
    fn large_steps_take_memory_on_a_cpu() {
        // The figures of an 8B that is not split, and of a rank of a 70B that is split eight ways, rounded.
        for (tensor, fixed, per_token, tokens) in [
            (1, 40 << 20, 256 << 10, Some(4096)),
            (8, 9 << 20, 150 << 10, None),
        ] {
            let mut summary = summary();
            for plan in &mut summary.plans {
                plan.workspace_bytes_per_rank = Some(fixed);
                plan.workspace_bytes_per_batched_token_per_rank = Some(per_token);
            }
            let workspace = PROCESS + fixed + per_token * i64::from(tokens.unwrap_or(512));
            let whole = (70 << 30) / tensor + (4 << 30) / tensor + workspace;
            let with = |memory: i64| {
                plan(
                    &spec(json!({
                        "parallelism": {"tensor": tensor},
                        "engine": tokens.map_or(json!({}), |tokens| json!({"maxBatchedTokens": tokens})),
                        "worker": {"resources": {"limits": {"memory": memory.to_string()}}},
                    })),
                    &summary,
                    &[],
                )
            };
            assert!(with(whole).fits, "{}", with(whole).message);
            assert_eq!(with(whole).memory_bytes_per_rank, whole);
            let refused = with(whole - 1);
            assert!(
                !refused.fits
                    && refused
                        .message
                        .contains(&format!("workspace {}", human(workspace))),
                "{}",
                refused.message
            );
        }
    }

    /// Of the ranks of a pod one at most has a tokenizer and requests.
    #[test]
    fn a_large_tokenizer_takes_memory_once_a_pod() {
        let memory = |tokenizer: Option<i64>, ranks_per_pod: i64| {
            let mut summary = summary();
            summary.tokenizer_bytes = tokenizer;
            let group = json!({"parallelism": {"tensor": 2}, "accelerator": {"perNode": ranks_per_pod}});
            let sized = plan(&spec(group), &summary, &[]);
            assert!(sized.fits, "{}", sized.message);
            sized.memory_bytes_per_rank - sized.weight_bytes_per_rank - sized.kv_bytes_per_rank
        };
        assert_eq!(memory(Some(8 << 20), 1), PROCESS);
        assert_eq!(memory(Some(2 << 20), 1), PROCESS - (6 << 20) * 32);
        assert!(
            memory(None, 1) > PROCESS,
            "unknown ones are granted what the largest usual one needs"
        );
        let together = 2 * memory(Some(8 << 20), 2);
        let one = i64::try_from(memory::PROCESS).unwrap();
        assert!(
            (PROCESS + one..PROCESS + one + 2).contains(&together),
            "{together}"
        );
    }

    #[test]
    fn a_cpu_rank_without_limit_asks_for_what_it_needs() {
        let sized = plan(&spec(json!({})), &summary(), &[]);
        assert!(sized.fits);
        assert_eq!(sized.kv_tokens, 4 * 4096);
        assert_eq!(sized.memory_bytes_per_rank, (35 << 30) + (8 << 30) + PROCESS);
    }
}
