//! LoRA adapters that are served beside a model.

use kube::KubeSchema;
use llamero_settings::limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A LoRA adapter, which clients ask for by its name.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.name.matches('^[A-Za-z0-9][-A-Za-z0-9._/:]*$')")
        .message("an adapter's name has letters, digits and the signs - . _ / : and begins with a letter or a digit"),
    validation = Rule::new("!(self.path.startsWith('/') || self.path.split('/').exists(part, part == '..' || part == '.'))")
        .message("an adapter's path must be relative to the model's directory and may not contain . or ..")
)]
#[serde(rename_all = "camelCase")]
pub struct Adapter {
    /// The name that clients give as the model.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// Its directory below that of the model, as PEFT saves it: `adapter_config.json` and `adapter_model.safetensors`.
    #[schemars(length(min = 1, max = 512))]
    pub path: String,
}

/// Room for LoRA adapters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lora {
    /// Most adapters that may be loaded at once, by `adapters` and at run time. Their memory is set aside.
    #[schemars(range(min = 1, max = *limits::MAX_ADAPTERS.end()))]
    pub max_adapters: i32,
    /// The largest rank of an adapter.
    #[serde(default = "Lora::usual_rank")]
    #[schemars(range(min = *limits::MAX_ADAPTER_RANK.start(), max = *limits::MAX_ADAPTER_RANK.end()))]
    pub max_rank: i32,
}

impl Lora {
    fn usual_rank() -> i32 {
        16
    }
}
