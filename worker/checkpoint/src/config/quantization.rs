//! `quantization_config`: the FP8 schemes of Meta, Red Hat (compressed-tensors) and NVIDIA (modelopt).

use serde_json::Value;

use super::ConfigError;

/// Who quantised the weights, which fixes names and shapes of the scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantMethod {
    /// Meta's row-wise FP8: `weight_scale` `[N, 1]`.
    FbgemmFp8,
    /// compressed-tensors `float-quantized`: one scale a row (`channel`) or a tensor (`tensor`).
    CompressedTensors,
    /// NVIDIA modelopt FP8: one scale a tensor.
    Modelopt,
}

impl QuantMethod {
    /// The name in `quant_method`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FbgemmFp8 => "fbgemm_fp8",
            Self::CompressedTensors => "compressed-tensors",
            Self::Modelopt => "modelopt",
        }
    }
}

/// What the configuration says about quantisation. Which matrices are quantised is told by the headers alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantization {
    /// Who quantised.
    pub method: QuantMethod,
    /// Upper bound of an activation's magnitude before it is quantised (`activation_scale_ub`).
    pub activation_scale_ub: Option<f32>,
    /// Modules said to be left alone, for display.
    pub excluded: Vec<String>,
}

impl Quantization {
    /// Parse `quantization_config` of `config.json`.
    pub fn from_config(json: &Value) -> Result<Self, ConfigError> {
        match text(json, "quant_method") {
            "fbgemm_fp8" => Ok(Self {
                method: QuantMethod::FbgemmFp8,
                activation_scale_ub: json["activation_scale_ub"].as_f64().map(|bound| bound as f32),
                excluded: strings(&json["modules_to_not_convert"]),
            }),
            "compressed-tensors" => Self::compressed_tensors(json),
            "modelopt" => Self::modelopt(json),
            other => Err(scheme(other)),
        }
    }

    /// Parse modelopt's `hf_quant_config.json`.
    pub fn from_sidecar(json: &Value) -> Result<Self, ConfigError> {
        Self::modelopt(&json["quantization"])
    }

    fn compressed_tensors(json: &Value) -> Result<Self, ConfigError> {
        let format = text(json, "format");
        if !matches!(format, "float-quantized" | "naive-quantized" | "") {
            return Err(scheme(&format!("compressed-tensors {format}")));
        }
        let groups = json["config_groups"]
            .as_object()
            .into_iter()
            .flat_map(|groups| groups.values());
        for weights in groups
            .map(|group| &group["weights"])
            .filter(|weights| !weights.is_null())
        {
            let (kind, bits, strategy) = (
                text(weights, "type"),
                &weights["num_bits"],
                text(weights, "strategy"),
            );
            if kind != "float" || bits.as_u64() != Some(8) || !matches!(strategy, "channel" | "tensor") {
                return Err(scheme(&format!(
                    "compressed-tensors {kind} of {bits} bits a {strategy}"
                )));
            }
        }
        Ok(Self {
            method: QuantMethod::CompressedTensors,
            activation_scale_ub: None,
            excluded: strings(&json["ignore"]),
        })
    }

    fn modelopt(json: &Value) -> Result<Self, ConfigError> {
        match text(json, "quant_algo") {
            "FP8" => Ok(Self {
                method: QuantMethod::Modelopt,
                activation_scale_ub: None,
                excluded: strings(if json["exclude_modules"].is_null() {
                    &json["ignore"]
                } else {
                    &json["exclude_modules"]
                }),
            }),
            other => Err(scheme(&format!("modelopt {other}"))),
        }
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
               compressed-tensors, modelopt)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_three_schemes() {
        let meta = json!({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0,
            "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.down_proj"]});
        let meta = Quantization::from_config(&meta).unwrap();
        assert_eq!(
            (meta.method, meta.activation_scale_ub),
            (QuantMethod::FbgemmFp8, Some(1200.0))
        );
        assert_eq!(meta.excluded.len(), 2);

        let red_hat = json!({"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true}}}});
        assert_eq!(
            Quantization::from_config(&red_hat).unwrap().method,
            QuantMethod::CompressedTensors
        );

        let nvidia = json!({"producer": {"name": "modelopt"},
            "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}});
        let nvidia = Quantization::from_sidecar(&nvidia).unwrap();
        assert_eq!(
            (nvidia.method, nvidia.excluded),
            (QuantMethod::Modelopt, vec!["lm_head".to_owned()])
        );
    }

    #[test]
    fn other_schemes_are_refused_by_name() {
        let refusal = |json: Value| Quantization::from_config(&json).unwrap_err().to_string();
        assert!(refusal(json!({"quant_method": "gptq"})).contains("gptq"));
        assert!(refusal(json!({})).contains("unnamed"));
        assert!(refusal(json!({"quant_method": "modelopt", "quant_algo": "NVFP4"})).contains("NVFP4"));
        let block = json!({"quant_method": "compressed-tensors", "format": "float-quantized",
            "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "block"}}}});
        assert!(refusal(block).contains("a block"));
    }
}
