//! The weight files of a commit, read by range.
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
mod heads;
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

use self::fetch::Remote;
use self::file::HubFile;
use self::plan::Plan;
use self::window::Window;
use crate::{Hub, HubError, HubOptions, Manifest};

/// Headers that are fetched at once.
const HEADERS_AT_ONCE: usize = 32;

/// The weights of one commit.
#[derive(Debug)]
pub struct HubWeights {
    shared: Arc<Shared>,
    manifest: Manifest,
    /// Has the small files.
    folder: PathBuf,
}

/// What files and window have in common.
#[derive(Debug)]
struct Shared {
    remote: Arc<Remote>,
    /// Gone only while this is dropped.
    runtime: Option<Runtime>,
    files: Mutex<Vec<Arc<file::Body>>>,
    window: Mutex<Option<Arc<Window>>>,
}

/// Open the checkpoint whose small files [`crate::prepare()`] has put into `folder`; `token` is the access token. A folder
/// that has its weights itself is opened as it is. Reads headers only.
///
/// # Errors
/// The Hub cannot be reached, or the files are no checkpoint.
pub fn open(folder: &Path, options: &HubOptions) -> Result<Checkpoint, HubError> {
    let Some(manifest) = Manifest::read(folder)? else {
        return Checkpoint::open(folder).map_err(|error| HubError::Checkpoint(Box::new(error)));
    };
    let weights = HubWeights::new(manifest, folder, options)?;
    Checkpoint::open_remote(folder, Arc::new(weights)).map_err(|error| HubError::Checkpoint(Box::new(error)))
}

impl HubWeights {
    /// The weights that `manifest` names, which is of `folder`; of `options` endpoint and certificates are the manifest's.
    ///
    /// # Errors
    /// The Hub's address is none, or the operating system has no threads left.
    pub fn new(manifest: Manifest, folder: &Path, options: &HubOptions) -> Result<Self, HubError> {
        let hub = Hub::with(&HubOptions {
            endpoint: manifest.endpoint.clone(),
            ca_file: manifest.ca_file.clone(),
            ..options.clone()
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("hub")
            .enable_all()
            .build()
            .map_err(|source| HubError::Io {
                path: "/proc/self/task".into(),
                source,
            })?;
        let remote = Remote::new(hub, &manifest.listing);
        Ok(Self {
            shared: Arc::new(Shared {
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

impl Shared {
    /// Run `future` on this thread.
    fn block_on<T>(&self, future: impl Future<Output = Result<T, HubError>>) -> io::Result<T> {
        let Some(runtime) = &self.runtime else {
            return Err(io::Error::other("the weights are closed"));
        };
        runtime.block_on(future).map_err(HubError::into_io)
    }

    fn window(&self) -> Option<Arc<Window>> {
        lock(&self.window).clone()
    }
}

impl Drop for Shared {
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

impl RemoteWeights for HubWeights {
    fn open(&self, names: &[&str]) -> io::Result<Vec<Box<dyn WeightFile>>> {
        let listing = &self.manifest.listing;
        let heads = stream::iter(names).map(|name| {
            let (remote, folder) = (&self.shared.remote, &self.folder);
            async move {
                let file = listing.find(name).ok_or_else(|| HubError::Unusable {
                    repository: listing.repository.clone(),
                    reason: format!("commit {} has no {name}", listing.commit),
                })?;
                remote.head(file, folder).await
            }
        });
        let heads = heads.buffered(HEADERS_AT_ONCE).try_collect::<Vec<_>>();
        let bodies: Vec<_> = self.shared.block_on(heads)?.into_iter().map(Arc::new).collect();
        lock(&self.shared.files).clone_from(&bodies);
        let files = bodies.into_iter().enumerate().map(|(number, body)| {
            Box::new(HubFile {
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
