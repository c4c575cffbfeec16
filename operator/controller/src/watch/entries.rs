//! What a cache holds: one value an object, the version it is of, and what changed since somebody asked.

use std::collections::HashMap;

/// `namespace/name`.
type Name = Box<str>;

/// A value and the `resourceVersion` of its object.
#[derive(Clone, Debug)]
pub(super) struct Held<T> {
    pub(super) version: u64,
    pub(super) value: T,
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<T> {
    /// Its value when changes were asked for before; absent when it did not exist.
    pub before: Option<T>,
    /// Its value now; absent when it is gone.
    pub after: Option<T>,
}

/// A list that comes in.
pub(super) struct Listed<T> {
    objects: HashMap<Name, Held<T>>,
    version: u64,
}

impl<T> Listed<T> {
    /// A list that contains all that was written up to this version.
    pub(super) fn since(version: u64) -> Self {
        Self {
            objects: HashMap::new(),
            version,
        }
    }

    pub(super) fn add(&mut self, name: Name, held: Held<T>) {
        self.version = self.version.max(held.version);
        self.objects.insert(name, held);
    }

    /// Everything that was written up to this version is in it, or gone.
    pub(super) const fn version(&self) -> u64 {
        self.version
    }
}

/// All objects of a cache.
pub(super) struct Entries<T> {
    objects: HashMap<Name, Held<T>>,
    /// What these were when changes were asked for last.
    changed: HashMap<Name, Option<T>>,
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self {
            objects: HashMap::new(),
            changed: HashMap::new(),
        }
    }
}

impl<T: Clone + PartialEq> Entries<T> {
    /// Takes in a value unless a newer one is known. Whether that changes anything.
    pub(super) fn put(&mut self, name: Name, held: Held<T>) -> bool {
        let known = self.objects.get_mut(&name);
        // A version that is no number reads as zero, and says nothing about order.
        if known
            .as_ref()
            .is_some_and(|known| held.version != 0 && known.version > held.version)
        {
            return false;
        }
        let before = match known {
            Some(known) => {
                known.version = held.version;
                if known.value == held.value {
                    return false;
                }
                Some(std::mem::replace(&mut known.value, held.value))
            }
            None => {
                self.objects.insert(name.clone(), held);
                None
            }
        };
        self.changed.entry(name).or_insert(before);
        true
    }

    /// Takes in what a write has made, unless the watch, which has seen everything up to `seen`, knows better.
    pub(super) fn wrote(&mut self, name: Name, held: Held<T>, seen: u64) {
        if held.version > seen {
            self.put(name, held);
        }
    }

    /// Forgets an object that was deleted by this version. Whether it was there.
    pub(super) fn remove(&mut self, name: &str, version: u64) -> bool {
        let known = self.objects.get(name);
        if known.is_none_or(|known| version != 0 && known.version > version) {
            return false;
        }
        if let Some((name, gone)) = self.objects.remove_entry(name) {
            self.changed.entry(name).or_insert(Some(gone.value));
        }
        true
    }

    /// Everything is as listed, except what was written later. Whether that changes anything.
    pub(super) fn replace(&mut self, list: Listed<T>) -> bool {
        let Listed { objects, version } = list;
        let gone: Vec<Name> = self
            .objects
            .iter()
            .filter(|(name, held)| held.version <= version && !objects.contains_key(*name))
            .map(|(name, _)| name.clone())
            .collect();
        let mut changed = !gone.is_empty();
        for name in gone {
            self.remove(&name, 0);
        }
        for (name, held) in objects {
            changed |= self.put(name, held);
        }
        changed
    }

    /// What changed since the last time.
    pub(super) fn take(&mut self) -> Vec<Change<T>> {
        let changed = std::mem::take(&mut self.changed);
        changed
            .into_iter()
            .map(|(name, before)| Change {
                before,
                after: self.objects.get(&name).map(|held| held.value.clone()),
            })
            .filter(|change| change.before != change.after)
            .collect()
    }

    #[cfg(test)]
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.objects.values().map(|held| &held.value)
    }
}
