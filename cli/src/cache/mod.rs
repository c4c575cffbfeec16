//! What was downloaded or made, and the locks on it.
//!
//! ```text
//! CACHE/models/KEY/entry.json     what it is            CACHE/locks/KEY    held while it is made (exclusive)
//! CACHE/models/KEY/files/…        its files                                or used (shared)
//! CACHE/staging/KEY/…             the same, unfinished; renamed to models/KEY when whole
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`entry`] | what an entry is and what it is called |
//! | [`lock`] | locks between processes |

pub mod entry;
pub mod lock;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use entry::{Entry, Origin};
pub use lock::Lock;

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// No folder is known for it.
    #[error("neither XDG_CACHE_HOME nor HOME is set: say by --cache-dir where models are kept")]
    Nowhere,
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Nothing has that name.
    #[error("nothing in the cache is called {0}; `llamero list` shows what there is")]
    Unknown(String),
    /// Another process uses it.
    #[error("{0} is in use by another llamero; end that first")]
    InUse(String),
    /// It is removed again and again while it is made.
    #[error("{0} is removed from the cache by somebody else each time it is made")]
    Vanishing(String),
}

/// Names the file in an I/O error.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> CacheError + '_ {
    |source| CacheError::Io {
        path: path.to_owned(),
        source,
    }
}

/// An entry that is whole, or one that is not yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its key.
    pub key: String,
    /// What it is.
    pub entry: Entry,
    /// Whether it is whole.
    pub whole: bool,
    /// Bytes of its files.
    pub bytes: u64,
}

/// A whole entry, kept from being removed.
#[derive(Debug)]
pub struct Kept {
    /// Its files.
    pub files: PathBuf,
    _lock: Lock,
}

/// A folder with models.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// Rounds of making an entry that somebody removes before it is used.
const ROUNDS: usize = 3;

impl Cache {
    /// The cache in `dir`, or in the user's usual place.
    ///
    /// # Errors
    /// [`CacheError::Nowhere`].
    pub fn open(dir: Option<&Path>) -> Result<Self, CacheError> {
        if let Some(dir) = dir {
            return Ok(Self { root: dir.to_owned() });
        }
        let folder = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let root = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
        Ok(Self {
            root: root.ok_or(CacheError::Nowhere)?.join("llamero"),
        })
    }

    fn whole(&self, key: &str) -> PathBuf {
        self.root.join("models").join(key)
    }

    fn staging(&self, key: &str) -> PathBuf {
        self.root.join("staging").join(key)
    }

    fn lock_path(&self, key: &str) -> PathBuf {
        self.root.join("locks").join(key)
    }

    /// The files of `entry`; if it is not there, `make` is given the folder to make. What `make` leaves behind when it
    /// fails is there at the next try. `wait` is called before waiting for another process that makes the same.
    ///
    /// # Errors
    /// What `make` fails with, and [`CacheError`].
    pub fn keep(
        &self,
        entry: &Entry,
        wait: &mut dyn FnMut(),
        make: &mut dyn FnMut(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Kept> {
        let key = entry.key();
        for _ in 0..ROUNDS {
            let lock = Lock::shared(&self.lock_path(&key), wait)?;
            if self.whole(&key).exists() {
                let files = self.whole(&key).join("files");
                return Ok(Kept { files, _lock: lock });
            }
            drop(lock);
            let lock = Lock::exclusive(&self.lock_path(&key), wait)?;
            if !self.whole(&key).exists() {
                let staging = self.staging(&key);
                fs::create_dir_all(&staging).map_err(at(&staging))?;
                entry.write(&staging)?;
                let files = staging.join("files");
                let made = make(&files);
                if made.is_err() && bytes_below(&files) == 0 {
                    // There is nothing to go on with. That it cannot be removed is not what failed.
                    let _ = fs::remove_dir_all(&staging);
                }
                made?;
                self.publish(&key)?;
            }
            drop(lock);
        }
        Err(CacheError::Vanishing(entry.name.clone()).into())
    }

    /// Everything of the entry reaches the disk before it counts as whole.
    fn publish(&self, key: &str) -> Result<(), CacheError> {
        let (staging, whole) = (self.staging(key), self.whole(key));
        let files = staging.join("files");
        for file in fs::read_dir(&files).map_err(at(&files))? {
            let path = file.map_err(at(&files))?.path();
            fs::File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(at(&path))?;
        }
        let models = self.root.join("models");
        fs::create_dir_all(&models).map_err(at(&models))?;
        fs::rename(&staging, &whole).map_err(at(&whole))?;
        fs::File::open(&models)
            .and_then(|dir| dir.sync_all())
            .map_err(at(&models))
    }

    /// Replace what is told of a whole entry.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn update(&self, entry: &Entry) -> Result<(), CacheError> {
        entry.write(&self.whole(&entry.key()))
    }

    /// All entries by name, whole ones and unfinished ones. What is no entry is passed over.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn entries(&self) -> Result<Vec<Found>, CacheError> {
        let mut found = Vec::new();
        for (folder, whole) in [("models", true), ("staging", false)] {
            let folder = self.root.join(folder);
            let listing = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                listing => listing.map_err(at(&folder))?,
            };
            for item in listing {
                let path = item.map_err(at(&folder))?.path();
                if let (Some(key), Some(entry)) = (path.file_name(), Entry::read(&path)) {
                    found.push(Found {
                        key: key.to_string_lossy().into_owned(),
                        entry,
                        whole,
                        bytes: bytes_below(&path),
                    });
                }
            }
        }
        found.sort_by(|a, b| (&a.entry.name, !a.whole, &a.key).cmp(&(&b.entry.name, !b.whole, &b.key)));
        Ok(found)
    }

    /// Remove everything called `name`, unfinished downloads included. Returns the bytes that it had.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn remove(&self, name: &str) -> Result<u64, CacheError> {
        let mut named = self.entries()?;
        named.retain(|found| found.entry.name == name || found.key == name);
        if named.is_empty() {
            return Err(CacheError::Unknown(name.to_owned()));
        }
        for found in &named {
            let lock = self.lock_path(&found.key);
            let Some(_lock) = Lock::try_exclusive(&lock)? else {
                return Err(CacheError::InUse(name.to_owned()));
            };
            let staging = self.staging(&found.key);
            if found.whole {
                // First out of sight in one step, so that half an entry is never taken for a whole one.
                let _ = fs::remove_dir_all(&staging);
                let parent = self.root.join("staging");
                fs::create_dir_all(&parent).map_err(at(&parent))?;
                fs::rename(self.whole(&found.key), &staging).map_err(at(&staging))?;
            }
            fs::remove_dir_all(&staging).map_err(at(&staging))?;
        }
        Ok(named.iter().map(|found| found.bytes).sum())
    }
}

fn bytes_below(path: &Path) -> u64 {
    let Ok(listing) = fs::read_dir(path) else { return 0 };
    let of = |item: fs::DirEntry| match item.metadata() {
        Ok(found) if found.is_dir() => bytes_below(&item.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    listing.flatten().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry::new(
            "a.gguf",
            Origin::Gguf {
                path: "/a.gguf".into(),
                bytes: 1,
                modified: 2,
            },
        )
    }

    fn write(files: &Path, text: &str) {
        fs::create_dir_all(files).unwrap();
        fs::write(files.join("file"), text).unwrap();
    }

    #[test]
    fn what_is_whole_is_not_made_again_and_what_failed_is() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(dir.path())).unwrap();
        let failed = cache.keep(&entry(), &mut || {}, &mut |files| {
            write(files, "half");
            anyhow::bail!("cut")
        });
        assert_eq!(failed.unwrap_err().to_string(), "cut");
        assert!(!cache.entries().unwrap()[0].whole);
        let mut made = 0;
        for _ in 0..2 {
            let kept = cache.keep(&entry(), &mut || {}, &mut |files| {
                assert_eq!(fs::read_to_string(files.join("file")).unwrap(), "half");
                made += 1;
                write(files, "whole");
                Ok(())
            });
            let text = fs::read_to_string(kept.unwrap().files.join("file")).unwrap();
            assert_eq!(text, "whole");
        }
        assert_eq!(made, 1);
    }

    #[test]
    fn what_is_in_use_stays_and_what_is_not_goes() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(dir.path())).unwrap();
        let make = &mut |files: &Path| {
            write(files, "whole");
            Ok(())
        };
        let kept = cache.keep(&entry(), &mut || {}, make).unwrap();
        let error = cache.remove("a.gguf").unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
        drop(kept);
        assert!(cache.remove("a.gguf").unwrap() > 5);
        assert_eq!(cache.entries().unwrap(), []);
        assert!(matches!(cache.remove("a.gguf"), Err(CacheError::Unknown(_))));
    }

    #[test]
    fn two_that_want_the_same_make_it_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(dir.path())).unwrap();
        let made = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let make = &mut |files: &Path| {
                        made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        write(files, "whole");
                        Ok(())
                    };
                    cache.keep(&entry(), &mut || {}, make).unwrap();
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }
}
