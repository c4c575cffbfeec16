//! Inputs that are kept: those of the repository, and in long runs those that had a new outcome.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files of the repository for the target, in the order of their names.
pub(crate) fn kept(target: &str) -> Vec<Vec<u8>> {
    read(&root().join("corpus").join(target))
}

/// Words of the target's language, if it has one.
pub(crate) fn words(target: &str) -> Vec<String> {
    let file = root().join("corpus").join(format!("{target}.words.json"));
    match std::fs::read(&file) {
        Err(_) => Vec::new(),
        Ok(json) => match serde_json::from_slice(&json) {
            Ok(words) => words,
            Err(error) => panic!("{} is no list of words: {error}", file.display()),
        },
    }
}

/// Files that long runs have found on this machine.
pub(crate) fn found(target: &str) -> Vec<Vec<u8>> {
    read(&found_folder(target))
}

/// Inputs that `LLAMERO_FUZZ_KEEP` adds to a target's folder of the repository, until it has so many.
const MOST_KEPT: usize = 16;
/// The longest of them, in bytes.
const LONGEST_KEPT: usize = 2 << 10;

/// Keeps an input with a new outcome in the repository, if it is short and there is room.
pub(crate) fn keep_in_repository(target: &str, input: &[u8]) -> std::io::Result<()> {
    let folder = root().join("corpus").join(target);
    std::fs::create_dir_all(&folder)?;
    if input.len() > LONGEST_KEPT || std::fs::read_dir(&folder)?.count() >= MOST_KEPT {
        return Ok(());
    }
    std::fs::write(folder.join(name(input)), input)
}

/// Keeps an input for the next long run, or one that fails for whoever mends it. Returns where it lies.
pub(crate) fn keep(target: &str, kind: &str, input: &[u8]) -> std::io::Result<PathBuf> {
    let folder = match kind {
        "found" => found_folder(target),
        _ => root().join("../../.local/fuzz").join(kind).join(target),
    };
    std::fs::create_dir_all(&folder)?;
    let file = folder.join(name(input));
    std::fs::write(&file, input)?;
    Ok(file)
}

/// The name of an input's file.
fn name(input: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn found_folder(target: &str) -> PathBuf {
    root().join("../../.local/fuzz/found").join(target)
}

fn read(folder: &Path) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files.iter().filter_map(|file| std::fs::read(file).ok()).collect()
}
