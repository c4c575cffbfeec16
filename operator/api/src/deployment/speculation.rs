//! Speculative decoding: tokens that are drafted and checked together.

use kube::KubeSchema;
use llamero_settings::limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Speculative decoding: tokens are drafted and checked together in one step, which makes answers faster that repeat what was said before.
/// Answers are the same with and without; nothing is drafted where that would not pay.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.method != 'DraftModel'")
    .message("the method DraftModel is not built yet: take PromptLookup, or leave speculation out"))]
#[serde(rename_all = "camelCase")]
pub struct Speculation {
    /// Where drafts come from.
    pub method: SpeculationMethod,
    /// Most tokens that are drafted for a sequence in one step; fewer are where more would not pay. vLLM's `num_speculative_tokens`.
    #[serde(default = "Speculation::usual_drafts")]
    #[schemars(range(min = *limits::MAX_DRAFTS.start(), max = *limits::MAX_DRAFTS.end()))]
    pub max_drafts: i32,
}

/// Where drafts come from: what followed the last tokens when they stood in the prompt or the answer before (`PromptLookup`, vLLM's
/// `ngram`), or a smaller model (`DraftModel`, not built yet).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SpeculationMethod {
    /// The prompt and the answer so far.
    PromptLookup,
    /// A smaller model.
    DraftModel,
}

impl Speculation {
    fn usual_drafts() -> i32 {
        i32::try_from(limits::USUAL_DRAFTS).unwrap_or(i32::MAX)
    }
}
