//! From deployments to models.

use std::collections::BTreeSet;

use super::types::{Model, ModelList};
use crate::discovery::{Deployment, Snapshot};
use crate::keys::Scope;

/// A deployment as a model. Deployments at zero are listed too: a request wakes them.
#[must_use]
pub fn model(deployment: &Deployment) -> Model {
    Model {
        id: deployment.model.clone(),
        object: "model",
        created: deployment.created,
        owned_by: deployment.key.to_string(),
        max_model_len: deployment.max_context,
    }
}

/// Every model in a scope once, by name.
#[must_use]
pub fn list(snapshot: &Snapshot, scope: &Scope) -> ModelList {
    let names: BTreeSet<&str> = snapshot
        .deployments()
        .map(|deployment| deployment.model.as_str())
        .collect();
    let data = names
        .into_iter()
        .filter_map(|name| snapshot.by_model_in(name, scope))
        .map(model)
        .collect();
    ModelList { object: "list", data }
}
