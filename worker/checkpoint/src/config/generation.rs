//! `generation_config.json`: when to stop and how to sample unless the request says otherwise.

use std::path::Path;

use serde::Deserialize;

use super::ConfigError;
use super::llama::TokenIds;
use crate::io_error::read_if_there;

/// Defaults of generation; a field is none or empty when the file does not have it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end a text (Llama 3.1 Instruct: `<|end_of_text|>`, `<|eom_id|>`, `<|eot_id|>`).
    pub eos_token_ids: Vec<u32>,
    /// Token that starts a text.
    pub bos_token_id: Option<u32>,
    /// Whether the authors advise to sample (else greedy).
    pub do_sample: Option<bool>,
    /// Advised temperature.
    pub temperature: Option<f32>,
    /// Advised nucleus mass.
    pub top_p: Option<f32>,
    /// Advised number of candidates.
    pub top_k: Option<u32>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    eos_token_id: TokenIds,
    bos_token_id: Option<u32>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
}

impl GenerationConfig {
    /// The temperature of a request that names none: 0 where the authors advise not to sample, whatever temperature stands beside it.
    #[must_use]
    pub fn usual_temperature(&self) -> Option<f32> {
        match self.do_sample {
            Some(false) => Some(0.0),
            Some(true) | None => self.temperature,
        }
    }

    /// Read the file at `path`; a file that is not there is the default.
    ///
    /// # Errors
    /// Not JSON, a value of another type, or an advised value that no request could ask for.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let Some(bytes) = read_if_there(path)? else {
            return Ok(Self::default());
        };
        let raw: Raw = serde_json::from_slice(&bytes).map_err(|source| ConfigError::Json {
            path: path.to_path_buf(),
            source,
        })?;
        // Written so that NaN fails.
        if let Some(given) = raw.temperature.filter(|given| !(0.0..=2.0).contains(given)) {
            return Err(advice("temperature", given, "it must lie from 0 to 2"));
        }
        if let Some(given) = raw.top_p.filter(|given| !(*given > 0.0 && *given <= 1.0)) {
            return Err(advice("top_p", given, "it must lie above 0 and at most at 1"));
        }
        Ok(Self {
            eos_token_ids: raw.eos_token_id.into_vec(),
            bos_token_id: raw.bos_token_id,
            do_sample: raw.do_sample,
            temperature: raw.temperature,
            top_p: raw.top_p,
            top_k: raw.top_k,
        })
    }
}

fn advice(field: &'static str, given: f32, reason: &'static str) -> ConfigError {
    ConfigError::Generation {
        field,
        value: given.to_string(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn one_id_several_or_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("generation_config.json");
        assert_eq!(
            GenerationConfig::read(&path).unwrap(),
            GenerationConfig::default()
        );
        fs::write(
            &path,
            r#"{"eos_token_id": 2, "temperature": 0.6, "use_cache": true}"#,
        )
        .unwrap();
        let config = GenerationConfig::read(&path).unwrap();
        assert_eq!((config.eos_token_ids, config.temperature), (vec![2], Some(0.6)));
        fs::write(
            &path,
            r#"{"eos_token_id": [128001, 128009], "bos_token_id": null}"#,
        )
        .unwrap();
        assert_eq!(
            GenerationConfig::read(&path).unwrap().eos_token_ids,
            [128_001, 128_009]
        );
        for (text, usual) in [
            (r#"{"do_sample": false, "temperature": 0.6}"#, Some(0.0)),
            (r#"{"do_sample": true, "temperature": 0.6}"#, Some(0.6)),
            (r#"{"do_sample": true}"#, None),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(
                GenerationConfig::read(&path).unwrap().usual_temperature(),
                usual,
                "{text}"
            );
        }
        for (text, field) in [
            (r#"{"temperature": 2.5}"#, "temperature is 2.5"),
            (r#"{"top_p": 0}"#, "top_p is 0"),
        ] {
            fs::write(&path, text).unwrap();
            let refusal = GenerationConfig::read(&path).unwrap_err().to_string();
            assert!(
                refusal.contains(field) && refusal.contains("generation_config.json"),
                "{refusal}"
            );
        }
        fs::write(&path, "{").unwrap();
        assert!(
            GenerationConfig::read(&path)
                .unwrap_err()
                .to_string()
                .contains("generation_config.json")
        );
    }
}
