//! Adapters of the fake model: a file with a number, which every token that the adapter's rows compute is mixed with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard};

use llamero_checkpoint::ContentIdentity;

use super::group::LONG;
use super::model;
use crate::adapters::{AdapterSource, AdapterStore, Reading};
use crate::backend::BackendError;

/// The file of an adapter's folder.
const FILE: &str = "salt";

#[derive(Default)]
pub(in crate::runtime) struct FakeAdapters {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<u32, Entry>,
    readings: u64,
    /// Reading waits for an unload.
    is_held: bool,
    unloads: u32,
    /// Readings that have ended, well or not.
    ended: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    Reading(Reading),
    Ready(u8),
}

impl FakeAdapters {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What rows with that adapter are mixed with.
    pub(in crate::runtime) fn salt(&self, number: u32) -> Option<u8> {
        match self.lock().entries.get(&number) {
            Some(Entry::Ready(salt)) => Some(*salt),
            Some(Entry::Reading(_)) | None => None,
        }
    }

    /// Let each reading be slower than the unload that comes after it.
    pub(super) fn hold_until_unloaded(&self) {
        self.lock().is_held = true;
    }

    /// The adapters that are there once as many as have begun were read.
    pub(super) fn settled(&self) -> Vec<u32> {
        let is_busy = |state: &mut State| state.readings == 0 || state.ended < state.readings;
        let (state, waited) = self
            .changed
            .wait_timeout_while(self.lock(), LONG, is_busy)
            .unwrap();
        assert!(!waited.timed_out());
        state.entries.keys().copied().collect()
    }
}

fn identity(salt: u8) -> ContentIdentity {
    format!("{salt:02x}").repeat(32).parse().unwrap()
}

fn read(source: &AdapterSource, folder: &Path) -> Result<u8, BackendError> {
    let unusable = |why: String| BackendError::Unusable(why);
    let text = std::fs::read_to_string(folder.join(FILE)).map_err(|error| unusable(error.to_string()))?;
    let salt: u8 = text.parse().map_err(|_| unusable(format!("{text} is no salt")))?;
    match source.identity {
        Some(wanted) if wanted != identity(salt) => Err(unusable("another content".into())),
        _ => Ok(salt),
    }
}

impl AdapterStore for FakeAdapters {
    fn begin(&self, source: &AdapterSource) -> Reading {
        assert_ne!(
            std::thread::current().name(),
            Some("adapter"),
            "an unload could be overtaken"
        );
        let mut state = self.lock();
        state.readings += 1;
        let reading = Reading(state.readings);
        let entry = state.entries.entry(source.number);
        entry
            .and_modify(|entry| {
                if matches!(entry, Entry::Reading(_)) {
                    *entry = Entry::Reading(reading);
                }
            })
            .or_insert(Entry::Reading(reading));
        reading
    }

    fn load(
        &self,
        reading: Reading,
        source: &AdapterSource,
        folder: &Path,
        _: u32,
    ) -> Result<ContentIdentity, BackendError> {
        let is_held = |state: &mut State| state.is_held && state.unloads == 0;
        drop(self.changed.wait_while(self.lock(), is_held).unwrap());
        let salt = read(source, folder);
        let mut state = self.lock();
        state.ended += 1;
        self.changed.notify_all();
        let entry = state.entries.get(&source.number).copied();
        if let Some(Entry::Ready(salt)) = entry {
            return Ok(identity(salt));
        }
        if entry != Some(Entry::Reading(reading)) {
            return Err(BackendError::Unusable("nobody waits for it".into()));
        }
        state.entries.remove(&source.number);
        let salt = salt?;
        state.entries.insert(source.number, Entry::Ready(salt));
        Ok(identity(salt))
    }

    fn unload(&self, number: u32) {
        let mut state = self.lock();
        state.entries.remove(&number);
        state.unloads += 1;
        self.changed.notify_all();
    }

    fn retain(&self, kept: &[AdapterSource]) {
        self.lock().entries.retain(|number, entry| {
            let source = kept.iter().find(|source| source.number == *number);
            match entry {
                Entry::Ready(salt) => source.is_some_and(|source| source.identity == Some(identity(*salt))),
                Entry::Reading(_) => false,
            }
        });
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
