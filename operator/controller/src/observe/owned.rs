//! Objects by the UID of their controller, never by label alone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use kube::{Resource, ResourceExt as _};

use crate::watch::Change;

/// Objects by the UID of their controller, and by name.
#[derive(Clone, Debug)]
pub struct ByOwner<T>(HashMap<String, BTreeMap<String, T>>);

impl<T> Default for ByOwner<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> ByOwner<T> {
    /// What the owner with this UID controls, in the order of names.
    pub fn of(&self, owner: &str) -> impl Iterator<Item = &T> {
        self.0.get(owner).into_iter().flat_map(BTreeMap::values)
    }

    /// The one of this name among them.
    #[must_use]
    pub fn named(&self, owner: &str, name: &str) -> Option<&T> {
        self.0.get(owner)?.get(name)
    }

    /// Puts a value where it belongs.
    pub fn put(&mut self, owner: &str, name: &str, value: T) {
        match self.0.get_mut(owner) {
            Some(objects) => drop(objects.insert(name.to_owned(), value)),
            None => drop(
                self.0
                    .insert(owner.to_owned(), BTreeMap::from([(name.to_owned(), value)])),
            ),
        }
    }

    /// Forgets a value.
    pub fn remove(&mut self, owner: &str, name: &str) {
        if let Some(objects) = self.0.get_mut(owner) {
            objects.remove(name);
            if objects.is_empty() {
                self.0.remove(owner);
            }
        }
    }
}

impl<K: Resource> ByOwner<Arc<K>> {
    /// Takes in what became of an object; UIDs of the owners whom that concerns.
    pub fn change(&mut self, change: &Change<Arc<K>>) -> Vec<String> {
        let mut owners = Vec::new();
        if let Some((before, owner)) = change
            .before
            .as_ref()
            .and_then(|o| Some((o, controller(o.as_ref())?)))
        {
            self.remove(&owner, &before.name_any());
            owners.push(owner);
        }
        if let Some((after, owner)) = change
            .after
            .as_ref()
            .and_then(|o| Some((o, controller(o.as_ref())?)))
        {
            self.put(&owner, &after.name_any(), Arc::clone(after));
            if !owners.contains(&owner) {
                owners.push(owner);
            }
        }
        owners
    }
}

/// UID of an object's controller.
#[must_use]
pub fn controller(object: &impl Resource) -> Option<String> {
    let mut owners = object.owner_references().iter();
    owners
        .find(|owner| owner.controller == Some(true))
        .map(|owner| owner.uid.clone())
}
