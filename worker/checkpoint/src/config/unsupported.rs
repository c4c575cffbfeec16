//! What a `config.json` may say that would change the answer and is not built.

use serde_json::Value;

use super::{ConfigError, value};

/// A field, whether a value of it means what this engine does anyway, and what it does.
type Rule = (&'static str, fn(&Value) -> bool, &'static str);

const RULES: [Rule; 18] = [
    ("hidden_act", |v| *v == "silu", "only \"silu\" is supported"),
    (
        "attention_bias",
        is_false,
        "Llama 3 models have no biases; such weights are not supported",
    ),
    (
        "mlp_bias",
        is_false,
        "Llama 3 models have no biases; such weights are not supported",
    ),
    (
        "layer_types",
        is_full_attention,
        "every layer must have \"full_attention\"",
    ),
    (
        "attention_chunk_size",
        never,
        "attention must see the whole context",
    ),
    ("no_rope_layers", is_empty, "every layer must rotate"),
    ("partial_rotary_factor", is_one, "all of a head must be rotated"),
    (
        "use_qk_norm",
        is_false,
        "norms of queries and keys are not supported",
    ),
    ("qk_norm", is_false, "norms of queries and keys are not supported"),
    (
        "attention_multiplier",
        never,
        "scores must be divided by the root of head_dim",
    ),
    ("attn_logit_softcapping", never, "scores must not be capped"),
    ("final_logit_softcapping", never, "logits must not be capped"),
    ("logits_scaling", is_one, "logits must not be scaled"),
    ("logit_scale", is_one, "logits must not be scaled"),
    ("embedding_multiplier", is_one, "embeddings must not be scaled"),
    (
        "residual_multiplier",
        is_one,
        "the residual stream must not be scaled",
    ),
    (
        "num_local_experts",
        is_zero,
        "mixtures of experts are not supported",
    ),
    ("num_experts", is_zero, "mixtures of experts are not supported"),
];

/// Refuse the first field with a meaning that is not built. Absent and null mean the usual.
pub(super) fn check(config: &Value) -> Result<(), ConfigError> {
    for (field, usual, reason) in RULES {
        let given = config.get(field).filter(|given| !given.is_null());
        if let Some(given) = given.filter(|given| !usual(given)) {
            return Err(value(field, given, reason));
        }
    }
    let window = config.get("sliding_window").filter(|window| !window.is_null());
    match window {
        // Configurations of other families carry a window that is switched off.
        Some(window) if config.get("use_sliding_window") != Some(&Value::Bool(false)) => Err(value(
            "sliding_window",
            window,
            "attention must see the whole context",
        )),
        _ => Ok(()),
    }
}

fn never(_: &Value) -> bool {
    false
}

fn is_false(value: &Value) -> bool {
    *value == false
}

fn is_zero(value: &Value) -> bool {
    *value == 0
}

fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

fn is_full_attention(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|layers| layers.iter().all(|kind| *kind == "full_attention"))
}
