//! What a checkpoint is and how it would be sharded, for people.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::identity::ContentIdentity;
use crate::layout::{ModelLayout, TensorId, TensorKind};
use crate::piece::{pieces, rank_bytes};
use crate::runs::Runs;
use crate::shard::RankShard;
use crate::summary::{CheckpointSummary, kv_bytes_per_token};
use crate::topology::Topology;

/// A report on a checkpoint, from its headers and samples. Its `Display` is for people; `summary` is for machines.
#[derive(Clone, Debug)]
pub struct Report {
    /// The figures that sizing needs.
    pub summary: CheckpointSummary,
    /// The folder.
    pub folder: PathBuf,
    /// Number of safetensors files.
    pub files: usize,
    /// Tensors and bytes by element type.
    pub dtypes: BTreeMap<Dtype, (usize, u64)>,
    /// Which weights these are.
    pub identity: ContentIdentity,
    /// Whether one table serves as embedding and as head.
    pub tied: bool,
    /// For which groups the folder was made, if it has one file a rank.
    pub presharded: Option<Topology>,
    /// The arrangement that was asked for.
    pub topology: Topology,
    /// Every rank of the group that was asked for; empty when the model cannot be split so.
    pub ranks: Vec<RankReport>,
    /// Tensors that no Llama has, which are ignored.
    pub unknown_tensors: Vec<String>,
}

/// What one rank would hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankReport {
    /// Its part of the model.
    pub shard: RankShard,
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// Those of them that are embedding and head.
    pub table_bytes: u64,
    /// Bytes that one token takes in its KV cache, in bf16.
    pub kv_bytes_per_token: u64,
}

/// Report on the checkpoint in `folder` for groups of that `topology`. Reads headers, and samples for the identity.
///
/// # Errors
/// The folder is not a Llama checkpoint, or it is damaged or incomplete. That the topology does not fit is no error but
/// `summary.problem`.
pub fn inspect(folder: &Path, topology: Topology) -> Result<Report> {
    let checkpoint = Checkpoint::open(folder)?;
    let identity = ContentIdentity::of(&checkpoint)?;
    report(&checkpoint, identity, topology)
}

/// The same for an open checkpoint whose identity is known. Reads nothing more.
///
/// # Errors
/// The tensors do not fit the configuration.
pub fn report(checkpoint: &Checkpoint, identity: ContentIdentity, topology: Topology) -> Result<Report> {
    let layout = ModelLayout::check(checkpoint)?;
    let config = checkpoint.config();
    let members = topology.into();
    let of_rank = |shard: &RankShard| RankReport {
        weight_bytes: rank_bytes(&layout, shard),
        table_bytes: table_bytes(&layout, shard),
        kv_bytes_per_token: kv_bytes_per_token(config, shard),
        shard: shard.clone(),
    };
    let ranks = match checkpoint.shard_plan(&members) {
        Ok(plan) => plan.shards().iter().map(of_rank).collect(),
        Err(_) => Vec::new(),
    };
    let mut dtypes: BTreeMap<Dtype, (usize, u64)> = BTreeMap::new();
    for (_, info) in checkpoint.tensors() {
        let entry = dtypes.entry(info.dtype).or_default();
        *entry = (entry.0 + 1, entry.1 + info.bytes());
    }
    Ok(Report {
        summary: CheckpointSummary::new(checkpoint, &layout, topology),
        folder: checkpoint.folder().to_path_buf(),
        files: checkpoint.files().len(),
        dtypes,
        identity,
        tied: layout.is_tied(),
        presharded: checkpoint.presharded().map(|made| made.topology),
        topology,
        ranks,
        unknown_tensors: unknown_tensors(checkpoint, &layout),
    })
}

/// Bytes of a rank's embedding and head.
fn table_bytes(layout: &ModelLayout, shard: &RankShard) -> u64 {
    let tables = pieces(layout, shard)
        .into_iter()
        .filter(|piece| matches!(piece.tensor.id.kind, TensorKind::Embed | TensorKind::Head));
    tables.map(|piece| piece.loaded_bytes()).sum()
}

/// Names that belong to no module of the model; scales and other companions of a known module are fine.
fn unknown_tensors(checkpoint: &Checkpoint, layout: &ModelLayout) -> Vec<String> {
    let known: std::collections::BTreeSet<String> =
        TensorId::all(checkpoint.config()).map(TensorId::module).collect();
    let used = |name: &str| layout.tensors.iter().any(|tensor| tensor.name == name);
    let belongs = |name: &str| {
        name.rsplit_once('.')
            .is_some_and(|(module, _)| known.contains(module))
    };
    checkpoint
        .tensors()
        .map(|(name, _)| name)
        .filter(|name| !belongs(name) && !used(name))
        .map(str::to_owned)
        .collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let summary = &self.summary;
        writeln!(f, "{}", self.folder.display())?;
        writeln!(
            f,
            "  {}, {} parameters, {} in {} file{}",
            summary.architecture,
            count(summary.parameters),
            size(summary.checkpoint_bytes),
            self.files,
            if self.files == 1 { "" } else { "s" }
        )?;
        writeln!(
            f,
            "  {} layers, hidden {}, {} q heads and {} kv heads of {}, ffn {}, vocabulary {}, context {}",
            summary.layers,
            summary.hidden_size,
            summary.q_heads,
            summary.kv_heads,
            summary.head_dim,
            summary.ffn_size,
            summary.vocab_size,
            summary.max_position_embeddings
        )?;
        let scheme = summary.quantization.as_deref().unwrap_or("not quantised");
        let dtypes = self
            .dtypes
            .iter()
            .map(|(dtype, (tensors, bytes))| format!("{tensors} x {dtype} = {}", size(*bytes)));
        writeln!(
            f,
            "  weights {} ({scheme}): {}",
            summary.weights,
            dtypes.collect::<Vec<_>>().join(", ")
        )?;
        if let Some(first) = self.unknown_tensors.first() {
            writeln!(
                f,
                "  ignored: {} tensors that no Llama has, such as {}",
                self.unknown_tensors.len(),
                first
            )?;
        }
        if let Some(made_for) = self.presharded {
            writeln!(f, "  one file a rank, made for {made_for}")?;
        }
        writeln!(f, "  content identity {}", self.identity)?;
        write_plans(f, summary, self.topology.pipeline)?;
        self.write_ranks(f)?;
        if let Some(problem) = &summary.problem {
            writeln!(f, "\nProblem: {problem}")?;
        }
        Ok(())
    }
}

fn write_plans(f: &mut fmt::Formatter<'_>, summary: &CheckpointSummary, pipeline: u32) -> fmt::Result {
    if pipeline > 1 {
        write!(f, "\n  in {pipeline} stages, the largest rank counts:")?;
    }
    writeln!(f, "\n  tensor  weights a rank  KV a token and rank")?;
    for plan in &summary.plans {
        writeln!(
            f,
            "  {:>6}  {:>14}  {:>19}",
            plan.tensor,
            size(plan.weight_bytes_per_rank),
            size(plan.kv_bytes_per_token_per_rank)
        )?;
    }
    Ok(())
}

impl Report {
    fn write_ranks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ranks.len() < 2 {
            return Ok(());
        }
        let tables = if self.tied {
            "embedding and head are one table, split by vocabulary rows"
        } else {
            "embedding and head are split by vocabulary rows"
        };
        writeln!(f, "\n  {}; {tables}", self.topology)?;
        writeln!(
            f,
            "  rank  layers   q heads  kv heads  ffn leaves  vocabulary rows    weights  of them tables  KV a token"
        )?;
        for rank in &self.ranks {
            let shard = &rank.shard;
            writeln!(
                f,
                "  {:>4}  {:>7}  {:>7}  {:>8}  {:>10}  {:>15}  {:>9}  {:>14}  {:>10}",
                shard.rank,
                Runs::from(shard.layers.clone()),
                shard.q_heads,
                shard.kv_heads,
                shard.ffn_leaves,
                shard.vocab(),
                size(rank.weight_bytes),
                size(rank.table_bytes),
                size(rank.kv_bytes_per_token)
            )?;
        }
        Ok(())
    }
}

/// Bytes with a decimal unit, as disks and models are sold.
fn size(bytes: u64) -> String {
    scaled(bytes, &[" B", " kB", " MB", " GB", " TB"])
}

fn count(number: u64) -> String {
    scaled(number, &["", " thousand", " million", " billion"])
}

fn scaled(number: u64, units: &[&str]) -> String {
    let mut value = number as f64;
    let mut larger = units.iter();
    let mut unit = larger.next().copied().unwrap_or_default();
    if value < 1000.0 {
        return format!("{number}{unit}");
    }
    while value >= 1000.0
        && let Some(next) = larger.next()
    {
        value /= 1000.0;
        unit = next;
    }
    format!("{value:.1}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(
            [size(0), size(999), size(134_500_000), size(812_000_000_000)],
            ["0 B", "999 B", "134.5 MB", "812.0 GB"]
        );
        assert_eq!(count(405_853_388_800), "405.9 billion");
    }
}
