//! Where a checkpoint keeps its chat template and the names of the tokens that templates put at the ends of texts.

use std::path::{Path, PathBuf};

use llamero_checkpoint::read_if_there;
use serde::Deserialize;

use super::chat_template::ChatTemplateError;

/// A template and the variables that come with it.
#[derive(Debug, Clone, Default)]
pub struct TemplateFiles {
    /// The Jinja source.
    pub source: String,
    /// `bos_token`, `eos_token`, `pad_token` and `unk_token`, as far as the checkpoint names them.
    pub token_names: Vec<(&'static str, String)>,
}

#[derive(Deserialize, Default)]
struct TokenizerConfig {
    chat_template: Option<TemplateField>,
    bos_token: Option<TokenField>,
    eos_token: Option<TokenField>,
    pad_token: Option<TokenField>,
    unk_token: Option<TokenField>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenField {
    Text(String),
    Object { content: String },
}

impl TokenField {
    fn text(self) -> String {
        match self {
            Self::Text(content) | Self::Object { content } => content,
        }
    }
}

impl TemplateFiles {
    /// Read a model directory: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json` (of several, the one called
    /// `default`).
    ///
    /// # Errors
    /// [`ChatTemplateError::Missing`], [`ChatTemplateError::Read`] or [`ChatTemplateError::Io`].
    pub fn read(model_dir: &Path) -> Result<Self, ChatTemplateError> {
        let config: TokenizerConfig = match read(&model_dir.join("tokenizer_config.json"))? {
            None => TokenizerConfig::default(),
            Some((path, json)) => serde_json::from_str(&json).map_err(|error| ChatTemplateError::Read {
                path,
                reason: error.to_string(),
            })?,
        };
        let source = match (
            read(&model_dir.join("chat_template.jinja"))?,
            config.chat_template,
        ) {
            (Some((_, source)), _) | (None, Some(TemplateField::One(source))) => Some(source),
            (None, Some(TemplateField::Named(templates))) => templates
                .into_iter()
                .find(|template| template.name == "default")
                .map(|found| found.template),
            (None, None) => None,
        };
        let names = [
            ("bos_token", config.bos_token),
            ("eos_token", config.eos_token),
            ("pad_token", config.pad_token),
            ("unk_token", config.unk_token),
        ];
        Ok(Self {
            source: source.ok_or_else(|| ChatTemplateError::Missing(model_dir.to_owned()))?,
            token_names: names
                .into_iter()
                .filter_map(|(name, field)| Some((name, field?.text())))
                .collect(),
        })
    }
}

fn read(path: &Path) -> Result<Option<(PathBuf, String)>, ChatTemplateError> {
    let unreadable = |reason: String| ChatTemplateError::Read {
        path: path.to_owned(),
        reason,
    };
    let bytes = read_if_there(path).map_err(|error| match error.is_passing() {
        true => ChatTemplateError::Io(error),
        false => unreadable(error.source.to_string()),
    })?;
    let text = bytes.map(String::from_utf8).transpose();
    let text = text.map_err(|error| unreadable(error.to_string()))?;
    Ok(text.map(|text| (path.to_owned(), text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_found_in_either_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = TemplateFiles::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("chat_template.jinja"), "{error}");
        let config = r#"{"bos_token": {"content": "<s>"}, "pad_token": null, "eos_token": "</s>",
            "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "from config"}]}"#;
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let files = TemplateFiles::read(dir.path()).unwrap();
        assert_eq!(files.source, "from config");
        let names = [("bos_token", "<s>".to_owned()), ("eos_token", "</s>".to_owned())];
        assert_eq!(files.token_names, names);
        std::fs::write(dir.path().join("chat_template.jinja"), "from file").unwrap();
        assert_eq!(TemplateFiles::read(dir.path()).unwrap().source, "from file");
        std::fs::write(dir.path().join("tokenizer_config.json"), "{").unwrap();
        let error = TemplateFiles::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json"), "{error}");
    }

    /// Reading the start of a process's own memory fails with EIO.
    #[test]
    fn a_disk_that_does_not_answer_is_no_missing_template() {
        for name in ["tokenizer_config.json", "chat_template.jinja"] {
            let dir = tempfile::tempdir().unwrap();
            std::os::unix::fs::symlink("/proc/self/mem", dir.path().join(name)).unwrap();
            let error = TemplateFiles::read(dir.path()).unwrap_err();
            assert!(matches!(error, ChatTemplateError::Io(_)), "{name}: {error}");
        }
    }
}
