//! The adapters that a rank has in memory. They are read on one thread and used on another.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llamero_checkpoint::{Adapter, AdapterError, ContentIdentity, LlamaConfig, RankShard};
use llamero_engine::{AdapterSource, AdapterStore, BackendError};

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
    Reading(u64),
    Ready(ContentIdentity, Arc<PackedAdapter>),
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
    fn load(
        &self,
        source: &AdapterSource,
        folder: &Path,
        max_rank: u32,
    ) -> Result<ContentIdentity, BackendError> {
        let reading = {
            let mut loaded = self.lock();
            if let Some(Entry::Ready(identity, _)) = loaded.adapters.get(&source.number)
                && source.identity.is_none_or(|wanted| wanted == *identity)
            {
                return Ok(*identity);
            }
            loaded.readings += 1;
            let reading = loaded.readings;
            loaded.adapters.insert(source.number, Entry::Reading(reading));
            reading
        };
        let read = self.read(source, folder, max_rank);
        let mut loaded = self.lock();
        let is_wanted =
            matches!(loaded.adapters.get(&source.number), Some(Entry::Reading(now)) if *now == reading);
        if !is_wanted {
            return Err(BackendError::Unusable(format!(
                "nobody waits for the adapter {} any more",
                source.name
            )));
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
