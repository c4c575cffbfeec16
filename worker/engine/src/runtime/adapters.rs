//! The adapters (LoRA) of a group, as its leader keeps them.
//!
//! An adapter is there when every rank has it. The leader tells all ranks to read it, and the first request may ask for it once
//! all have; a rank that joins later reads what the leader lists when it forms. What one rank cannot read is given up by all, and
//! requests for it fail: none is ever answered without its adapter.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use llamero_checkpoint::ContentIdentity;

use crate::adapters::{AdapterSource, AdapterStore, MAX_NAME, MAX_PATH, Reading};
use crate::mesh::Members;

/// An adapter that every rank has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterInfo {
    /// The leader's number.
    pub number: u32,
    /// The name that requests give.
    pub name: String,
    /// Where it lies, below the folder for adapters.
    pub path: String,
    /// What it is.
    pub identity: ContentIdentity,
}

/// Why an adapter was not loaded or unloaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// None may be loaded.
    #[error("adapters are not served here: start the worker with --max-adapters")]
    Off,
    /// The name or the path can never be used.
    #[error("{0}")]
    Invalid(String),
    /// There is one of that name.
    #[error("the adapter {0} is loaded already; unload it first, or take another name")]
    Taken(String),
    /// There is none of that name.
    #[error("no adapter {0} is loaded")]
    Unknown(String),
    /// There are as many as may be.
    #[error("{0} adapters are loaded, as many as may be; unload one first")]
    Full(u32),
    /// One at a time.
    #[error("the adapter {0} is just being loaded; try again when it is there")]
    Busy(String),
    /// Requests need it.
    #[error("{requests} requests use the adapter {name}; try again when they have ended")]
    InUse {
        /// Which one.
        name: String,
        /// How many.
        requests: usize,
    },
    /// A rank cannot use it.
    #[error("rank {rank}: {why}")]
    Refused {
        /// Which one.
        rank: u32,
        /// Its word.
        why: String,
    },
    /// The group does not serve now.
    #[error("{0}; try again")]
    Unavailable(String),
}

/// Takes the end of a load or an unload. Called on the leader's thread, so it must not wait.
pub type AdapterReply = Box<dyn FnOnce(Result<AdapterInfo, AdapterError>) + Send>;

/// What is loaded, for other threads to see.
#[derive(Debug, Default)]
pub(super) struct AdapterList(Mutex<Vec<AdapterInfo>>);

impl AdapterList {
    fn lock(&self) -> MutexGuard<'_, Vec<AdapterInfo>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self) -> Vec<AdapterInfo> {
        self.lock().clone()
    }
}

/// One that is being read by the ranks.
struct Loading {
    source: AdapterSource,
    /// What each rank has said.
    answers: BTreeMap<u32, Result<ContentIdentity, String>>,
    until: Instant,
    reply: AdapterReply,
}

/// The leader's record. Outlives eras.
pub(super) struct Adapters {
    most: u32,
    members: Members,
    /// The last number that was given.
    last: u32,
    /// By name.
    loaded: BTreeMap<String, AdapterInfo>,
    loading: Option<Loading>,
    list: Arc<AdapterList>,
}

impl Adapters {
    pub(super) fn new(most: u32, members: Members, list: Arc<AdapterList>) -> Self {
        Self {
            most,
            members,
            last: 0,
            loaded: BTreeMap::new(),
            loading: None,
            list,
        }
    }

    /// Who has to answer from now on; nothing is being loaded.
    pub(super) fn set_members(&mut self, members: &Members) {
        members.clone_into(&mut self.members);
    }

    /// Whether one more of that name and path may be loaded, and as what.
    pub(super) fn number(&mut self, name: String, path: String) -> Result<AdapterSource, AdapterError> {
        if self.most == 0 {
            return Err(AdapterError::Off);
        }
        check_name(&name)?;
        relative(&path).map_err(AdapterError::Invalid)?;
        if let Some(loading) = &self.loading {
            return Err(AdapterError::Busy(loading.source.name.clone()));
        }
        if self.loaded.contains_key(&name) {
            return Err(AdapterError::Taken(name));
        }
        if self.loaded.len() >= self.most as usize {
            return Err(AdapterError::Full(self.most));
        }
        self.last += 1;
        Ok(AdapterSource {
            number: self.last,
            name,
            path,
            identity: None,
        })
    }

    /// All ranks are told to read an adapter.
    pub(super) fn begin(&mut self, source: AdapterSource, until: Instant, reply: AdapterReply) {
        self.loading = Some(Loading {
            source,
            answers: BTreeMap::new(),
            until,
            reply,
        });
    }

    /// A rank has read an adapter, or cannot. The number of one that all are to forget.
    pub(super) fn answered(
        &mut self,
        rank: u32,
        number: u32,
        outcome: Result<ContentIdentity, String>,
    ) -> Option<u32> {
        let loading = self
            .loading
            .as_mut()
            .filter(|loading| loading.source.number == number)?;
        loading.answers.insert(rank, outcome);
        let refused = loading.answers.iter().find_map(|(rank, outcome)| {
            let why = outcome.as_ref().err()?.clone();
            Some(AdapterError::Refused { rank: *rank, why })
        });
        if let Some(error) = refused {
            return self.give_up(error);
        }
        if loading.answers.len() < self.members.ranks().len() {
            return None;
        }
        let mut identities = loading.answers.values().flatten().copied();
        let first = identities.next()?;
        if identities.any(|other| other != first) {
            let why = "ranks read different files under the same path; give all nodes the same ones".into();
            return self.give_up(AdapterError::Refused { rank, why });
        }
        let Loading { source, reply, .. } = self.loading.take()?;
        reply(Ok(self.add(&source, first)));
        None
    }

    /// Give up what is being loaded. The number that all are to forget.
    pub(super) fn give_up(&mut self, error: AdapterError) -> Option<u32> {
        let Loading { source, reply, .. } = self.loading.take()?;
        reply(Err(error));
        Some(source.number)
    }

    /// Give up what takes too long. The number that all are to forget.
    pub(super) fn check(&mut self, now: Instant) -> Option<u32> {
        let late = self.loading.as_ref().filter(|loading| loading.until <= now)?;
        let silent = self
            .members
            .ranks()
            .iter()
            .find(|rank| !late.answers.contains_key(rank));
        let rank = silent.copied().unwrap_or(0);
        let why = "reading the adapter takes too long; look at the disk or network it lies on".into();
        self.give_up(AdapterError::Refused { rank, why })
    }

    /// Every rank has it, or will have before it is asked for.
    pub(super) fn add(&mut self, source: &AdapterSource, identity: ContentIdentity) -> AdapterInfo {
        let info = AdapterInfo {
            number: source.number,
            name: source.name.clone(),
            path: source.path.clone(),
            identity,
        };
        self.loaded.insert(source.name.clone(), info.clone());
        self.publish();
        info
    }

    /// The one of that name.
    pub(super) fn get(&self, name: &str) -> Option<&AdapterInfo> {
        self.loaded.get(name)
    }

    /// Forget one.
    pub(super) fn remove(&mut self, number: u32) -> Option<AdapterInfo> {
        let name = self
            .loaded
            .values()
            .find(|info| info.number == number)?
            .name
            .clone();
        let info = self.loaded.remove(&name);
        self.publish();
        info
    }

    /// What a rank that forms is to have.
    pub(super) fn sources(&self) -> Vec<AdapterSource> {
        let source = |info: &AdapterInfo| AdapterSource {
            number: info.number,
            name: info.name.clone(),
            path: info.path.clone(),
            identity: Some(info.identity),
        };
        self.loaded.values().map(source).collect()
    }

    fn publish(&self) {
        *self.list.lock() = self.loaded.values().cloned().collect();
    }
}

/// A name is one that may stand in JSON, in a URL's path and in a log as it is, as those of models do.
fn check_name(name: &str) -> Result<(), AdapterError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_plain) {
        return Err(AdapterError::Invalid(format!(
            "an adapter's name has 1 to {MAX_NAME} letters, digits and the signs - _ . / :"
        )));
    }
    Ok(())
}

/// A path that stays below where it begins.
fn relative(path: &str) -> Result<&Path, String> {
    let inside = |component| matches!(component, Component::Normal(_));
    if path.is_empty() || path.len() > MAX_PATH || !Path::new(path).components().all(inside) {
        return Err(format!(
            "the path of an adapter is that of its folder below the folder for adapters: 1 to {MAX_PATH} bytes, relative, \
             without .."
        ));
    }
    Ok(Path::new(path))
}

/// The folder of an adapter, links followed.
fn folder(root: &Path, path: &str) -> Result<PathBuf, String> {
    let relative = relative(path)?;
    let real = |path: &Path| {
        path.canonicalize()
            .map_err(|error| format!("cannot open the adapter's folder {}: {error}", path.display()))
    };
    let (root, folder) = (real(root)?, real(&root.join(relative))?);
    if !folder.starts_with(&root) {
        return Err(format!(
            "the adapter's folder {path} is a link that leads out of the folder for adapters"
        ));
    }
    Ok(folder)
}

/// Read an adapter that was begun into a rank's memory.
pub(super) fn read(
    store: &dyn AdapterStore,
    reading: Reading,
    root: &Path,
    source: &AdapterSource,
    max_rank: u32,
) -> Result<ContentIdentity, String> {
    let folder = folder(root, &source.path)?;
    store
        .load(reading, source, &folder, max_rank)
        .map_err(|error| error.to_string())
}
