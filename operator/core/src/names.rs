//! Which deployment a model name belongs to: the oldest that asks for it, so that a new object never takes another one's requests. What looks
//! like a name in a namespace, `namespace/model`, belongs to that namespace.

use std::collections::{BTreeMap, btree_map::Entry};

use llamero_api::LlamaDeployment;

use crate::{
    observed::Deployment,
    plan::Key,
    time::{self, Millis},
};

/// Since when a deployment is there, and which one it is.
type Claim = (Millis, Key);

/// The owner of every model name.
#[derive(Clone, Debug, Default)]
pub struct NameOwners<'a> {
    names: BTreeMap<&'a str, Claim>,
    /// By `namespace/model`.
    qualified: BTreeMap<String, Claim>,
}

impl<'a> NameOwners<'a> {
    /// The oldest deployment of each name; of two made in one second the first by namespace and name.
    #[must_use]
    pub fn of(deployments: impl Iterator<Item = &'a Deployment>) -> Self {
        let mut owners = Self::default();
        for deployment in deployments {
            let object = deployment.object.as_ref();
            let created = object
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(Millis::MAX, time::millis);
            let claim = (created, Key::of(&object.metadata));
            let qualified = format!("{}/{}", claim.1.namespace, object.model_name());
            older(owners.qualified.entry(qualified), claim.clone());
            older(owners.names.entry(object.model_name()), claim);
        }
        owners
    }

    /// The owner of a deployment's model name, if that is another deployment.
    #[must_use]
    pub fn other_owner(&self, object: &LlamaDeployment, key: &Key) -> Option<Key> {
        let model = object.model_name();
        let (_, owner) = self.qualified.get(model).or_else(|| self.names.get(model))?;
        (owner != key).then(|| owner.clone())
    }
}

fn older<K: Ord>(entry: Entry<'_, K, Claim>, claim: Claim) {
    let owner = entry.or_insert_with(|| claim.clone());
    if claim < *owner {
        *owner = claim;
    }
}
