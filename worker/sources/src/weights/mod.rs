//! The weight files of a checkpoint, read by range.
//!
//! What a rank is going to read is announced as blocks of some megabytes. A window moves over them: a bounded number of
//! bytes is on its way or waits to be read, many requests at a time, and a block goes when everybody has read what they
//! want of it. Where all of a file is read, its SHA-256 is computed on the way and compared in the end.
//!
//! | module | what it is |
//! |---|---|
//! | `fetch` | one range, however often the connection breaks |
//! | `file` | a file as a checkpoint reads it |
//! | `heads` | headers that are kept |
//! | `plan` | the blocks that are going to be read |
//! | `window` | which of them are here |
//! | `sum` | the hash of a file that is read whole |

mod fetch;
mod file;
pub(crate) mod heads;
mod plan;
mod sum;
mod window;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use llamero_checkpoint::Checkpoint;
use llamero_checkpoint::remote::{Announced, RemoteWeights, WeightFile};
use tokio::runtime::Runtime;

pub(crate) use self::fetch::HEAD_BYTES;
use self::fetch::Remote;
use self::file::SourceFile;
use self::plan::Plan;
use self::window::Window;
use crate::{Access, FetchError, Manifest, Origin};

/// Headers that are fetched at once.
const HEADERS_AT_ONCE: usize = 32;

/// The weights of one checkpoint.
#[derive(Debug)]
pub struct SourceWeights {
    shared: Arc<Transfers>,
    manifest: Manifest,
    /// Has the small files.
    folder: PathBuf,
}

/// What files and window have in common.
#[derive(Debug)]
struct Transfers {
    remote: Arc<Remote>,
    /// Gone only while this is dropped.
    runtime: Option<Runtime>,
    files: Mutex<Vec<Arc<file::Body>>>,
    window: Mutex<Option<Arc<Window>>>,
}

/// Open the checkpoint whose small files [`crate::prepare()`] has put into `folder`. A folder that has its weights itself is
/// opened as it is. Reads headers only.
///
/// # Errors
/// The source cannot be reached, or the files are no checkpoint.
pub fn open(folder: &Path, access: &Access) -> Result<Checkpoint, FetchError> {
    let Some(manifest) = Manifest::read(folder)? else {
        return Checkpoint::open(folder).map_err(|error| FetchError::Checkpoint(Box::new(error)));
    };
    let weights = SourceWeights::new(manifest, folder, access)?;
    Checkpoint::open_remote(folder, Arc::new(weights))
        .map_err(|error| FetchError::Checkpoint(Box::new(error)))
}

impl SourceWeights {
    /// The weights that `manifest` names, which is of `folder`; of `access` the certificates are the manifest's.
    ///
    /// # Errors
    /// The place's address is none, or the operating system has no threads left.
    pub fn new(manifest: Manifest, folder: &Path, access: &Access) -> Result<Self, FetchError> {
        let access = Access {
            ca_file: manifest.ca_file.clone(),
            needs_keys: manifest.needs_keys,
            ..access.clone()
        };
        let origin = Origin::connect(&manifest.place, &access)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("source")
            .enable_all()
            .build()
            .map_err(|source| FetchError::Io {
                path: "/proc/self/task".into(),
                source,
            })?;
        let remote = Remote::new(origin, manifest.listing.clone());
        Ok(Self {
            shared: Arc::new(Transfers {
                remote: Arc::new(remote),
                runtime: Some(runtime),
                files: Mutex::default(),
                window: Mutex::default(),
            }),
            manifest,
            folder: folder.to_owned(),
        })
    }
}

impl Transfers {
    /// Run `future` on this thread.
    fn block_on<T>(&self, future: impl Future<Output = Result<T, FetchError>>) -> io::Result<T> {
        let Some(runtime) = &self.runtime else {
            return Err(io::Error::other("the weights are closed"));
        };
        runtime.block_on(future).map_err(FetchError::into_io)
    }

    fn window(&self) -> Option<Arc<Window>> {
        lock(&self.window).clone()
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        if let Some(window) = lock(&self.window).take() {
            window.close();
        }
        // Not waited for: this may run on a thread that must not wait.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl RemoteWeights for SourceWeights {
    fn open(&self, names: &[&str]) -> io::Result<Vec<Box<dyn WeightFile>>> {
        let listing = &self.manifest.listing;
        let heads = stream::iter(names).map(|name| {
            let (remote, folder) = (&self.shared.remote, &self.folder);
            async move {
                let file = listing.find(name).ok_or_else(|| FetchError::Unusable {
                    repository: listing.name(),
                    reason: format!("it has no {name}"),
                })?;
                remote.head(file, folder).await
            }
        });
        let heads = heads.buffered(HEADERS_AT_ONCE).try_collect::<Vec<_>>();
        let bodies: Vec<_> = self.shared.block_on(heads)?.into_iter().map(Arc::new).collect();
        lock(&self.shared.files).clone_from(&bodies);
        let files = bodies.into_iter().enumerate().map(|(number, body)| {
            Box::new(SourceFile {
                number,
                body,
                shared: Arc::clone(&self.shared),
            }) as Box<dyn WeightFile>
        });
        Ok(files.collect())
    }

    fn announce(&self, ranges: Vec<Announced>) {
        let files = lock(&self.shared.files).clone();
        let plan = Plan::new(ranges, &files);
        let window = Arc::new(Window::new(plan, files));
        if let Some(runtime) = &self.shared.runtime {
            window.start(runtime.handle(), &self.shared.remote);
        }
        if let Some(old) = lock(&self.shared.window).replace(window) {
            old.close();
        }
    }

    fn finish(&self) -> io::Result<()> {
        match lock(&self.shared.window).take() {
            Some(window) => window.finish(),
            None => Ok(()),
        }
    }

    fn bytes_read(&self) -> u64 {
        self.shared.remote.bytes_read()
    }
}

/// A lock whose holder panicked is as good as any: what it guards is whole after each step.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
