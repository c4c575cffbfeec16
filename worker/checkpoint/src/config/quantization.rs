//! `quantization_config`: the FP8 schemes of Meta, Red Hat (compressed-tensors), NVIDIA (modelopt), and plain `fp8`.
//!
//! Which matrices are quantised, and whether by row or as a whole, is told by the headers; what is read here says what
//! the bytes mean. Scales of activations are for engines that quantise those too; here they are kept as they are.

use serde_json::Value;

use super::ConfigError;

/// Who quantised the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantMethod {
    /// Meta's row-wise FP8: `weight_scale` `[N, 1]`.
    FbgemmFp8,
    /// compressed-tensors `float-quantized`: one scale a row (`channel`) or a tensor (`tensor`).
    CompressedTensors,
    /// NVIDIA modelopt FP8: one scale a tensor or a row.
    Modelopt,
    /// `fp8` of AutoFP8 and transformers: one scale a tensor.
    Fp8,
}

impl QuantMethod {
    /// The name in `quant_method`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FbgemmFp8 => "fbgemm_fp8",
            Self::CompressedTensors => "compressed-tensors",
            Self::Modelopt => "modelopt",
            Self::Fp8 => "fp8",
        }
    }
}

/// What the configuration says about quantisation.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantization {
    /// Who quantised.
    pub method: QuantMethod,
    /// Upper bound of an activation's magnitude before it is quantised (`activation_scale_ub`).
    pub activation_scale_ub: Option<f32>,
    /// Modules said to be left alone (names, prefixes or `re:` patterns), for display.
    pub excluded: Vec<String>,
}

impl Quantization {
    /// What `config.json` says; none where it says nothing.
    pub fn from_config(config: &Value) -> Result<Option<Self>, ConfigError> {
        let json = &config["quantization_config"];
        // MLX repeats its own form in `quantization_config`, without a name.
        if config["quantization"]["bits"].is_number() {
            return Err(scheme(&format!("MLX, {} bits", config["quantization"]["bits"])));
        }
        if json.is_null() {
            return Ok(None);
        }
        match text(json, "quant_method") {
            "fbgemm_fp8" => Ok(Some(Self {
                activation_scale_ub: json["activation_scale_ub"].as_f64().map(narrow),
                ..Self::new(QuantMethod::FbgemmFp8, &json["modules_to_not_convert"])
            })),
            "compressed-tensors" => Self::compressed_tensors(json).map(Some),
            "modelopt" => Self::modelopt(json),
            "fp8" => Self::fp8(json).map(Some),
            other => Err(scheme(other)),
        }
    }

    /// What modelopt's `hf_quant_config.json` says; none where it quantises the KV cache only.
    pub fn from_sidecar(json: &Value) -> Result<Option<Self>, ConfigError> {
        Self::modelopt(json)
    }

    fn new(method: QuantMethod, excluded: &Value) -> Self {
        Self {
            method,
            activation_scale_ub: None,
            excluded: strings(excluded),
        }
    }

    fn compressed_tensors(json: &Value) -> Result<Self, ConfigError> {
        let refused = |what: String| Err(scheme(&format!("compressed-tensors {what}")));
        let groups = json["config_groups"].as_object();
        let groups: Vec<&Value> = groups.into_iter().flat_map(|groups| groups.values()).collect();
        let sparsity = text(&json["sparsity_config"], "format");
        if !matches!(sparsity, "" | "dense") {
            return refused(format!("with the sparsity {sparsity}"));
        }
        let transforms = &json["transform_config"]["config_groups"];
        if transforms.as_object().is_some_and(|groups| !groups.is_empty()) {
            return refused("with transforms of the weights (transform_config)".to_owned());
        }
        // Newer files have a format in each group, and then perhaps "mixed-precision" for the whole.
        let format = match text(json, "format") {
            "mixed-precision" => "",
            format => format,
        };
        let formats = groups.iter().map(|group| text(group, "format"));
        for format in formats.chain([format]) {
            if !matches!(format, "float-quantized" | "naive-quantized" | "") {
                return refused(format.to_owned());
            }
        }
        for weights in groups
            .iter()
            .map(|group| &group["weights"])
            .filter(|weights| !weights.is_null())
        {
            let (kind, bits, strategy) = (
                text(weights, "type"),
                &weights["num_bits"],
                text(weights, "strategy"),
            );
            let float8 = kind == "float" && bits.as_u64() == Some(8);
            if weights["symmetric"] == false {
                return refused(format!("{kind} of {bits} bits a {strategy}, asymmetric"));
            }
            if !float8 || !matches!(strategy, "channel" | "tensor") {
                return refused(format!("{kind} of {bits} bits a {strategy}"));
            }
        }
        Ok(Self::new(QuantMethod::CompressedTensors, &json["ignore"]))
    }

    fn modelopt(json: &Value) -> Result<Option<Self>, ConfigError> {
        // The sidecar has one level more than `quantization_config`.
        let inner = &json["quantization"];
        let json = if inner.is_object() { inner } else { json };
        let excluded = match &json["exclude_modules"] {
            Value::Null => &json["ignore"],
            modules => modules,
        };
        match &json["quant_algo"] {
            Value::Null if inner.is_object() => Ok(None),
            Value::String(name) if matches!(name.as_str(), "FP8" | "FP8_PER_CHANNEL_PER_TOKEN") => {
                Ok(Some(Self::new(QuantMethod::Modelopt, excluded)))
            }
            Value::String(name) if name.starts_with("FP8_PB") => {
                Err(scheme(&format!("modelopt {name} (block-wise FP8)")))
            }
            other => Err(scheme(&format!(
                "modelopt {}",
                other.as_str().unwrap_or("without quant_algo")
            ))),
        }
    }

    fn fp8(json: &Value) -> Result<Self, ConfigError> {
        let block = &json["weight_block_size"];
        if !block.is_null() {
            return Err(scheme(&format!(
                "fp8 with a scale for each block of {block} (weight_block_size)"
            )));
        }
        let format = text(json, "fmt");
        if !matches!(format, "" | "e4m3") {
            return Err(scheme(&format!("fp8 {format}")));
        }
        let excluded = match &json["ignored_layers"] {
            Value::Null => &json["modules_to_not_convert"],
            modules => modules,
        };
        Ok(Self::new(QuantMethod::Fp8, excluded))
    }
}

fn text<'a>(json: &'a Value, key: &str) -> &'a str {
    json[key].as_str().unwrap_or("")
}

fn strings(json: &Value) -> Vec<String> {
    let items = json.as_array().into_iter().flatten();
    items
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

fn scheme(found: &str) -> ConfigError {
    ConfigError::Scheme {
        found: if found.is_empty() {
            "an unnamed scheme".to_owned()
        } else {
            found.to_owned()
        },
        hint: "use the bf16 weights, or FP8 weights with one scale a row or a tensor (fbgemm_fp8, \
               compressed-tensors, modelopt, fp8)",
    }
}

#[expect(clippy::cast_possible_truncation, reason = "it is applied to f32 values")]
fn narrow(bound: f64) -> f32 {
    bound as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(json: Value) -> Result<Option<Quantization>, ConfigError> {
        Quantization::from_config(&json!({ "quantization_config": json }))
    }

    fn compressed(change: impl FnOnce(&mut Value)) -> Result<Option<Quantization>, ConfigError> {
        let mut json = json!({"quant_method": "compressed-tensors", "format": "float-quantized",
            "ignore": ["re:.*lm_head"], "sparsity_config": {"format": "dense"}, "transform_config": {},
            "config_groups": {"group_0": {"targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true}}}});
        change(&mut json);
        parsed(json)
    }

    #[test]
    fn the_four_schemes() {
        let meta = json!({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0,
            "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.down_proj"]});
        let meta = parsed(meta).unwrap().unwrap();
        assert_eq!(
            (meta.method, meta.activation_scale_ub),
            (QuantMethod::FbgemmFp8, Some(1200.0))
        );
        assert_eq!(meta.excluded.len(), 2);

        let red_hat = compressed(|_| ()).unwrap().unwrap();
        assert_eq!(red_hat.method, QuantMethod::CompressedTensors);
        assert_eq!(red_hat.excluded, ["re:.*lm_head"]);
        let mixed = compressed(|json| {
            json["format"] = json!("mixed-precision");
            json["config_groups"]["group_0"]["format"] = json!("float-quantized");
        });
        assert!(mixed.is_ok());

        let nvidia = json!({"producer": {"name": "modelopt"},
            "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}});
        let nvidia = Quantization::from_sidecar(&nvidia).unwrap().unwrap();
        assert_eq!(
            (nvidia.method, nvidia.excluded),
            (QuantMethod::Modelopt, vec!["lm_head".to_owned()])
        );
        let cache_only = json!({"quantization": {"quant_algo": null, "kv_cache_quant_algo": "FP8"}});
        assert_eq!(Quantization::from_sidecar(&cache_only).unwrap(), None);

        let auto =
            json!({"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]});
        let auto = parsed(auto).unwrap().unwrap();
        assert_eq!((auto.method, auto.excluded.len()), (QuantMethod::Fp8, 1));
        let transformers = json!({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": null,
            "modules_to_not_convert": ["lm_head"]});
        assert_eq!(parsed(transformers).unwrap().unwrap().excluded, ["lm_head"]);
    }

    #[test]
    fn other_schemes_are_refused_by_name() {
        let refusal = |json: Value| parsed(json).unwrap_err().to_string();
        assert!(refusal(json!({"quant_method": "gptq"})).contains("gptq"));
        assert!(refusal(json!({})).contains("unnamed"));
        assert!(refusal(json!({"quant_method": "modelopt", "quant_algo": "NVFP4"})).contains("NVFP4"));
        assert!(refusal(json!({"quant_method": "modelopt"})).contains("without quant_algo"));
        assert!(
            refusal(json!({"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"})).contains("block-wise")
        );
        let block = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
        assert!(refusal(block).contains("each block of [128,128]"));
        assert!(refusal(json!({"quant_method": "fp8", "fmt": "e5m2"})).contains("e5m2"));
        let mlx = json!({"quantization": {"group_size": 64, "bits": 4}});
        assert!(
            Quantization::from_config(&mlx)
                .unwrap_err()
                .to_string()
                .contains("MLX, 4 bits")
        );
    }

    #[test]
    fn other_forms_of_compressed_tensors_are_refused_by_name() {
        let weights = |field: &str, value: Value| {
            let refused = compressed(|json| json["config_groups"]["group_0"]["weights"][field] = value);
            refused.unwrap_err().to_string()
        };
        assert!(weights("strategy", json!("block")).contains("a block"));
        assert!(weights("num_bits", json!(4)).contains("4 bits"));
        assert!(weights("type", json!("int")).contains("int of 8 bits"));
        assert!(weights("symmetric", json!(false)).contains("asymmetric"));
        let refusal =
            |field: &str, value: Value| compressed(|json| json[field] = value).unwrap_err().to_string();
        assert!(refusal("format", json!("pack-quantized")).contains("pack-quantized"));
        assert!(refusal("sparsity_config", json!({"format": "sparse-24-bitmask"})).contains("sparse-24"));
        let transform = json!({"config_groups": {"u": {"type": "hadamard"}}});
        assert!(refusal("transform_config", transform).contains("transform_config"));
    }
}
