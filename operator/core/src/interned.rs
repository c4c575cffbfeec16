//! Names that stand in thousands of objects, kept once.

use std::{
    cmp::Ordering,
    collections::HashSet,
    hash::{Hash, Hasher},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

/// Names that are kept at most; more are not shared, which costs memory and nothing else.
const MOST: usize = 4096;

static NAMES: LazyLock<Mutex<HashSet<Arc<str>>>> = LazyLock::new(Mutex::default);

/// The name of a resource. Equal names are one allocation, so that comparing them seldom looks at their letters.
#[derive(Clone, Debug)]
pub(crate) struct Name(Arc<str>);

impl Name {
    /// The one of these letters.
    pub(crate) fn of(name: &str) -> Self {
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(name) {
            return Self(Arc::clone(known));
        }
        let new: Arc<str> = name.into();
        if names.len() < MOST {
            names.insert(Arc::clone(&new));
        }
        Self(new)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) {
            return Ordering::Equal;
        }
        self.0.cmp(&other.0)
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_kept_once() {
        let (one, same, other) = (
            Name::of("example.com/a"),
            Name::of("example.com/a"),
            Name::of("cpu"),
        );
        assert!(Arc::ptr_eq(&one.0, &same.0));
        assert_eq!(one, same);
        assert!(other < one && one.as_str() == "example.com/a");
    }
}
