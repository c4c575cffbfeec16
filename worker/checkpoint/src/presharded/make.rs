//! Making a folder with one file a rank.
//!
//! The files of a stage are written side by side, tensor by tensor, so that every byte of the source is read once, in order,
//! whatever the number of ranks. Each file keeps the digests of its blocks.

use std::path::Path;

use super::content::scale_count;
use super::journal::Journal;
use super::manifest::{MANIFEST_NAME, RankFileEntry, ShardManifest, WholeTensor};
use super::part::Part;
use crate::checkpoint::Checkpoint;
use crate::companions::SMALL_FILES;
use crate::error::Result;
use crate::identity::{ContentIdentity, sample_digests};
use crate::io_error::is_file;
use crate::layout::{ModelLayout, Tensor};
use crate::narrow::{to_u32, to_usize};
use crate::piece::{Piece, read_rows};
use crate::pod::is_split_by_columns;
use crate::progress::{Meter, Progress};
use crate::runs::Runs;
use crate::safetensors::OutputDir;
use crate::shard::{ShardPlan, Slice};
use crate::topology::Topology;

/// Bytes of whole rows that are read at a time.
const READ_BYTES: u64 = 4 << 20;

/// Options of [`to_shards`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardOptions {
    /// For which groups.
    pub topology: Topology,
    /// Bytes after which files are flushed to disk and that is noted: an interruption costs no more work.
    pub flush_bytes: u64,
}

impl ShardOptions {
    /// For groups of `topology`.
    #[must_use]
    pub fn new(topology: Topology) -> Self {
        Self {
            topology,
            flush_bytes: 2 << 30,
        }
    }
}

/// Make the new folder `target` from the whole checkpoint in `source`, with one file for each rank. The folder appears whole or
/// not at all; after an interruption the same call keeps the files that were finished and goes on with the others where they
/// were flushed last. Some megabytes of memory are used, and for each rank of a stage the scales of
/// one tensor.
///
/// # Errors
/// The source is damaged or cannot be split so, or the target is not empty or cannot be written.
pub fn to_shards(
    source: &Path,
    target: &Path,
    options: ShardOptions,
    report: &mut dyn FnMut(Progress),
) -> Result<()> {
    let checkpoint = Checkpoint::open(source)?;
    checkpoint.check_whole()?;
    let topology = options.topology;
    let layout = ModelLayout::check(&checkpoint)?;
    let plan = ShardPlan::new(checkpoint.config(), topology)?;
    let identity = ContentIdentity::of(&checkpoint)?;
    let mut manifest = ShardManifest::new(topology, identity);
    let origin = format!("{identity} for {topology}, blocks of {}", manifest.block_bytes);
    let output = OutputDir::resume(target, &origin)?;
    for name in ["config.json", "hf_quant_config.json"]
        .into_iter()
        .chain(SMALL_FILES)
    {
        let from = source.join(name);
        if is_file(&from)? {
            output.copy(name, &from)?;
        }
    }
    let mut parts: Vec<Part<'_>> = plan
        .shards()
        .iter()
        .map(|shard| Part::new(&output, &layout, shard, manifest.block_bytes))
        .collect();
    let pieces = parts.iter().flat_map(|part| &part.pieces);
    let mut meter = Meter::new(pieces.map(stored_bytes).sum(), report);
    for (stage, parts) in (0..).zip(parts.chunks_mut(topology.tensor as usize)) {
        let stage = Stage {
            checkpoint: &checkpoint,
            output: &output,
            parts,
            journal: Journal::of(&output, stage),
            flush_bytes: options.flush_bytes,
        };
        stage.make(&layout, &mut meter)?;
    }
    manifest.tensors = whole_tensors(&checkpoint, &layout);
    manifest.samples = sample_digests(&checkpoint)?.into_iter().map(Into::into).collect();
    for part in &parts {
        manifest.files.push(RankFileEntry {
            name: part.name.clone(),
            bytes: part.bytes(),
            table: part.table(&output)?,
        });
    }
    output.write_json(MANIFEST_NAME, &manifest)?;
    Ok(output.commit()?)
}

/// The weights and scales that the model consists of.
fn whole_tensors(
    checkpoint: &Checkpoint,
    layout: &ModelLayout,
) -> std::collections::BTreeMap<String, WholeTensor> {
    let names = layout.tensors.iter().flat_map(|tensor| {
        let scale = tensor.scale.as_ref().map(|scale| scale.name.clone());
        [Some(tensor.name.clone()), scale]
    });
    let whole = |name: String| {
        let info = checkpoint.tensor(&name)?;
        let (dtype, shape) = (info.dtype, info.shape.clone());
        Some((name, WholeTensor { dtype, shape }))
    };
    names.flatten().filter_map(whole).collect()
}

/// Bytes of a piece in its file.
fn stored_bytes(piece: &Piece<'_>) -> u64 {
    let scale = piece.tensor.scale.as_ref().map_or(0, |scale| scale.dtype.size());
    piece.bytes() + scale_count(piece) * scale
}

/// The files of the ranks of one stage.
struct Stage<'a, 'b> {
    checkpoint: &'a Checkpoint,
    output: &'a OutputDir,
    parts: &'a mut [Part<'b>],
    journal: Journal<'a>,
    flush_bytes: u64,
}

impl Stage<'_, '_> {
    fn make(mut self, layout: &ModelLayout, meter: &mut Meter<'_>) -> Result<()> {
        let finished: Vec<bool> = self
            .parts
            .iter()
            .map(|part| part.is_finished(self.output))
            .collect();
        let is_begun = |(part, finished): (&Part<'_>, &bool)| *finished || part.is_begun();
        let done = match self.parts.iter().zip(&finished).all(is_begun) {
            true => self.journal.done(),
            false => 0,
        };
        for (part, finished) in self.parts.iter_mut().zip(&finished) {
            if *finished {
                meter.add(part.pieces.iter().map(stored_bytes).sum());
            } else {
                part.begin()?;
            }
        }
        let mut unflushed = 0;
        for (number, tensor) in layout.tensors.iter().enumerate() {
            let bytes: u64 = self
                .parts
                .iter()
                .filter_map(|part| Some(stored_bytes(part.piece(tensor.id)?.1)))
                .sum();
            if number < done || bytes == 0 {
                meter.add(bytes);
                continue;
            }
            self.write(tensor, meter)?;
            unflushed += bytes;
            if unflushed >= self.flush_bytes {
                self.flush(number + 1)?;
                unflushed = 0;
            }
        }
        self.flush(layout.tensors.len())?;
        for part in self.parts.iter_mut() {
            part.finish(self.output)?;
        }
        self.journal.remove()
    }

    fn flush(&self, done: usize) -> Result<()> {
        self.parts.iter().try_for_each(Part::flush)?;
        self.journal.note(done)
    }

    fn write(&mut self, tensor: &Tensor, meter: &mut Meter<'_>) -> Result<()> {
        for part in self.parts.iter_mut() {
            let Some((number, piece)) = part.piece(tensor.id) else {
                continue;
            };
            let scales = stored_scales(self.checkpoint, piece)?;
            meter.add(scales.len() as u64);
            part.start(number, scales)?;
        }
        if is_split_by_columns(tensor) {
            return self.write_columns(tensor, meter);
        }
        let mut buffer = Vec::new();
        for part in self.parts.iter_mut() {
            let Some((_, piece)) = part.piece(tensor.id) else {
                continue;
            };
            let piece = piece.clone();
            for rows in steps(piece.rows(), piece.row_bytes()) {
                read_rows(self.checkpoint, &piece, rows, &mut buffer)?;
                meter.add(part.append(&buffer)?);
            }
        }
        Ok(())
    }

    /// Read whole rows, and give each rank its columns.
    #[expect(
        clippy::indexing_slicing,
        reason = "a rank's columns are columns of the whole rows"
    )]
    fn write_columns(&mut self, tensor: &Tensor, meter: &mut Meter<'_>) -> Result<()> {
        let slice = Slice {
            rows: Runs::from(0..to_u32(tensor.rows)),
            cols: Runs::from(0..to_u32(tensor.cols)),
        };
        let whole = Piece { tensor, slice };
        let size = to_usize(tensor.dtype.size());
        let (mut buffer, mut columns) = (Vec::new(), Vec::new());
        for rows in steps(whole.rows(), whole.row_bytes()) {
            read_rows(self.checkpoint, &whole, rows, &mut buffer)?;
            for part in self.parts.iter_mut() {
                let Some((_, piece)) = part.piece(tensor.id) else {
                    continue;
                };
                columns.clear();
                for row in buffer.chunks_exact(to_usize(whole.row_bytes())) {
                    for run in piece.slice.cols.as_slice() {
                        columns.extend_from_slice(&row[run.start as usize * size..run.end as usize * size]);
                    }
                }
                meter.add(part.append(&columns)?);
            }
        }
        Ok(())
    }
}

/// `rows` rows in steps of some megabytes.
fn steps(rows: u64, row_bytes: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    let step = (READ_BYTES / row_bytes.max(1)).max(1);
    (0..rows)
        .step_by(to_usize(step))
        .map(move |first| first..(first + step).min(rows))
}

/// The scales of a piece as the source stores them.
fn stored_scales(checkpoint: &Checkpoint, piece: &Piece<'_>) -> Result<Vec<u8>> {
    let Some(scale) = &piece.tensor.scale else {
        return Ok(Vec::new());
    };
    let one = Runs::from(0..1);
    let rows = if scale.per_row { &piece.slice.rows } else { &one };
    let size = scale.dtype.size();
    let (mut all, mut bytes) = (Vec::new(), Vec::new());
    for run in rows.as_slice() {
        bytes.resize(to_usize(u64::from(run.end - run.start) * size), 0);
        checkpoint.read_at(&scale.name, u64::from(run.start) * size, &mut bytes)?;
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}
