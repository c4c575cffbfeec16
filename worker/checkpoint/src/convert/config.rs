//! `config.json` from GGUF metadata.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::ConvertError;
use crate::config::{Llama3Rope, LlamaConfig};
use crate::error::Result;
use crate::gguf::{GgufError, GgufFile, GgufValue};

/// The configuration as written and as checked.
pub(super) struct Converted {
    pub(super) json: Value,
    pub(super) llama: LlamaConfig,
}

pub(super) fn from_gguf(gguf: &GgufFile) -> Result<Converted> {
    let architecture = gguf.require("general.architecture", GgufValue::as_str)?;
    if architecture != "llama" {
        let (found, supported) = (architecture.to_owned(), "only \"llama\" can be converted");
        return Err(ConvertError::Unsupported {
            what: "the architecture",
            found,
            supported,
        }
        .into());
    }
    let number = |key: &str| gguf.require(&format!("llama.{key}"), GgufValue::as_u32);
    let optional = |key: &str| gguf.metadata().get(key).and_then(GgufValue::as_u32);
    if let Some(experts) = optional("llama.expert_count").filter(|count| *count > 0) {
        let (found, supported) = (experts.to_string(), "mixtures of experts cannot be converted");
        return Err(ConvertError::Unsupported {
            what: "the number of experts",
            found,
            supported,
        }
        .into());
    }
    let (hidden, heads) = (number("embedding_length")?, number("attention.head_count")?);
    let head_dim = optional("llama.attention.key_length").unwrap_or(hidden / heads.max(1));
    check_attention(gguf, head_dim)?;
    let vocabulary = gguf.require_tensor("token_embd.weight")?.rows;
    let theta = gguf
        .metadata()
        .get("llama.rope.freq_base")
        .and_then(GgufValue::as_f32)
        .map_or(10_000.0, exact);
    let json = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": hidden,
        "num_hidden_layers": number("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": optional("llama.attention.head_count_kv").unwrap_or(heads),
        "head_dim": head_dim,
        "intermediate_size": number("feed_forward_length")?,
        "vocab_size": vocabulary,
        "max_position_embeddings": number("context_length")?,
        "rms_norm_eps": exact(gguf.require("llama.attention.layer_norm_rms_epsilon", GgufValue::as_f32)?),
        "rope_theta": theta,
        "rope_scaling": rope_scaling(gguf, theta, head_dim)?.map(scaling_json),
        "tie_word_embeddings": !gguf.tensors().contains_key("output.weight"),
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": token(gguf, "bos", vocabulary)?,
        "eos_token_id": one_or_many(&end_tokens(gguf, vocabulary)?),
        "pad_token_id": token(gguf, "padding", vocabulary)?,
    });
    let llama = LlamaConfig::from_json(json.clone())?;
    Ok(Converted { json, llama })
}

/// What would change the answer and is not built: another head size for values, a rotation of a part of a head, a
/// sliding window, biases (as tensors, see `weights`).
fn check_attention(gguf: &GgufFile, head_dim: u32) -> Result<()> {
    let optional = |key: &str| gguf.metadata().get(key).and_then(GgufValue::as_u32);
    let checks = [
        (
            "llama.attention.value_length",
            head_dim,
            "values must be as wide as keys",
        ),
        (
            "llama.rope.dimension_count",
            head_dim,
            "all of a head must be rotated",
        ),
        (
            "llama.attention.sliding_window",
            0,
            "attention must see the whole context",
        ),
    ];
    for (what, wanted, supported) in checks {
        if let Some(found) = optional(what).filter(|found| *found != wanted) {
            let found = found.to_string();
            return Err(ConvertError::Unsupported {
                what,
                found,
                supported,
            }
            .into());
        }
    }
    Ok(())
}

/// The id in `tokenizer.ggml.{name}_token_id`, if it is there.
fn token(gguf: &GgufFile, name: &str, vocabulary: u64) -> Result<Option<u32>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    match gguf.metadata().get(&key).map(GgufValue::as_u32) {
        None => Ok(None),
        Some(Some(id)) if u64::from(id) < vocabulary => Ok(Some(id)),
        Some(_) => Err(GgufError::Damaged {
            path: gguf.path().to_path_buf(),
            reason: format!("{key} is not one of the {vocabulary} tokens; the file is damaged"),
        }
        .into()),
    }
}

/// Tokens that end an answer: of the text, of a turn, of a message. Converters rarely write the last two keys, so
/// Llama 3's tokens also count by their text, as llama.cpp has it. In ascending order, which is Meta's.
fn end_tokens(gguf: &GgufFile, vocabulary: u64) -> Result<Vec<u32>> {
    const LLAMA3_ENDS: [&str; 3] = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"];
    let mut ids = BTreeSet::new();
    for name in ["eos", "eot", "eom"] {
        ids.extend(token(gguf, name, vocabulary)?);
    }
    let tokens = gguf
        .metadata()
        .get("tokenizer.ggml.tokens")
        .and_then(GgufValue::as_array);
    let known = |token: &GgufValue| token.as_str().is_some_and(|text| LLAMA3_ENDS.contains(&text));
    let by_text = (0..).zip(tokens.unwrap_or(&[])).filter(|(_, token)| known(token));
    ids.extend(by_text.map(|(id, _)| id));
    Ok(ids.into_iter().collect())
}

fn one_or_many(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    }
}

/// The shortest decimal that is this f32: 1e-5 rather than 9.999999747378752e-6.
fn exact(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

fn scaling_json(rope: Llama3Rope) -> Value {
    json!({
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_max_position_embeddings,
    })
}

/// llama.cpp stores Llama 3.1's scaling as one factor for each frequency. The parameters behind them are the published
/// ones (factor 8 for 3.1, 32 for 3.2) or the file is refused.
fn rope_scaling(gguf: &GgufFile, theta: f64, head_dim: u32) -> Result<Option<Llama3Rope>> {
    let unsupported = |found: String| ConvertError::Unsupported {
        what: "the scaling of the rotary frequencies",
        found,
        supported: "Llama 3.1's and 3.2's can be converted",
    };
    let kind = gguf
        .metadata()
        .get("llama.rope.scaling.type")
        .and_then(GgufValue::as_str)
        .unwrap_or("none");
    if kind != "none" {
        return Err(unsupported(kind.to_owned()).into());
    }
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        let factor = gguf.metadata().get(key).and_then(GgufValue::as_f32);
        // Without a type, llama.cpp takes a factor as linear.
        if let Some(factor) = factor.filter(|factor| *factor != 0.0 && *factor != 1.0) {
            return Err(unsupported(format!("linear by {factor} ({key})")).into());
        }
    }
    let Some(tensor) = gguf.tensors().get("rope_freqs.weight") else {
        return Ok(None);
    };
    let mut factors = Vec::new();
    gguf.read_f32(tensor, 0, tensor.rows, &mut factors)?;
    let known = |factor| Llama3Rope {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let matches = |rope: &Llama3Rope| {
        factors.len() == (head_dim / 2) as usize
            && factors.iter().enumerate().all(|(index, factor)| {
                let frequency = theta.powf(-2.0 * index as f64 / f64::from(head_dim));
                (frequency / rope.scale(frequency) / f64::from(*factor) - 1.0).abs() < 1e-3
            })
    };
    match [8.0, 32.0].map(known).into_iter().find(matches) {
        Some(rope) => Ok(Some(rope)),
        None => Err(unsupported(format!("a list of {} other factors", factors.len())).into()),
    }
}
