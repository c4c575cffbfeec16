//! The keys in use, by hash, read again when their file changes.

use std::collections::{BTreeSet, HashMap};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::file::{self, Hash, Key, KeysError, MAX_BYTES, hash};

/// How often the file is looked at. The kubelet takes about a minute to bring a changed Secret.
const PERIOD: Duration = Duration::from_secs(10);

/// All keys. A gateway without a store of them is open to everybody.
#[derive(Debug)]
pub struct KeyStore {
    path: PathBuf,
    current: RwLock<Current>,
}

#[derive(Debug)]
struct Current {
    /// Of the file's bytes: they themselves are not kept.
    written: Hash,
    by_hash: HashMap<Hash, Arc<Key>>,
    by_name: HashMap<String, Arc<Key>>,
}

impl KeyStore {
    /// Read a file.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn load(path: &Path) -> Result<Self, KeysError> {
        let current = Current::new(&text(path)?)?;
        Ok(Self {
            path: path.to_owned(),
            current: RwLock::new(current),
        })
    }

    /// The key that a client sent.
    #[must_use]
    pub fn find(&self, sent: &str) -> Option<Arc<Key>> {
        // Hashing first makes the time of the look-up tell nothing about the keys.
        let hash = hash(sent);
        self.read(|current| current.by_hash.get(&hash).cloned())
    }

    /// The key of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Arc<Key>> {
        self.read(|current| current.by_name.get(name).cloned())
    }

    /// Names of all keys.
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        self.read(|current| current.by_name.keys().cloned().collect())
    }

    /// Read the file again. True when it has changed; requests from now on use the new keys.
    ///
    /// # Errors
    /// [`KeysError`]; the keys in use stay.
    pub fn reload(&self) -> Result<bool, KeysError> {
        let text = text(&self.path)?;
        if self.read(|current| current.written == hash(&text)) {
            return Ok(false);
        }
        let new = Current::new(&text)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(true)
    }

    /// Look at the file now and then, for ever. `changed` is told of each change.
    pub async fn follow(self: Arc<Self>, changed: impl Fn(&Self)) {
        loop {
            tokio::time::sleep(PERIOD).await;
            let store = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || store.reload()).await {
                Ok(Ok(false)) | Err(_) => {}
                Ok(Ok(true)) => {
                    tracing::info!(keys = self.names().len(), "the API keys have changed");
                    changed(&self);
                }
                Ok(Err(error)) => tracing::warn!(%error, "the API keys in use stay"),
            }
        }
    }

    /// The maps are replaced as a whole, so they are valid at every time.
    fn read<T>(&self, what: impl FnOnce(&Current) -> T) -> T {
        what(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Current {
    fn new(text: &str) -> Result<Self, KeysError> {
        let keys = file::parse(text)?.into_iter();
        let by_hash: HashMap<Hash, Arc<Key>> = keys.map(|(hash, key)| (hash, Arc::new(key))).collect();
        Ok(Self {
            written: hash(text),
            by_name: by_hash
                .values()
                .map(|key| (key.name.clone(), Arc::clone(key)))
                .collect(),
            by_hash,
        })
    }
}

fn text(path: &Path) -> Result<String, KeysError> {
    let file = std::fs::File::open(path)?;
    let mut text = String::new();
    if file.take(MAX_BYTES + 1).read_to_string(&mut text)? as u64 > MAX_BYTES {
        let message = format!("the file is larger than {MAX_BYTES} bytes");
        return Err(std::io::Error::other(message).into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_taken_up_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        let write = |key: &str| std::fs::write(&path, format!("keys:\n- {{name: a, key: {key}}}\n")).unwrap();
        write("sk-0123456789-old");
        let store = KeyStore::load(&path).unwrap();
        assert!(!store.reload().unwrap());
        write("sk-0123456789-new");
        assert!(store.reload().unwrap());
        assert!(store.find("sk-0123456789-old").is_none());
        assert_eq!(store.find("sk-0123456789-new").unwrap().name, "a");
        write("short");
        assert!(store.reload().unwrap_err().to_string().contains("openssl rand"));
        assert!(store.find("sk-0123456789-new").is_some() && store.named("a").is_some());
        std::fs::remove_file(&path).unwrap();
        assert!(store.reload().unwrap_err().to_string().contains("cannot read"));
        assert!(KeyStore::load(&path).is_err());
        assert_eq!(store.names().into_iter().collect::<Vec<_>>(), ["a"]);
    }
}
