//! Which files of a repository make a checkpoint.

use std::collections::BTreeSet;
use std::path::Path;

use llamero_checkpoint::presharded::{MANIFEST_NAME, ShardManifest};
use llamero_checkpoint::safetensors::{INDEX_NAME, SINGLE_NAME, WeightIndex};

use super::{FetchError, Listing, RemoteFile};

/// Without these nothing can be run.
pub(crate) const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Taken where they are.
pub(crate) const OPTIONAL: [&str; 9] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "hf_quant_config.json",
    "LICENSE",
    "USE_POLICY.md",
    INDEX_NAME,
    MANIFEST_NAME,
];
/// GGUF files that an error names.
const NAMED: usize = 12;

impl Listing {
    /// The file of that path.
    pub(crate) fn find(&self, path: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.path == path)
    }

    fn unusable(&self, reason: impl Into<String>) -> FetchError {
        FetchError::Unusable {
            repository: self.repository.clone(),
            reason: reason.into(),
        }
    }

    /// The small files, among them the index that names the weights.
    ///
    /// # Errors
    /// [`FetchError::Unusable`] when this is no checkpoint.
    pub fn small(&self) -> Result<Vec<RemoteFile>, FetchError> {
        let weights = [INDEX_NAME, SINGLE_NAME, MANIFEST_NAME];
        if weights.iter().all(|name| self.find(name).is_none()) {
            return Err(self.unusable(self.without_weights()));
        }
        if let Some(missing) = REQUIRED.iter().find(|name| self.find(name).is_none()) {
            return Err(self.unusable(format!(
                "it has no {missing}; take a repository in the form of Hugging Face's transformers"
            )));
        }
        let names = REQUIRED.iter().chain(&OPTIONAL);
        Ok(names.filter_map(|name| self.find(name)).cloned().collect())
    }

    /// The weights, as the index in `folder`, or the manifest of one file a rank, names them.
    ///
    /// # Errors
    /// [`FetchError::Unusable`] when index and repository do not belong together.
    pub fn weights(&self, folder: &Path) -> Result<Vec<RemoteFile>, FetchError> {
        if self.find(MANIFEST_NAME).is_some() {
            let made = ShardManifest::read(folder)
                .map_err(|error| FetchError::Checkpoint(Box::new(error)))?
                .ok_or_else(|| self.unusable(format!("{MANIFEST_NAME} is not there any more")))?;
            let names = made.files.iter().map(|file| &file.name);
            return self.named(MANIFEST_NAME, names.collect());
        }
        if self.find(INDEX_NAME).is_none() {
            return Ok(self.find(SINGLE_NAME).cloned().into_iter().collect());
        }
        let path = folder.join(INDEX_NAME);
        let bytes = std::fs::read(&path).map_err(|source| FetchError::Io { path, source })?;
        let index: WeightIndex = serde_json::from_slice(&bytes)
            .map_err(|error| self.unusable(format!("{INDEX_NAME} is damaged: {error}")))?;
        self.named(INDEX_NAME, index.weight_map.values().collect())
    }

    /// The files that `by` names.
    fn named(&self, by: &str, names: BTreeSet<&String>) -> Result<Vec<RemoteFile>, FetchError> {
        let file = |name: &String| {
            // A name from the network becomes a name in a folder here.
            let found = self.find(name).filter(|file| is_plain(&file.path));
            found
                .cloned()
                .ok_or_else(|| self.unusable(format!("{by} names the file {name:?}, which it does not have")))
        };
        names.into_iter().map(file).collect()
    }

    /// The one GGUF file called `name`.
    ///
    /// # Errors
    /// [`FetchError::Unusable`] with the names that there are.
    pub fn gguf(&self, name: &str) -> Result<RemoteFile, FetchError> {
        let found = self.find(name).filter(|file| file.path.ends_with(".gguf"));
        found.cloned().ok_or_else(|| {
            let there = self.ggufs();
            let reason = match there.is_empty() {
                true => "it has no GGUF files; leave out --file".to_owned(),
                false => format!("it has no GGUF file {name}; there are {there}"),
            };
            self.unusable(reason)
        })
    }

    fn without_weights(&self) -> String {
        let there = self.ggufs();
        match there.is_empty() {
            true => format!("it has neither {SINGLE_NAME} nor {INDEX_NAME}"),
            false => format!("it has no safetensors; {}: {there}", self.audience.gguf()),
        }
    }

    fn ggufs(&self) -> String {
        let all = self.files.iter().map(|file| file.path.as_str());
        let names: Vec<&str> = all.filter(|path| path.ends_with(".gguf")).collect();
        let rest = names.len().saturating_sub(NAMED);
        let shown: Vec<&str> = names.into_iter().take(NAMED).collect();
        let mut text = shown.join(", ");
        if rest > 0 {
            text.push_str(&format!(" and {rest} more"));
        }
        text
    }
}

/// Whether this is the name of a file in a folder, not a way to somewhere else.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let file = |name: &&str| RemoteFile {
            path: (*name).to_owned(),
            bytes: None,
            sha256: None,
            blob: None,
            tag: None,
        };
        Listing {
            repository: "org/m".to_owned(),
            commit: Some("c".to_owned()),
            files: names.iter().map(file).collect(),
            audience: crate::Audience::CommandLine,
        }
    }

    #[test]
    fn what_is_no_checkpoint_says_why() {
        let reason = |names: &[&str]| listing(names).small().unwrap_err().to_string();
        assert!(reason(&["a.bin"]).contains("neither model.safetensors"));
        assert!(reason(&["a.gguf", "b/c.gguf"]).contains("--file: a.gguf, b/c.gguf"));
        assert!(reason(&["model.safetensors", "config.json"]).contains("no tokenizer.json"));
        let error = listing(&["a.gguf"]).gguf("b.gguf").unwrap_err().to_string();
        assert!(error.contains("there are a.gguf"), "{error}");
    }

    #[test]
    fn only_what_the_index_names_is_taken_and_only_into_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let index = |file: &str| {
            let json = serde_json::json!({"weight_map": {"a": file, "b": file}});
            std::fs::write(dir.path().join(INDEX_NAME), json.to_string()).unwrap();
        };
        let there = listing(&[
            INDEX_NAME,
            SINGLE_NAME,
            "w-1.safetensors",
            "../evil",
            "original/w.pth",
        ]);
        index("w-1.safetensors");
        let weights = there.weights(dir.path()).unwrap();
        assert_eq!(weights.len(), 1);
        assert_eq!(weights[0].path, "w-1.safetensors");
        for wrong in ["../evil", "w-2.safetensors"] {
            index(wrong);
            let error = there.weights(dir.path()).unwrap_err().to_string();
            assert!(error.contains("does not have"), "{error}");
        }
    }
}
