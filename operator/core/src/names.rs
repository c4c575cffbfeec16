//! Which deployment a model name belongs to: the oldest that asks for it, so that a new object never takes another one's requests.

use std::collections::BTreeMap;

use llamero_api::LlamaDeployment;

use crate::{
    observed::Deployment,
    plan::Key,
    time::{self, Millis},
};

/// The owner of every model name.
#[derive(Clone, Debug, Default)]
pub struct NameOwners<'a>(BTreeMap<&'a str, (Millis, Key)>);

impl<'a> NameOwners<'a> {
    /// The oldest deployment of each name; of two made in one second the first by namespace and name.
    #[must_use]
    pub fn of(deployments: &[&'a Deployment]) -> Self {
        let mut owners: BTreeMap<&str, (Millis, Key)> = BTreeMap::new();
        for deployment in deployments {
            let object = deployment.object.as_ref();
            let created = object
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(Millis::MAX, time::millis);
            let claim = (created, Key::of(&object.metadata));
            let owner = owners.entry(object.model_name()).or_insert_with(|| claim.clone());
            if claim < *owner {
                *owner = claim;
            }
        }
        Self(owners)
    }

    /// The owner of a deployment's model name, if that is another deployment.
    #[must_use]
    pub fn other_owner(&self, object: &LlamaDeployment, key: &Key) -> Option<Key> {
        let (_, owner) = self.0.get(object.model_name())?;
        (owner != key).then(|| owner.clone())
    }
}
