//! `SHA256SUMS`: the digests of a folder's files, in the form that `sha256sum` writes and checks.

use std::collections::BTreeMap;

use crate::RemoteFile;
use crate::client::is_sha256;

/// Name of the file.
pub(crate) const NAME: &str = "SHA256SUMS";
/// Most bytes of one; a line is about a hundred.
pub(crate) const MOST: usize = 1 << 20;

/// Give `files` the digests that `sums` has of them. Returns the first line that is none.
pub(crate) fn apply(sums: &str, files: &mut [RemoteFile]) -> Result<(), String> {
    let mut digests = BTreeMap::new();
    for line in sums.lines().filter(|line| !line.trim().is_empty()) {
        let parsed = line.split_once(' ').filter(|(digest, _)| is_sha256(digest));
        let (digest, name) = parsed.ok_or_else(|| line.chars().take(80).collect::<String>())?;
        // A star says that the file was read as bytes.
        let name = name.strip_prefix(['*', ' ']).unwrap_or(name);
        let name = name.strip_prefix("./").unwrap_or(name);
        digests.insert(name, digest.to_ascii_lowercase());
    }
    for file in files {
        if let Some(digest) = digests.get(file.path.as_str()) {
            file.sha256 = Some(digest.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_sha256sum_are_read_and_others_named() {
        let file = |path: &str| RemoteFile {
            path: path.to_owned(),
            bytes: None,
            sha256: None,
            blob: None,
            tag: None,
        };
        let mut files = [file("a"), file("b"), file("c"), file("d e")];
        let (one, two, three) = ("A1".repeat(32), "b2".repeat(32), "c3".repeat(32));
        apply(&format!("{one}  a\n{two} *./b\n\n{three}  d e\n"), &mut files).unwrap();
        let found: Vec<_> = files.iter().map(|file| file.sha256.clone()).collect();
        assert_eq!(found, [Some("a1".repeat(32)), Some(two), None, Some(three)]);
        for wrong in ["<html>", "abc  a", "nothing"] {
            assert_eq!(apply(wrong, &mut files), Err(wrong.to_owned()));
        }
    }
}
