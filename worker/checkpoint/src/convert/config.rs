//! `config.json` from GGUF metadata.

use serde_json::{Value, json};

use super::ConvertError;
use crate::config::{Llama3Rope, LlamaConfig};
use crate::error::Result;
use crate::gguf::{GgufFile, GgufValue};

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
        "vocab_size": gguf.require_tensor("token_embd.weight")?.rows,
        "max_position_embeddings": number("context_length")?,
        "rms_norm_eps": exact(gguf.require("llama.attention.layer_norm_rms_epsilon", GgufValue::as_f32)?),
        "rope_theta": theta,
        "rope_scaling": rope_scaling(gguf, theta, head_dim)?.map(scaling_json),
        "tie_word_embeddings": !gguf.tensors().contains_key("output.weight"),
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": optional("tokenizer.ggml.bos_token_id"),
        "eos_token_id": optional("tokenizer.ggml.eos_token_id"),
        "pad_token_id": optional("tokenizer.ggml.padding_token_id"),
    });
    let llama = LlamaConfig::from_json(json.clone())?;
    Ok(Converted { json, llama })
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
