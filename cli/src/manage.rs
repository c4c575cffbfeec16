//! `llamero pull`, `list` and `rm`.

use crate::cache::Cache;
use crate::options::{CacheArgs, PullArgs, RmArgs};
use crate::prepare::Preparation;
use crate::source::{Source, SourceError};

/// Run `pull`; prints the folder.
///
/// # Errors
/// The model is not a repository, or cannot be fetched.
pub fn pull(args: &PullArgs) -> anyhow::Result<()> {
    if !matches!(Source::find(&args.model.model)?, Source::Repository(_)) {
        return Err(SourceError::NotARepository(args.model.model.clone()).into());
    }
    let prepared = Preparation::new(&args.model)?.prepare(true)?;
    println!("{}", prepared.folder.display());
    Ok(())
}

/// Run `list`.
///
/// # Errors
/// The cache cannot be read.
pub fn list(args: &CacheArgs) -> anyhow::Result<()> {
    let found = Cache::open(args.cache_dir.as_deref())?.entries()?;
    if found.is_empty() {
        eprintln!("the cache is empty; `llamero pull ORG/NAME` fills it");
        return Ok(());
    }
    let widest = found
        .iter()
        .map(|found| found.entry.name.len())
        .max()
        .unwrap_or(0);
    for found in found {
        let (name, size) = (&found.entry.name, mega(found.bytes));
        let unfinished = if found.whole { "" } else { ", unfinished" };
        println!(
            "{name:widest$}  {size:>9}  {}{unfinished}",
            found.entry.description()
        );
    }
    Ok(())
}

/// Run `rm`.
///
/// # Errors
/// Nothing has the name, or somebody uses it.
pub fn rm(args: &RmArgs) -> anyhow::Result<()> {
    let freed = Cache::open(args.cache.cache_dir.as_deref())?.remove(&args.name)?;
    eprintln!("removed {}: {}", args.name, mega(freed));
    Ok(())
}

fn mega(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
