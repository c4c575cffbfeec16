//! `adapter_config.json` of PEFT (`LoraConfig`, <https://huggingface.co/docs/peft/package_reference/lora>).
//!
//! What decides the arithmetic is read; what only steered the training is passed over; everything else must have the value that
//! changes nothing, or it is refused by name: a field that is silently ignored gives answers that look right and are not.
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "what comes in from outside must not be able to end the process, nor become another number"
    )
)]

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::error::AdapterError;

/// Fields that say nothing about what the adapter computes once it is saved, or what the tensors themselves show.
const PASSED_OVER: [&str; 17] = [
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];
/// Fields that [`LoraConfig::parse`] reads.
const READ: [&str; 8] = [
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "use_rslora",
];
/// Starting values after which the base model's weights are those that were published.
const STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];
/// Modules that may be adapted.
const MODULES: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];
/// Most entries of a pattern or list.
const MAX_ENTRIES: usize = 4096;
/// Largest α; anything near it is nonsense.
const MAX_ALPHA: f64 = 1e6;

const OTHER_SERVER: &str = "merge the adapter into its model, and serve that";

/// What of a configuration the arithmetic depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    rank: u32,
    alpha: f64,
    ranks: BTreeMap<String, u32>,
    alphas: BTreeMap<String, f64>,
    rank_stabilised: bool,
}

impl LoraConfig {
    /// Read and check the file's content.
    ///
    /// # Errors
    /// It is none, or wants what is not built.
    pub fn parse(json: &[u8]) -> Result<Self, AdapterError> {
        let fields: Map<String, Value> =
            serde_json::from_slice(json).map_err(|error| AdapterError::Config(error.to_string()))?;
        refuse(&fields)?;
        let rank = fields.get("r").map_or(Some(8), positive);
        let alpha = fields.get("lora_alpha").map_or(Some(8.0), number);
        let (Some(rank), Some(alpha)) = (rank, alpha) else {
            return Err(AdapterError::Config(
                "r must be a whole number from 1 on, and lora_alpha a finite number".into(),
            ));
        };
        Ok(Self {
            rank,
            alpha,
            ranks: pattern(&fields, "rank_pattern", positive)?,
            alphas: pattern(&fields, "alpha_pattern", number)?,
            rank_stabilised: fields.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        })
    }

    /// The rank of a module, by its name in the model.
    ///
    /// # Errors
    /// Two patterns that differ fit it.
    pub fn rank(&self, module: &str) -> Result<u32, AdapterError> {
        Ok(matching("rank_pattern", &self.ranks, module)?.unwrap_or(self.rank))
    }

    /// What `B · A` is multiplied by in a module: α / r, or α / √r where the adapter is rank-stabilised (Kalajdzievski, 2023).
    ///
    /// # Errors
    /// As [`Self::rank`].
    pub fn scale(&self, module: &str) -> Result<f32, AdapterError> {
        let rank = f64::from(self.rank(module)?);
        let alpha = matching("alpha_pattern", &self.alphas, module)?.unwrap_or(self.alpha);
        let divisor = if self.rank_stabilised { rank.sqrt() } else { rank };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "α is bounded, so the quotient is a finite f32"
        )]
        let scale = (alpha / divisor) as f32;
        Ok(scale)
    }
}

fn refuse(fields: &Map<String, Value>) -> Result<(), AdapterError> {
    let unsupported = |field: &str, value: &Value, advice| {
        let mut value = value.to_string();
        if value.len() > 80 {
            value = value.chars().take(80).collect::<String>() + "…";
        }
        Err(AdapterError::Unsupported {
            field: field.chars().take(80).collect(),
            value,
            advice,
        })
    };
    match fields.get("peft_type") {
        Some(Value::String(kind)) if kind == "LORA" => {}
        Some(other) => return unsupported("peft_type", other, "only LORA is built"),
        None => {
            return Err(AdapterError::Config(
                "it has no peft_type, so it is none of PEFT's".into(),
            ));
        }
    }
    match fields.get("bias") {
        None | Some(Value::Null) => {}
        Some(Value::String(bias)) if bias == "none" => {}
        Some(other) => return unsupported("bias", other, "train with bias=\"none\""),
    }
    match fields.get("init_lora_weights") {
        None | Some(Value::Null | Value::Bool(_)) => {}
        Some(Value::String(start)) if STARTS.contains(&start.as_str()) => {}
        Some(other) => {
            let advice =
                "it changes the base model's weights; save with path_initial_model_for_weight_conversion";
            return unsupported("init_lora_weights", other, advice);
        }
    }
    if let Some(stabilised) = fields.get("use_rslora")
        && !(stabilised.is_boolean() || stabilised.is_null())
    {
        return unsupported("use_rslora", stabilised, "it is true or false");
    }
    if let Some(targets) = fields.get("target_modules") {
        check_targets(targets)?;
    }
    let others = fields.iter().filter(|(name, value)| {
        let known = PASSED_OVER.contains(&name.as_str()) || READ.contains(&name.as_str());
        !known && !changes_nothing(value)
    });
    match others.into_iter().next() {
        Some((name, value)) => unsupported(name, value, OTHER_SERVER),
        None => Ok(()),
    }
}

/// A list of names is checked, so that a head or an embedding is called by its name. A text is a regular expression or
/// `all-linear`; what it came to is shown by the tensors.
fn check_targets(targets: &Value) -> Result<(), AdapterError> {
    let Value::Array(names) = targets else {
        return Ok(());
    };
    for name in names.iter().take(MAX_ENTRIES) {
        let last = name.as_str().and_then(|name| name.rsplit('.').next());
        if !last.is_some_and(|last| MODULES.contains(&last)) {
            return Err(AdapterError::Unsupported {
                field: "target_modules".into(),
                value: name.to_string().chars().take(80).collect(),
                advice: "adapters of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj are served",
            });
        }
    }
    Ok(())
}

fn changes_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(entries) => entries.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

fn positive(value: &Value) -> Option<u32> {
    value
        .as_u64()
        .and_then(|value| u32::try_from(value).ok())
        .filter(|value| *value > 0)
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|value| value.abs() <= MAX_ALPHA)
}

fn pattern<T>(
    fields: &Map<String, Value>,
    field: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<BTreeMap<String, T>, AdapterError> {
    let entries = match fields.get(field) {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(entries)) if entries.len() <= MAX_ENTRIES => entries,
        Some(_) => {
            let why = format!("{field} must be an object of at most {MAX_ENTRIES} entries");
            return Err(AdapterError::Config(why));
        }
    };
    let mut all = BTreeMap::new();
    for (name, value) in entries {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        let plain = name.strip_prefix('^').unwrap_or(name);
        if plain.is_empty() || !plain.chars().all(is_plain) {
            return Err(AdapterError::Unsupported {
                field: field.to_owned(),
                value: name.chars().take(80).collect(),
                advice: "names of modules are built as keys, such as q_proj or layers.0.self_attn.q_proj, not regular expressions",
            });
        }
        let Some(value) = read(value) else {
            return Err(AdapterError::Config(format!(
                "{field} has no usable number for {name}"
            )));
        };
        all.insert(name.clone(), value);
    }
    Ok(all)
}

/// What the pattern that ends the module's name says, at a dot. PEFT takes the first in the file's order, which JSON does not
/// promise: several that agree are as good as one.
fn matching<T: Copy + PartialEq>(
    field: &str,
    patterns: &BTreeMap<String, T>,
    module: &str,
) -> Result<Option<T>, AdapterError> {
    let fits = |pattern: &str| match pattern.strip_prefix('^') {
        Some(whole) => whole == module,
        None => module
            .strip_suffix(pattern)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
    };
    let mut found = patterns.iter().filter(|(pattern, _)| fits(pattern));
    let Some((first, value)) = found.next() else {
        return Ok(None);
    };
    match found.find(|(_, other)| *other != value) {
        Some((second, _)) => Err(AdapterError::Config(format!(
            "{field} has {first} and {second}, which both fit {module} and differ"
        ))),
        None => Ok(Some(*value)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(change: Value) -> Result<LoraConfig, AdapterError> {
        let mut config = json!({
            "peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "target_modules": ["q_proj", "mlp.down_proj"],
            "lora_dropout": 0.1, "use_dora": false, "modules_to_save": null, "rank_pattern": {}, "megatron_core": "megatron.core",
            "init_lora_weights": true, "fan_in_fan_out": false, "task_type": "CAUSAL_LM"
        });
        for (name, value) in change.as_object().unwrap() {
            config[name] = value.clone();
        }
        LoraConfig::parse(config.to_string().as_bytes())
    }

    #[test]
    fn the_scale_is_that_of_the_paper() {
        let module = "model.layers.3.self_attn.q_proj";
        assert_eq!(with(json!({})).unwrap().scale(module).unwrap(), 2.0);
        let stabilised = with(json!({"use_rslora": true, "r": 16})).unwrap();
        assert_eq!(stabilised.scale(module).unwrap(), 4.0);
        let patterned = with(
            json!({"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"^model.layers.3.self_attn.q_proj": 2.0}}),
        );
        let patterned = patterned.unwrap();
        assert_eq!(
            (patterned.rank(module).unwrap(), patterned.scale(module).unwrap()),
            (4, 0.5)
        );
        let other = "model.layers.4.self_attn.q_proj";
        assert_eq!(
            (patterned.rank(other).unwrap(), patterned.scale(other).unwrap()),
            (4, 4.0)
        );
        assert_eq!(
            patterned.rank("model.layers.4.self_attn.mq_proj").unwrap(),
            8,
            "no module ends so"
        );
        let both = with(json!({"rank_pattern": {"q_proj": 4, "self_attn.q_proj": 2}})).unwrap();
        assert!(both.rank(module).unwrap_err().to_string().contains("both fit"));
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for (change, named) in [
            (json!({"peft_type": "LOHA"}), "peft_type"),
            (json!({"use_dora": true}), "use_dora"),
            (json!({"bias": "all"}), "bias"),
            (json!({"lora_bias": true}), "lora_bias"),
            (json!({"modules_to_save": ["lm_head"]}), "modules_to_save"),
            (
                json!({"target_modules": ["q_proj", "embed_tokens"]}),
                "embed_tokens",
            ),
            (json!({"fan_in_fan_out": true}), "fan_in_fan_out"),
            (json!({"init_lora_weights": "pissa"}), "init_lora_weights"),
            (json!({"layer_replication": [[0, 4]]}), "layer_replication"),
            (json!({"alpha_pattern": {"q_.*": 2}}), "alpha_pattern"),
            (json!({"made_up": 3}), "made_up"),
            (json!({"r": 0}), "r must be"),
            (json!({"lora_alpha": 1e300}), "lora_alpha"),
        ] {
            let error = with(change).unwrap_err().to_string();
            assert!(error.contains(named), "{named}: {error}");
        }
        assert!(LoraConfig::parse(b"[]").is_err());
        assert!(
            LoraConfig::parse(b"{}")
                .unwrap_err()
                .to_string()
                .contains("peft_type")
        );
        assert!(with(json!({"target_modules": "all-linear", "init_lora_weights": "gaussian"})).is_ok());
    }
}
