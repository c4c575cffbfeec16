//! A checkpoint folder: configuration and the headers of all safetensors files.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::{GenerationConfig, LlamaConfig};
use crate::error::{PreshardedError, Result, ShardError};
use crate::io_error::{IoError, is_file};
use crate::layout::ModelLayout;
use crate::lfs::LfsPointer;
use crate::members::Members;
use crate::presharded::{ShardManifest, check_files};
use crate::remote::{Announced, RemoteWeights};
use crate::safetensors::{
    INDEX_NAME, SINGLE_NAME, SafetensorsError, SafetensorsFile, TensorInfo, WeightIndex,
};
use crate::shard::ShardPlan;

/// An open checkpoint. Opening reads configuration and headers only; reads are positioned and may run in parallel.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    config: LlamaConfig,
    generation: GenerationConfig,
    files: Vec<SafetensorsFile>,
    file_of: BTreeMap<String, usize>,
    bytes_read: AtomicU64,
    remote: Option<Arc<dyn RemoteWeights>>,
    presharded: Option<Presharded>,
}

/// Of a folder with one file a rank: for whom it was made, and the tensors of the whole model.
#[derive(Debug)]
struct Presharded {
    manifest: ShardManifest,
    tensors: BTreeMap<String, TensorInfo>,
}

/// Small files that a clone without Git LFS may leave as pointers, beside the weights.
const SMALL_FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    INDEX_NAME,
    "tokenizer.json",
    "tokenizer_config.json",
];

impl Checkpoint {
    /// Open the Hugging Face folder `folder`: `config.json` and either `model.safetensors` or the files of
    /// `model.safetensors.index.json`; or a folder with one file a rank (see [`crate::presharded`]).
    pub fn open(folder: &Path) -> Result<Self> {
        Self::with(folder, None)
    }

    /// Open a checkpoint of which `folder` has the small files, and `weights` the safetensors files.
    pub fn open_remote(folder: &Path, weights: Arc<dyn RemoteWeights>) -> Result<Self> {
        Self::with(folder, Some(weights))
    }

    fn with(folder: &Path, remote: Option<Arc<dyn RemoteWeights>>) -> Result<Self> {
        for name in SMALL_FILES {
            LfsPointer::refuse(&folder.join(name))?;
        }
        let config = LlamaConfig::read(&folder.join("config.json"))?;
        let mut generation = GenerationConfig::read(&folder.join("generation_config.json"))?;
        if generation.eos_token_ids.is_empty() {
            generation.eos_token_ids.clone_from(&config.eos_token_ids);
        }
        drop_unknown(&mut generation.eos_token_ids, config.vocab_size);
        let presharded = match ShardManifest::read(folder)? {
            Some(manifest) => Some(Presharded {
                tensors: manifest.infos(folder)?,
                manifest,
            }),
            None => None,
        };
        let (files, file_of) = match &presharded {
            Some(Presharded { manifest, .. }) => {
                let names: Vec<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
                (open_each(folder, &names, remote.as_deref())?, BTreeMap::new())
            }
            None => open_files(folder, remote.as_deref())?,
        };
        let checkpoint = Self {
            folder: folder.to_path_buf(),
            config,
            generation,
            files,
            file_of,
            bytes_read: AtomicU64::new(0),
            remote,
            presharded,
        };
        if let Some(made) = checkpoint.presharded() {
            check_files(&checkpoint, made, &ModelLayout::check(&checkpoint)?)?;
        }
        Ok(checkpoint)
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Its defaults of generation; the tokens that end a text are those of `generation_config.json`, else those of
    /// `config.json`, as far as the vocabulary has them.
    #[must_use]
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// The safetensors files.
    #[must_use]
    pub fn files(&self) -> &[SafetensorsFile] {
        &self.files
    }

    /// All tensors by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        let parted = self.presharded.iter().flat_map(|made| made.tensors.keys());
        self.file_of
            .keys()
            .chain(parted)
            .filter_map(|name| Some((name.as_str(), self.tensor(name)?)))
    }

    /// The tensor of that name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        if let Some(made) = &self.presharded {
            return made.tensors.get(name);
        }
        self.files.get(*self.file_of.get(name)?)?.tensor(name)
    }

    /// For which groups the folder was made, and of what, if it has one file a rank.
    #[must_use]
    pub fn presharded(&self) -> Option<&ShardManifest> {
        self.presharded.as_ref().map(|made| &made.manifest)
    }

    /// How the model is split over the ranks of the group `members`.
    ///
    /// # Errors
    /// As [`ShardPlan::of`]; also when the folder has one file a rank and was made for other ranks.
    pub fn shard_plan(&self, members: &Members) -> Result<ShardPlan, ShardError> {
        if let Some(made_for) = self.presharded().map(|made| made.topology) {
            let asked = members.topology();
            if asked != made_for {
                return Err(ShardError::MadeForOthers { made_for, asked });
            }
            if !members.lost().is_empty() {
                return Err(ShardError::MadeForAll { made_for });
            }
        }
        ShardPlan::of(&self.config, members)
    }

    /// Whether tensors are there as a whole.
    ///
    /// # Errors
    /// [`PreshardedError::NotWhole`]: the folder has one file a rank.
    pub fn check_whole(&self) -> Result<()> {
        match self.presharded() {
            None => Ok(()),
            Some(made) => Err(PreshardedError::NotWhole {
                path: self.folder.clone(),
                made_for: made.topology,
            }
            .into()),
        }
    }

    /// Fill `buffer` with the bytes of tensor `name` from `offset` on.
    ///
    /// # Errors
    /// A read fails; the folder has one file a rank, so that it has no whole tensors.
    pub fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.check_whole()?;
        let Some(file) = self.file_of.get(name).and_then(|number| self.files.get(*number)) else {
            let end = offset.saturating_add(buffer.len() as u64);
            let (path, tensor) = (self.folder.clone(), name.to_owned());
            return Err(SafetensorsError::OutOfRange {
                path,
                tensor,
                start: offset,
                end,
                size: 0,
            }
            .into());
        };
        file.read_at(name, offset, buffer)?;
        self.bytes_read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Fill `buffer` with the bytes of tensor `name` of file `file` from `offset` on.
    #[expect(
        clippy::indexing_slicing,
        reason = "the number is that of a rank, each of which has a file"
    )]
    pub(crate) fn read_file_at(&self, file: usize, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.files[file].read_at(name, offset, buffer)?;
        self.bytes_read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Where tensor `name` lies in file `file`.
    pub(crate) fn range_in_file(&self, file: usize, name: &str) -> Option<Range<u64>> {
        let file = self.files.get(file)?;
        let (start, range) = (file.data_start(), &file.tensor(name)?.range);
        Some(start + range.start..start + range.end)
    }

    /// Number of the file that holds the tensor, and the tensor's first byte in it.
    pub(crate) fn position(&self, name: &str) -> Option<(usize, u64)> {
        let number = *self.file_of.get(name)?;
        let file = self.files.get(number)?;
        Some((number, file.data_start() + file.tensor(name)?.range.start))
    }

    /// Whether weights are read over a network.
    pub(crate) fn is_remote(&self) -> bool {
        self.remote.is_some()
    }

    /// Say what is going to be read, in that order. For files on a disk nothing is computed.
    pub(crate) fn announce(&self, ranges: impl FnOnce() -> Vec<Announced>) {
        if let Some(remote) = &self.remote {
            remote.announce(ranges());
        }
    }

    /// What was announced has been read.
    pub(crate) fn finish_reading(&self) -> Result<()> {
        let finished = self.remote.as_ref().map_or(Ok(()), |remote| remote.finish());
        Ok(finished.map_err(IoError::at("use", &self.folder))?)
    }

    /// Bytes that were read since the checkpoint was opened, by all threads: by [`Self::read_at`] from a disk, else over
    /// the network.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        if let Some(remote) = &self.remote {
            return remote.bytes_read();
        }
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Bytes of `tokenizer.json`, by which the memory for the tokenizer is planned; none when it cannot be seen.
    #[must_use]
    pub fn tokenizer_bytes(&self) -> Option<u64> {
        let metadata = std::fs::metadata(self.folder.join("tokenizer.json"));
        metadata.ok().map(|metadata| metadata.len())
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors().map(|(_, info)| info.bytes()).sum()
    }
}

/// A token that the model has no logit for never comes, so none of them ends a text; a mask or a bias could not name it.
fn drop_unknown(tokens: &mut Vec<u32>, vocab_size: u32) {
    tokens.retain(|token| {
        let known = *token < vocab_size;
        if !known {
            tracing::warn!(
                "eos_token_id {token} is no token of this model, whose vocab_size is {vocab_size}: it is left out"
            );
        }
        known
    });
}

fn open_files(
    folder: &Path,
    remote: Option<&dyn RemoteWeights>,
) -> Result<(Vec<SafetensorsFile>, BTreeMap<String, usize>)> {
    let index_path = folder.join(INDEX_NAME);
    if !is_file(&index_path)? {
        let single = folder.join(SINGLE_NAME);
        if !is_file(&single)? && remote.is_none() {
            return Err(SafetensorsError::NothingThere {
                path: folder.to_path_buf(),
            }
            .into());
        }
        let files = open_each(folder, &[SINGLE_NAME], remote)?;
        let tensors = files.iter().flat_map(|file| file.header().tensors.keys());
        let file_of = tensors.map(|name| (name.clone(), 0)).collect();
        return Ok((files, file_of));
    }
    let index = match remote {
        None => WeightIndex::read(&index_path)?,
        Some(_) => WeightIndex::read_alone(&index_path)?,
    };
    let names: Vec<&str> = index.files().into_iter().collect();
    let files = open_each(folder, &names, remote)?;
    let number: BTreeMap<&str, usize> = names
        .iter()
        .enumerate()
        .map(|(number, name)| (*name, number))
        .collect();
    let mut file_of = BTreeMap::new();
    for (tensor, file) in &index.weight_map {
        let holds = |number: &&usize| {
            let opened: Option<&SafetensorsFile> = files.get(**number);
            opened.is_some_and(|opened| opened.tensor(tensor).is_some())
        };
        let Some(number) = number.get(file.as_str()).filter(holds) else {
            return Err(SafetensorsError::NotInFile {
                path: folder.join(file),
                tensor: tensor.clone(),
            }
            .into());
        };
        file_of.insert(tensor.clone(), *number);
    }
    Ok((files, file_of))
}

fn open_each(
    folder: &Path,
    names: &[&str],
    remote: Option<&dyn RemoteWeights>,
) -> Result<Vec<SafetensorsFile>> {
    let paths = names.iter().map(|name| folder.join(name));
    let files = match remote {
        None => paths
            .map(|path| SafetensorsFile::open(&path))
            .collect::<Result<_, _>>(),
        Some(remote) => {
            let files = remote.open(names).map_err(IoError::at("open", folder))?;
            files
                .into_iter()
                .zip(paths)
                .map(|(file, path)| SafetensorsFile::over(&path, file))
                .collect()
        }
    };
    Ok(files?)
}
