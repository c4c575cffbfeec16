//! From a source to a folder that the engine loads.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::Context as _;
use llamero_checkpoint::convert::{ConvertOptions, gguf_to_hugging_face};
use llamero_checkpoint::quantize::{QuantizeOptions, to_fp8};
use llamero_sources::{FetchError, Hub, Listing, Origin as Place, Patience, RemoteFile, Repository};
use llamero_worker::cli::progress::ProgressLine;
use sha2::{Digest as _, Sha256};

use crate::cache::entry::{hex, short};
use crate::cache::{Cache, Entry, Kept, Origin};
use crate::options::ModelArgs;
use crate::source::{Source, SourceError};

/// Longest token that is read from a file.
const TOKEN_BYTES: usize = 4096;

/// A folder that the engine loads; what it needs stays in the cache as long as this lives.
#[derive(Debug)]
pub struct Prepared {
    /// The folder.
    pub folder: PathBuf,
    /// The name that clients ask for.
    pub name: String,
    _kept: Vec<Kept>,
}

/// Makes what a command line asks for.
#[derive(Debug)]
pub struct Preparation<'a> {
    args: &'a ModelArgs,
    cache: Cache,
    kept: Vec<Kept>,
}

impl<'a> Preparation<'a> {
    /// For `args`.
    ///
    /// # Errors
    /// There is no place for a cache.
    pub fn new(args: &'a ModelArgs) -> anyhow::Result<Self> {
        let cache = Cache::open(args.cache.cache_dir.as_deref())?;
        Ok(Self {
            args,
            cache,
            kept: Vec::new(),
        })
    }

    /// Download, convert and quantise, as far as that is not done. `fresh` asks the Hub even for what is there.
    ///
    /// # Errors
    /// What any of these steps says.
    pub fn prepare(mut self, fresh: bool) -> anyhow::Result<Prepared> {
        let source = Source::find(&self.args.model)?;
        if let (Some(_), Source::Folder(_) | Source::Gguf(_)) = (&self.args.file, &source) {
            return Err(SourceError::FileOfPath(self.args.model.clone()).into());
        }
        let name = source.served_name();
        let mut folder = match source {
            Source::Folder(folder) => folder,
            Source::Gguf(path) => self.convert(&name, &path)?,
            Source::Repository(repository) => self.repository(&repository, fresh)?,
        };
        if self.args.quantize.is_some() {
            folder = self.quantize(&name, &folder)?;
        }
        Ok(Prepared {
            folder,
            name,
            _kept: self.kept,
        })
    }

    fn convert(&mut self, name: &str, path: &Path) -> anyhow::Result<PathBuf> {
        let path = fs::canonicalize(path).with_context(|| path.display().to_string())?;
        let found = fs::metadata(&path).with_context(|| path.display().to_string())?;
        let origin = Origin::Gguf {
            path: path.clone(),
            bytes: found.len(),
            modified: nanoseconds(&found)?,
        };
        let mut line = ProgressLine::new(format!("converting {}", path.display()));
        self.keep(&Entry::new(name, origin), &mut |files| {
            clear(files)?;
            let mut report = |progress| line.report(progress);
            gguf_to_hugging_face(&path, files, ConvertOptions::default(), &mut report)
                .with_context(|| format!("{} was not converted", path.display()))
        })
    }

    fn quantize(&mut self, name: &str, folder: &Path) -> anyhow::Result<PathBuf> {
        let path = fs::canonicalize(folder).with_context(|| folder.display().to_string())?;
        let origin = Origin::Fp8 {
            files: fingerprint(&path).with_context(|| path.display().to_string())?,
            path: path.clone(),
        };
        let mut line = ProgressLine::new(format!("quantising {name}"));
        self.keep(&Entry::new(name, origin), &mut |files| {
            clear(files)?;
            let mut report = |progress| line.report(progress);
            to_fp8(&path, files, &QuantizeOptions::default(), &mut report)
                .with_context(|| format!("{} was not quantised", path.display()))
        })
    }

    fn repository(&mut self, repository: &Repository, fresh: bool) -> anyhow::Result<PathBuf> {
        let token = token(self.args)?;
        let hub = Hub::new(&self.args.endpoint, token.as_deref(), Patience::default())?;
        if !fresh && let Some(entry) = self.pulled(&hub, repository)? {
            let gone = || anyhow::anyhow!("{} was removed from the cache meanwhile; try again", entry.name);
            let files = self.keep(&entry, &mut |_| Err(gone()))?;
            return self.folder_of(&entry, files);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let listing = runtime.block_on(hub.list(repository))?;
        let commit = listing.commit.clone().unwrap_or_default();
        let file = self
            .args
            .file
            .as_deref()
            .map(|name| listing.gguf(name))
            .transpose()?;
        let mut entry = Entry::new(
            &repository.name,
            Origin::Hub {
                endpoint: hub.endpoint().to_owned(),
                repository: repository.name.clone(),
                commit: commit.clone(),
                file: file.as_ref().map(|file| file.path.clone()),
            },
        );
        entry.ask(&repository.revision);
        let mut line = ProgressLine::new(format!("downloading {}@{}", repository.name, short(&commit)));
        let files = self.keep(&entry, &mut |files| {
            runtime.block_on(download(
                &Place::Hub(hub.clone()),
                &listing,
                file.as_ref(),
                files,
                &mut line,
            ))
        })?;
        self.note(&entry, &repository.revision)?;
        self.folder_of(&entry, files)
    }

    /// A GGUF file is converted; everything else is a checkpoint already.
    fn folder_of(&mut self, entry: &Entry, files: PathBuf) -> anyhow::Result<PathBuf> {
        match &entry.origin {
            Origin::Hub { file: Some(file), .. } => {
                let name = Path::new(file).file_name().unwrap_or(OsStr::new(file));
                self.convert(&entry.name, &files.join(name))
            }
            _ => Ok(files),
        }
    }

    /// What was pulled for this revision last.
    fn pulled(&self, hub: &Hub, asked: &Repository) -> anyhow::Result<Option<Entry>> {
        let when = |entry: &Entry| match &entry.origin {
            Origin::Hub {
                endpoint,
                repository,
                commit,
                file,
            } if endpoint == hub.endpoint() && *repository == asked.name && *file == self.args.file => {
                let by_commit = (*commit == asked.revision).then_some(u64::MAX);
                entry.asked.get(&asked.revision).copied().or(by_commit)
            }
            _ => None,
        };
        let whole = self.cache.entries()?.into_iter().filter(|found| found.whole);
        let dated = whole.filter_map(|found| Some((when(&found.entry)?, found.entry)));
        Ok(dated.max_by_key(|(when, _)| *when).map(|(_, entry)| entry))
    }

    /// Remember under which revisions an entry was asked for.
    fn note(&self, entry: &Entry, revision: &str) -> anyhow::Result<()> {
        let key = entry.key();
        let known = self
            .cache
            .entries()?
            .into_iter()
            .find(|found| found.whole && found.key == key);
        let mut known = known.map_or_else(|| entry.clone(), |found| found.entry);
        known.ask(revision);
        Ok(self.cache.update(&known)?)
    }

    fn keep(
        &mut self,
        entry: &Entry,
        make: &mut dyn FnMut(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<PathBuf> {
        let mut wait = || eprintln!("another llamero is working on {}; waiting for it", entry.name);
        let kept = self.cache.keep(entry, &mut wait, make)?;
        let files = kept.files.clone();
        self.kept.push(kept);
        Ok(files)
    }
}

async fn download(
    hub: &Place,
    listing: &Listing,
    file: Option<&RemoteFile>,
    folder: &Path,
    line: &mut ProgressLine,
) -> anyhow::Result<()> {
    let mut report = |progress| line.report(progress);
    match file {
        Some(file) => Ok(hub.pull_file(listing, file, folder, &mut report).await?),
        None => Ok(hub.pull(listing, folder, &mut report).await?),
    }
}

/// What an interrupted conversion has left is of no use to the next one.
fn clear(files: &Path) -> anyhow::Result<()> {
    let Some(staging) = files.parent() else {
        return Ok(());
    };
    for item in fs::read_dir(staging)? {
        let path = item?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Names, sizes and times of the files of a folder.
fn fingerprint(folder: &Path) -> std::io::Result<String> {
    let mut lines = Vec::new();
    for item in fs::read_dir(folder)? {
        let item = item?;
        let found = fs::metadata(item.path())?;
        let modified = nanoseconds(&found)?;
        lines.push(format!("{:?} {} {}\n", item.file_name(), found.len(), modified));
    }
    lines.sort();
    Ok(hex(&Sha256::digest(lines.concat())))
}

/// When a file was changed, in nanoseconds since 1970; 64 bits last until 2554.
fn nanoseconds(found: &fs::Metadata) -> std::io::Result<u64> {
    let since = found.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// The access token, if there is one.
fn token(args: &ModelArgs) -> anyhow::Result<Option<String>> {
    let written = match &args.token_file {
        Some(path) => fs::read_to_string(path)
            .with_context(|| format!("the token file {} cannot be read", path.display()))?,
        None => std::env::var("HF_TOKEN").unwrap_or_default(),
    };
    let token = written.trim();
    if token.len() > TOKEN_BYTES {
        return Err(FetchError::Token {
            audience: llamero_sources::Audience::CommandLine,
        }
        .into());
    }
    Ok((!token.is_empty()).then(|| token.to_owned()))
}
