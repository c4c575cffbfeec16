//! `config.json` of a Llama model.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{ConfigError, Llama3Rope, Quantization, rope, unsupported, value};
use crate::io_error::read_if_there;

/// A checked Llama configuration. Every size is at least 1, `q_heads` is a multiple of `kv_heads`, `head_dim` is even.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Number of transformer layers.
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
    /// The ε of the RMS norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Llama 3.1's scaling of the rotary frequencies, if any.
    pub rope_scaling: Option<Llama3Rope>,
    /// Whether the head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Longest sequence the model was trained for, in tokens.
    pub max_position_embeddings: u32,
    /// How the weights say they are quantised; the dtypes in the headers decide.
    pub quantization: Option<Quantization>,
    /// Tokens that end a text, as config.json has them; `generation_config.json` takes precedence.
    pub eos_token_ids: Vec<u32>,
    /// Token that starts a text.
    pub bos_token_id: Option<u32>,
}

#[derive(Deserialize)]
struct Raw {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    hidden_size: Option<u32>,
    num_hidden_layers: Option<u32>,
    num_attention_heads: Option<u32>,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    intermediate_size: Option<u32>,
    vocab_size: Option<u32>,
    rms_norm_eps: Option<f64>,
    tie_word_embeddings: Option<bool>,
    max_position_embeddings: Option<u32>,
    #[serde(default)]
    eos_token_id: TokenIds,
    bos_token_id: Option<u32>,
}

/// One id, several, or none.
#[derive(Default, Deserialize)]
#[serde(untagged, expecting = "an id of a token, or a list of ids, was expected")]
pub(super) enum TokenIds {
    #[default]
    None,
    One(u32),
    Many(Vec<u32>),
}

impl TokenIds {
    pub(super) fn into_vec(self) -> Vec<u32> {
        match self {
            Self::None => Vec::new(),
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

/// Larger sizes are nonsense, and below this limit products of two sizes fit a u64 with room to spare.
const MAX_SIZE: u32 = 1 << 24;

impl LlamaConfig {
    /// Read `config.json` at `path`; when it has no `quantization_config`, look for modelopt's `hf_quant_config.json`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let Some(bytes) = read_if_there(path)? else {
            return Err(ConfigError::NotThere {
                path: path.to_path_buf(),
            });
        };
        let json = |path: &Path, bytes: &[u8]| -> Result<Value, ConfigError> {
            serde_json::from_slice(bytes).map_err(|source| ConfigError::Json {
                path: path.to_path_buf(),
                source,
            })
        };
        let mut config = Self::from_json(json(path, &bytes)?).map_err(|error| match error {
            ConfigError::Json { source, .. } => ConfigError::Json {
                path: path.to_path_buf(),
                source,
            },
            other => other,
        })?;
        let sidecar = path.with_file_name("hf_quant_config.json");
        if config.quantization.is_none()
            && let Some(bytes) = read_if_there(&sidecar)?
        {
            config.quantization = Quantization::from_sidecar(&json(&sidecar, &bytes)?)?;
        }
        Ok(config)
    }

    /// Check a parsed `config.json`.
    pub fn from_json(json: Value) -> Result<Self, ConfigError> {
        let raw = Raw::deserialize(&json).map_err(|source| ConfigError::Json {
            path: "config.json".into(),
            source,
        })?;
        check_architecture(&raw)?;
        unsupported::check(&json)?;
        let (rope_theta, rope_scaling) = rope::parse(&json)?;
        let hidden_size = size("hidden_size", raw.hidden_size)?;
        let q_heads = size("num_attention_heads", raw.num_attention_heads)?;
        let kv_heads = size("num_key_value_heads", raw.num_key_value_heads.or(Some(q_heads)))?;
        if !q_heads.is_multiple_of(kv_heads) {
            return Err(value(
                "num_key_value_heads",
                kv_heads,
                "it must divide num_attention_heads",
            ));
        }
        if raw.head_dim.is_none() && !hidden_size.is_multiple_of(q_heads) {
            return Err(value(
                "hidden_size",
                hidden_size,
                "without head_dim it must be a multiple of the heads",
            ));
        }
        let head_dim = size("head_dim", raw.head_dim.or(Some(hidden_size / q_heads)))?;
        if !head_dim.is_multiple_of(2) {
            return Err(value(
                "head_dim",
                head_dim,
                "it must be even, because rotary embedding pairs elements",
            ));
        }
        let rms_norm_eps = raw.rms_norm_eps.ok_or(ConfigError::Missing {
            field: "rms_norm_eps",
        })?;
        if !(rms_norm_eps > 0.0 && rms_norm_eps < 1.0) {
            return Err(value("rms_norm_eps", rms_norm_eps, "it must lie between 0 and 1"));
        }
        Ok(Self {
            hidden_size,
            layers: size("num_hidden_layers", raw.num_hidden_layers)?,
            q_heads,
            kv_heads,
            head_dim,
            ffn_size: size("intermediate_size", raw.intermediate_size)?,
            vocab_size: size("vocab_size", raw.vocab_size)?,
            rms_norm_eps,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            max_position_embeddings: size("max_position_embeddings", raw.max_position_embeddings)?,
            quantization: Quantization::from_config(&json)?,
            eos_token_ids: raw.eos_token_id.into_vec(),
            bos_token_id: raw.bos_token_id,
        })
    }

    /// Bytes that one token takes in the KV cache of one layer for one kv head, K and V together, in bf16.
    #[must_use]
    pub fn kv_bytes_per_head(&self) -> u64 {
        2 * 2 * u64::from(self.head_dim)
    }
}

fn check_architecture(raw: &Raw) -> Result<(), ConfigError> {
    let named = raw.architectures.as_ref().and_then(|names| names.first());
    match (named.map(String::as_str), raw.model_type.as_deref()) {
        (Some("LlamaForCausalLM"), Some("llama") | None) | (None, Some("llama")) => {}
        (Some(other), _) if other != "LlamaForCausalLM" => {
            return Err(ConfigError::Architecture {
                found: other.to_owned(),
            });
        }
        (_, Some(other)) => {
            return Err(ConfigError::Architecture {
                found: other.to_owned(),
            });
        }
        (_, None) => return Err(ConfigError::Missing { field: "model_type" }),
    }
    Ok(())
}

fn size(field: &'static str, given: Option<u32>) -> Result<u32, ConfigError> {
    let given = given.ok_or(ConfigError::Missing { field })?;
    if given == 0 || given > MAX_SIZE {
        return Err(value(field, given, "it must lie between 1 and 16777216"));
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn llama_8b() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
            "vocab_size": 128256, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": false,
            "max_position_embeddings": 131072, "eos_token_id": [128001, 128008, 128009], "bos_token_id": 128000,
            "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3"}
        })
    }

    fn with(field: &str, value: Value) -> Result<LlamaConfig, ConfigError> {
        let mut json = llama_8b();
        json[field] = value;
        LlamaConfig::from_json(json)
    }

    #[test]
    fn llama_3_1_8b() {
        let config = LlamaConfig::from_json(llama_8b()).unwrap();
        assert_eq!((config.head_dim, config.q_heads, config.kv_heads), (128, 32, 8));
        assert_eq!(config.eos_token_ids, [128_001, 128_008, 128_009]);
        let scaling = config.rope_scaling.unwrap();
        assert_eq!(
            (scaling.factor, scaling.original_max_position_embeddings),
            (8.0, 8192)
        );
    }

    #[test]
    fn the_rotary_fields_of_transformers_5() {
        let mut json = llama_8b();
        let object = json.as_object_mut().unwrap();
        let mut parameters = object.remove("rope_scaling").unwrap();
        parameters["rope_theta"] = object.remove("rope_theta").unwrap();
        json["rope_parameters"] = parameters;
        assert_eq!(
            LlamaConfig::from_json(json).unwrap(),
            LlamaConfig::from_json(llama_8b()).unwrap()
        );
        let plain = with(
            "rope_parameters",
            json!({"rope_type": "default", "rope_theta": 1.0}),
        );
        assert!(
            plain.unwrap().rope_scaling.is_some(),
            "rope_scaling wins where both exist"
        );
        let mut inside = llama_8b();
        inside["rope_scaling"] = Value::Null;
        inside["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 10_000});
        let inside = LlamaConfig::from_json(inside).unwrap();
        assert_eq!((inside.rope_theta, inside.rope_scaling), (10_000.0, None));
    }

    #[test]
    fn what_says_the_usual_changes_nothing() {
        let mut json = llama_8b();
        for (field, value) in [
            ("attention_bias", json!(false)),
            ("mlp_bias", Value::Null),
            ("hidden_act", json!("silu")),
            ("head_dim", json!(128)),
            ("sliding_window", json!(4096)),
            ("use_sliding_window", json!(false)),
            ("layer_types", json!(["full_attention"])),
            ("partial_rotary_factor", json!(1.0)),
            ("pretraining_tp", json!(1)),
            ("torch_dtype", json!("bfloat16")),
            ("dtype", json!("bfloat16")),
            ("quantization_config", Value::Null),
        ] {
            json[field] = value;
        }
        assert_eq!(
            LlamaConfig::from_json(json).unwrap(),
            LlamaConfig::from_json(llama_8b()).unwrap()
        );
        assert_eq!(with("rope_scaling", Value::Null).unwrap().rope_scaling, None);
        assert_eq!(with("rope_scaling", json!({})).unwrap().rope_scaling, None);
        assert_eq!(with("head_dim", json!(64)).unwrap().head_dim, 64);
        assert_eq!(with("eos_token_id", json!(2)).unwrap().eos_token_ids, [2]);
        assert!(
            with("eos_token_id", Value::Null)
                .unwrap()
                .eos_token_ids
                .is_empty()
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let refusal = |field: &str, value: Value| with(field, value).unwrap_err().to_string();
        assert!(refusal("architectures", json!(["MistralForCausalLM"])).contains("MistralForCausalLM"));
        assert!(refusal("model_type", json!("qwen3")).contains("qwen3"));
        assert!(refusal("hidden_act", json!("gelu")).contains("gelu"));
        for (field, value) in [
            ("mlp_bias", json!(true)),
            ("attention_bias", json!(true)),
            ("sliding_window", json!(4096)),
            ("layer_types", json!(["full_attention", "sliding_attention"])),
            ("partial_rotary_factor", json!(0.5)),
            ("attention_multiplier", json!(0.015_625)),
            ("logits_scaling", json!(8.0)),
            ("num_local_experts", json!(8)),
            ("no_rope_layers", json!([1, 1, 1, 0])),
            ("rope_theta", json!("500000")),
            ("rope_scaling", json!(8.0)),
        ] {
            assert!(refusal(field, value).contains(field), "{field}");
        }
        assert!(refusal("num_key_value_heads", json!(5)).contains("must divide"));
        assert!(refusal("hidden_size", json!(0)).contains("between 1 and"));
        assert!(refusal("hidden_size", json!(4_000_000_000u64)).contains("between 1 and"));
        assert!(refusal("head_dim", json!(63)).contains("even"));
        assert!(refusal("vocab_size", Value::Null).contains("lacks vocab_size"));
        assert!(refusal("rms_norm_eps", json!(-1.0)).contains("rms_norm_eps"));
        for kind in ["yarn", "linear", "dynamic", "longrope"] {
            assert!(refusal("rope_scaling", json!({"rope_type": kind, "factor": 4.0})).contains(kind));
            assert!(refusal("rope_scaling", json!({"type": kind, "factor": 4.0})).contains(kind));
        }
        assert!(refusal("rope_scaling", json!({"rope_type": 3})).contains("must be a text"));
        assert!(refusal("eos_token_id", json!(["</s>"])).contains("list of ids"));
        assert!(refusal("quantization_config", json!({"quant_method": "awq"})).contains("awq"));
    }
}
