//! Sampling defaults and end-of-text tokens of a checkpoint.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What a checkpoint recommends, from `generation_config.json`, else from `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationDefaults {
    /// Tokens that end an answer (Llama 3.1: `<|end_of_text|>`, `<|eom_id|>`, `<|eot_id|>`).
    pub eos_tokens: Vec<u32>,
    /// Default temperature; 1 when the checkpoint names none.
    pub temperature: f32,
    /// Default top-p; 1 when the checkpoint names none.
    pub top_p: f32,
    /// Default top-k; 0 (off) when the checkpoint names none.
    pub top_k: u32,
}

/// Why the defaults cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{path} is not usable: {reason}; copy it again from where the checkpoint came from")]
pub struct GenerationConfigError {
    path: PathBuf,
    reason: String,
}

#[derive(Deserialize, Default)]
struct File {
    eos_token_id: Option<OneOrMany>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl Default for GenerationDefaults {
    fn default() -> Self {
        Self {
            eos_tokens: Vec::new(),
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
        }
    }
}

impl GenerationDefaults {
    /// Read a model directory. Either file may be missing.
    ///
    /// # Errors
    /// When a file is there but is not JSON of the expected form.
    pub fn from_dir(model_dir: &Path) -> Result<Self, GenerationConfigError> {
        let generation = read(&model_dir.join("generation_config.json"))?;
        let eos = match generation.eos_token_id {
            Some(eos) => Some(eos),
            None => read(&model_dir.join("config.json"))?.eos_token_id,
        };
        let fallback = Self::default();
        Ok(Self {
            eos_tokens: match eos {
                Some(OneOrMany::One(id)) => vec![id],
                Some(OneOrMany::Many(ids)) => ids,
                None => Vec::new(),
            },
            temperature: generation.temperature.unwrap_or(fallback.temperature),
            top_p: generation.top_p.unwrap_or(fallback.top_p),
            top_k: generation.top_k.unwrap_or(fallback.top_k),
        })
    }
}

fn read(path: &Path) -> Result<File, GenerationConfigError> {
    let failed = |reason: String| GenerationConfigError {
        path: path.to_owned(),
        reason,
    };
    match std::fs::read(path) {
        Ok(json) => serde_json::from_slice(&json).map_err(|error| failed(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(File::default()),
        Err(error) => Err(failed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_there_and_falls_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            GenerationDefaults::from_dir(dir.path()).unwrap(),
            GenerationDefaults::default()
        );
        std::fs::write(
            dir.path().join("config.json"),
            r#"{"eos_token_id": 2, "hidden_size": 5}"#,
        )
        .unwrap();
        assert_eq!(GenerationDefaults::from_dir(dir.path()).unwrap().eos_tokens, [2]);
        let generation = r#"{"eos_token_id": [7, 8], "temperature": 0.6, "top_p": 0.9}"#;
        std::fs::write(dir.path().join("generation_config.json"), generation).unwrap();
        let defaults = GenerationDefaults::from_dir(dir.path()).unwrap();
        let expected = GenerationDefaults {
            eos_tokens: vec![7, 8],
            temperature: 0.6,
            top_p: 0.9,
            top_k: 0,
        };
        assert_eq!(defaults, expected);
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("generation_config.json"), "{").unwrap();
        let error = GenerationDefaults::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains("generation_config.json"), "{error}");
    }
}
