//! Which pods are known to exist without a cache: the API server has answered their creation, or a question about them.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Pods that are remembered at most. They are forgotten when they are recorded or deleted; beyond this number all are, which costs a list each.
const MOST: usize = 65_536;

/// UIDs of pods that are known to exist. Whether a pod of an earlier process exists must be asked.
#[derive(Debug, Default)]
pub struct Proofs(Mutex<HashSet<String>>);

impl Proofs {
    /// The pod exists.
    pub fn exists(&self, uid: String) {
        let mut known = self.lock();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(uid);
    }

    /// Whether all of these exist for all that this process knows.
    #[must_use]
    pub fn all(&self, uids: &[String]) -> bool {
        let known = self.lock();
        uids.iter().all(|uid| known.contains(uid))
    }

    /// The proofs were used, or hold no longer.
    pub fn forget<'a>(&self, uids: impl IntoIterator<Item = &'a String>) {
        let mut known = self.lock();
        for uid in uids {
            known.remove(uid);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_answered_for_must_be_asked() {
        let proofs = Proofs::default();
        let uids = ["a".to_owned(), "b".to_owned()];
        proofs.exists("a".into());
        assert!(!proofs.all(&uids));
        proofs.exists("b".into());
        assert!(proofs.all(&uids));
        proofs.forget(&uids[..1]);
        assert!(!proofs.all(&uids) && proofs.all(&uids[1..]));
    }
}
