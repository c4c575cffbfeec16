//! Adapters of the fake model: a file with a number, which every token that the adapter's rows compute is mixed with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use llamero_checkpoint::ContentIdentity;

use super::model;
use crate::adapters::{AdapterSource, AdapterStore};
use crate::backend::BackendError;

/// The file of an adapter's folder.
const FILE: &str = "salt";

#[derive(Default)]
pub(in crate::runtime) struct FakeAdapters(Mutex<BTreeMap<u32, u8>>);

impl FakeAdapters {
    /// What rows with that adapter are mixed with.
    pub(in crate::runtime) fn salt(&self, number: u32) -> Option<u8> {
        self.0.lock().unwrap().get(&number).copied()
    }
}

fn identity(salt: u8) -> ContentIdentity {
    format!("{salt:02x}").repeat(32).parse().unwrap()
}

impl AdapterStore for FakeAdapters {
    fn load(&self, source: &AdapterSource, folder: &Path, _: u32) -> Result<ContentIdentity, BackendError> {
        let number = source.number;
        if let Some(salt) = self.salt(number) {
            return Ok(identity(salt));
        }
        let unusable = |why: String| BackendError::Unusable(why);
        let text = std::fs::read_to_string(folder.join(FILE)).map_err(|error| unusable(error.to_string()))?;
        let salt: u8 = text.parse().map_err(|_| unusable(format!("{text} is no salt")))?;
        if source.identity.is_some_and(|wanted| wanted != identity(salt)) {
            return Err(unusable("another content".into()));
        }
        self.0.lock().unwrap().insert(number, salt);
        Ok(identity(salt))
    }

    fn unload(&self, number: u32) {
        self.0.lock().unwrap().remove(&number);
    }

    fn retain(&self, kept: &[AdapterSource]) {
        let is_kept = |number: &u32, salt: &mut u8| {
            let source = kept.iter().find(|source| source.number == *number);
            source.is_some_and(|source| source.identity == Some(identity(*salt)))
        };
        self.0.lock().unwrap().retain(is_kept);
    }
}

/// Make the adapter `name` below `root`.
pub(super) fn make(root: &Path, name: &str, salt: u8) {
    std::fs::create_dir_all(root.join(name)).unwrap();
    std::fs::write(root.join(name).join(FILE), salt.to_string()).unwrap();
}

/// A token as rows with an adapter keep it.
pub(in crate::runtime) fn mixed(token: u32, salt: u8) -> u32 {
    token | u32::from(salt) << 16
}

/// What a group must answer greedily with an adapter.
pub(super) fn reference(prompt: &[u32], salt: u8, count: usize) -> Vec<u32> {
    let mut history = prompt.to_vec();
    for _ in 0..count {
        let mixed: Vec<u32> = history.iter().map(|token| mixed(*token, salt)).collect();
        history.push(model::best(&mixed));
    }
    history.split_off(prompt.len())
}
