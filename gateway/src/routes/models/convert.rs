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
        root: None,
        parent: None,
        max_model_len: deployment.max_context,
    }
}

/// An adapter of a deployment's model.
#[must_use]
pub fn adapter(deployment: &Deployment, name: String) -> Model {
    Model {
        id: name,
        root: Some(deployment.model.clone()),
        parent: Some(deployment.model.clone()),
        ..model(deployment)
    }
}

/// Every model in a scope once, by name, and the adapters whose names are no models'.
#[must_use]
pub fn list(snapshot: &Snapshot, scope: &Scope) -> ModelList {
    let adapters = snapshot.adapters_in(scope).into_iter();
    let adapters = adapters.map(|(name, deployment)| adapter(deployment, name));
    let names: BTreeSet<&str> = snapshot
        .deployments()
        .map(|deployment| deployment.model.as_str())
        .collect();
    let data = names
        .into_iter()
        .filter_map(|name| snapshot.by_model_in(name, scope))
        .map(model)
        .chain(adapters)
        .collect();
    ModelList { object: "list", data }
}
