//! Model objects of the OpenAI API.

use serde::Serialize;

/// One model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Model {
    /// The name to ask for.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// Unix seconds: when its deployment was created.
    pub created: i64,
    /// Namespace and name of its deployment.
    pub owned_by: String,
    /// vLLM's: of an adapter, the model that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// vLLM's: of an adapter, the model that it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// vLLM's: the longest context in tokens, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u32>,
}

/// All models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// The models, each once.
    pub data: Vec<Model>,
}
