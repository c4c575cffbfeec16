//! The adapters that a rank has in memory. They are read on one thread and used on another.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llamero_checkpoint::{Adapter, AdapterError, ContentIdentity, LlamaConfig, RankShard};
use llamero_engine::{AdapterSource, AdapterStore, BackendError, Reading};

use super::packed::PackedAdapter;
use crate::shape::Shape;

/// See [`AdapterStore`].
pub(crate) struct CpuAdapters {
    config: LlamaConfig,
    shape: Shape,
    shard: RankShard,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    adapters: BTreeMap<u32, Entry>,
    /// Counts readings, so that one that nobody waits for any more is told from the next of the same number.
    readings: u64,
}

enum Entry {
    Reading(Reading),
    Ready(ContentIdentity, Arc<PackedAdapter>),
}

impl Loaded {
    /// What the adapter is, if it is there.
    fn ready(&self, source: &AdapterSource) -> Option<ContentIdentity> {
        match self.adapters.get(&source.number) {
            Some(Entry::Ready(identity, _)) if source.identity.is_none_or(|wanted| wanted == *identity) => {
                Some(*identity)
            }
            _ => None,
        }
    }

    /// The same, or none while that reading is waited for. An error once it was forgotten.
    fn awaited(
        &self,
        reading: Reading,
        source: &AdapterSource,
    ) -> Result<Option<ContentIdentity>, BackendError> {
        match (self.ready(source), self.adapters.get(&source.number)) {
            (Some(identity), _) => Ok(Some(identity)),
            (None, Some(Entry::Reading(now))) if *now == reading => Ok(None),
            (None, _) => Err(BackendError::Unusable(format!(
                "nobody waits for the adapter {} any more",
                source.name
            ))),
        }
    }
}

impl CpuAdapters {
    pub(crate) fn new(config: LlamaConfig, shape: Shape, shard: RankShard) -> Self {
        Self {
            config,
            shape,
            shard,
            loaded: Mutex::default(),
        }
    }

    /// The adapter with that number.
    pub(crate) fn get(&self, number: u32) -> Option<Arc<PackedAdapter>> {
        match self.lock().adapters.get(&number) {
            Some(Entry::Ready(_, adapter)) => Some(Arc::clone(adapter)),
            Some(Entry::Reading(_)) | None => None,
        }
    }

    /// Adapters that are there or are being read.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().adapters.len()
    }

    fn lock(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(
        &self,
        source: &AdapterSource,
        folder: &Path,
        max_rank: u32,
    ) -> Result<(ContentIdentity, PackedAdapter), BackendError> {
        let adapter =
            Adapter::open(folder, &self.config, max_rank).map_err(|error| refusal(source, &error))?;
        let identity = adapter.identity();
        if let Some(wanted) = source.identity
            && wanted != identity
        {
            return Err(BackendError::Unusable(format!(
                "the adapter {} has the content {} on this rank and {} on rank 0: give all ranks the same files",
                source.name,
                identity.short(),
                wanted.short()
            )));
        }
        let packed = PackedAdapter::read(&adapter, &self.config, &self.shape, &self.shard)
            .map_err(|error| refusal(source, &error))?;
        Ok((identity, packed))
    }
}

fn refusal(source: &AdapterSource, error: &AdapterError) -> BackendError {
    BackendError::Unusable(format!("the adapter {} cannot be used: {error}", source.name))
}

impl AdapterStore for CpuAdapters {
    fn begin(&self, source: &AdapterSource) -> Reading {
        let mut loaded = self.lock();
        loaded.readings += 1;
        let reading = Reading(loaded.readings);
        if loaded.ready(source).is_none() {
            loaded.adapters.insert(source.number, Entry::Reading(reading));
        }
        reading
    }

    fn load(
        &self,
        reading: Reading,
        source: &AdapterSource,
        folder: &Path,
        max_rank: u32,
    ) -> Result<ContentIdentity, BackendError> {
        if let Some(identity) = self.lock().awaited(reading, source)? {
            return Ok(identity);
        }
        let read = self.read(source, folder, max_rank);
        let mut loaded = self.lock();
        if let Some(identity) = loaded.awaited(reading, source)? {
            return Ok(identity);
        }
        loaded.adapters.remove(&source.number);
        let (identity, adapter) = read?;
        let entry = Entry::Ready(identity, Arc::new(adapter));
        loaded.adapters.insert(source.number, entry);
        Ok(identity)
    }

    fn unload(&self, number: u32) {
        self.lock().adapters.remove(&number);
    }

    fn retain(&self, kept: &[AdapterSource]) {
        self.lock().adapters.retain(|number, entry| {
            let source = kept.iter().find(|source| source.number == *number);
            match (source, entry) {
                (Some(source), Entry::Ready(identity, _)) => source.identity == Some(*identity),
                (Some(_) | None, Entry::Reading(_)) | (None, Entry::Ready(..)) => false,
            }
        });
    }
}
