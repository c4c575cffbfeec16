//! Which tensors a checkpoint may carry beside the weights. Everything else would change the answer if it were used, so
//! it is refused rather than ignored: biases, norms of heads, adapters, layers beyond the configuration's.

use std::collections::BTreeSet;

use crate::checkpoint::Checkpoint;
use crate::config::LlamaConfig;
use crate::error::LayoutError;

/// Small files beside the weights that a folder made from another takes over as they are, where the source has them;
/// `config.json` is not among them, because it may have to say something else.
pub(crate) const SMALL_FILES: [&str; 7] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE",
    "USE_POLICY.md",
];

/// Leaves beside `weight` that a matrix may have. Those of the input belong to quantised activations, which this
/// engine keeps as they are; those of the output are the KV cache's in AutoFP8's files.
const OF_MATRIX: [&str; 7] = [
    "weight",
    "weight_scale",
    "weight_scale_inv",
    "input_scale",
    "input_scale_ub",
    "activation_scale",
    "output_scale",
];

/// Scales of a quantised KV cache, which this engine keeps in bf16: of attention (compressed-tensors) or of one of its
/// projections (modelopt).
const OF_CACHE: [&str; 4] = ["k_scale", "v_scale", "q_scale", "kv_scale"];

/// Refuse the first tensor that is neither a weight of this Llama, which consists of these `modules`, nor one of its known
/// companions.
pub(crate) fn check(checkpoint: &Checkpoint, modules: &BTreeSet<String>) -> Result<(), LayoutError> {
    let other = checkpoint
        .tensors()
        .map(|(name, _)| name)
        .find(|name| !is_known(name, modules));
    other.map_or(Ok(()), |name| {
        Err(LayoutError::Unknown {
            name: name.to_owned(),
            hint: hint(name, checkpoint.config()),
        })
    })
}

fn is_known(name: &str, modules: &BTreeSet<String>) -> bool {
    let Some((module, leaf)) = name.rsplit_once('.') else {
        return false;
    };
    let of_attention = || {
        let attention = module.strip_suffix(".attn").unwrap_or(module);
        attention.ends_with(".self_attn") && modules.contains(&format!("{attention}.q_proj"))
    };
    modules.contains(module) && (OF_MATRIX.contains(&leaf) || OF_CACHE.contains(&leaf))
        || OF_CACHE.contains(&leaf) && of_attention()
        // Older checkpoints store the rotary frequencies, which follow from the configuration.
        || name.ends_with(".rotary_emb.inv_freq")
}

fn hint(name: &str, config: &LlamaConfig) -> String {
    let layer = name
        .strip_prefix("model.layers.")
        .and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    match layer {
        Some(layer) if layer >= config.layers => format!(
            "config.json has {} layers; take the config.json that belongs to the weights",
            config.layers
        ),
        _ if name.ends_with(".bias") => "biases are not supported".to_owned(),
        _ => "it would change the answer and is not supported".to_owned(),
    }
}
