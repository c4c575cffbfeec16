//! Messages to the prompt the model was trained on, by the Jinja template that comes with the checkpoint.

use std::path::{Path, PathBuf};

use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or what else the template knows.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
pub enum ChatTemplateError {
    /// The checkpoint has none.
    #[error(
        "the model in {0} has no chat template; add chat_template.jinja to it, or use text completion instead"
    )]
    Missing(PathBuf),
    /// A file cannot be read.
    #[error("cannot read {path}: {reason}; copy it again from where the checkpoint came from")]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The template is not valid.
    #[error("the chat template is not valid: {0}; use the one that the checkpoint came with")]
    Syntax(String),
    /// The template refuses the conversation; the text is its own.
    #[error("the chat template refuses these messages: {0}")]
    Refused(String),
    /// The template failed.
    #[error("the chat template failed on these messages: {0}; check their roles and order")]
    Render(String),
    /// No messages.
    #[error("there are no messages; send at least one")]
    NoMessages,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

const NAME: &str = "chat_template";
/// Marks errors raised by the template itself.
const RAISED: &str = "raise_exception: ";

#[derive(Deserialize, Default)]
struct TokenizerConfig {
    chat_template: Option<TemplateField>,
    bos_token: Option<TokenField>,
    eos_token: Option<TokenField>,
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

impl ChatTemplate {
    /// Read a model directory: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json` (of several, the
    /// one called `default`).
    ///
    /// # Errors
    /// [`ChatTemplateError::Missing`], [`ChatTemplateError::Read`] or [`ChatTemplateError::Syntax`].
    pub fn from_dir(model_dir: &Path) -> Result<Self, ChatTemplateError> {
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
        let source = source.ok_or_else(|| ChatTemplateError::Missing(model_dir.to_owned()))?;
        let token = |field: Option<TokenField>| field.map(TokenField::text).unwrap_or_default();
        Self::new(source, token(config.bos_token), token(config.eos_token))
    }

    /// Compile a template.
    ///
    /// # Errors
    /// [`ChatTemplateError::Syntax`].
    pub fn new(source: String, bos_token: String, eos_token: String) -> Result<Self, ChatTemplateError> {
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| ChatTemplateError::Syntax(describe(&error)))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| ChatTemplateError::Syntax(describe(&error)))?;
        Ok(Self {
            environment,
            bos_token,
            eos_token,
        })
    }

    /// The prompt of a conversation, with the opening of the assistant's turn. `tools_json` is a JSON array of tools in OpenAI's
    /// form; `now` is what the template's `strftime_now` tells.
    ///
    /// # Errors
    /// [`ChatTemplateError::NoMessages`], [`ChatTemplateError::Refused`] or [`ChatTemplateError::Render`].
    pub fn render(
        &self,
        messages: &[ChatMessage],
        tools_json: Option<&str>,
        now: DateTime,
    ) -> Result<String, ChatTemplateError> {
        if messages.is_empty() {
            return Err(ChatTemplateError::NoMessages);
        }
        let tools: Value = match tools_json {
            None => Value::from(()),
            Some(json) => serde_json::from_str(json)
                .map_err(|error| ChatTemplateError::Render(format!("tools are not valid JSON: {error}")))?,
        };
        let strftime_now = Value::from_function(move |format: &str| {
            jiff::fmt::strtime::format(format, now)
                .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
        });
        let failed = |error: Error| match error.detail().and_then(|detail| detail.strip_prefix(RAISED)) {
            Some(words) => ChatTemplateError::Refused(words.to_owned()),
            None => ChatTemplateError::Render(describe(&error)),
        };
        let template = self.environment.get_template(NAME).map_err(failed)?;
        template
            .render(context! {
                messages => Serde(messages),
                tools,
                strftime_now,
                add_generation_prompt => true,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
            })
            .map_err(failed)
    }
}

fn read(path: &Path) -> Result<Option<(PathBuf, String)>, ChatTemplateError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some((path.to_owned(), text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ChatTemplateError::Read {
            path: path.to_owned(),
            reason: error.to_string(),
        }),
    }
}

fn describe(error: &Error) -> String {
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(
        ErrorKind::InvalidOperation,
        format!("{RAISED}{message}"),
    ))
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes it, since models saw that in training.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let invalid = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut json = Vec::new();
    if let Some(indent) = indent {
        let spaces = b" ".repeat(indent.min(32));
        let formatter = PrettyFormatter::with_indent(&spaces);
        value
            .serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
            .map_err(invalid)?;
    } else {
        value
            .serialize(&mut serde_json::Serializer::with_formatter(&mut json, PythonJson))
            .map_err(invalid)?;
    }
    String::from_utf8(json).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// Python's separators: `, ` and `: `.
struct PythonJson;

impl Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses what the templates of the Llama 3 family use.
    const TEMPLATE: &str = r#"{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- set ns = namespace(turns=0) %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'].strip() %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "none" %}
{%- endif %}
{{- "[" ~ system ~ "|" ~ date_string ~ "]" }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- tool | tojson }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant'] %}
        {{- raise_exception("only user and assistant take turns") }}
    {%- endif %}
    {%- set ns.turns = ns.turns + 1 %}
    {{- '<' + message['role'] + '>' + message['content'] | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<assistant ' ~ ns.turns ~ '>' }}
{%- endif %}
"#;

    fn template() -> ChatTemplate {
        ChatTemplate::new(TEMPLATE.to_owned(), "<s>".to_owned(), "</s>".to_owned()).unwrap()
    }

    fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
        }
    }

    fn now() -> DateTime {
        jiff::civil::date(2024, 7, 26).at(12, 0, 0, 0)
    }

    #[test]
    fn renders_what_llama_templates_use() {
        let messages = [
            message("system", " Be kind. "),
            message("user", "hi <b>"),
            message("assistant", "ho"),
        ];
        assert_eq!(
            template().render(&messages, None, now()).unwrap(),
            "<s>[Be kind.|26 Jul 2024]<user>hi <b></s><assistant>ho</s><assistant 2>"
        );
    }

    #[test]
    fn tools_are_written_as_python_writes_json() {
        let tools = r#"[{"name":"f","b":[1,2.5,"é<"],"a":{}}]"#;
        let prompt = template()
            .render(&[message("user", "x")], Some(tools), now())
            .unwrap();
        let pretty = "{\n    \"name\": \"f\",\n    \"b\": [\n        1,\n        2.5,\n        \"é<\"\n    ],\n    \"a\": {}\n}";
        let compact = r#"{"name": "f", "b": [1, 2.5, "é<"], "a": {}}"#;
        assert_eq!(
            prompt,
            format!("<s>[none|26 Jul 2024]{pretty}{compact}<user>x</s><assistant 1>")
        );
    }

    #[test]
    fn the_template_s_own_words_reach_the_user() {
        let error = template()
            .render(&[message("ipython", "x")], None, now())
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "the chat template refuses these messages: only user and assistant take turns"
        );
        assert!(
            template()
                .render(&[], None, now())
                .unwrap_err()
                .to_string()
                .contains("at least one")
        );
    }

    #[test]
    fn is_found_in_either_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = ChatTemplate::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains("chat_template.jinja"), "{error}");
        let config = r#"{"bos_token": {"content": "<s>"}, "chat_template": [{"name": "tool_use", "template": "no"},
            {"name": "default", "template": "{{ bos_token }}from config"}]}"#;
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let render = || {
            ChatTemplate::from_dir(dir.path())
                .unwrap()
                .render(&[message("user", "x")], None, now())
        };
        assert_eq!(render().unwrap(), "<s>from config");
        std::fs::write(dir.path().join("chat_template.jinja"), "from file").unwrap();
        assert_eq!(render().unwrap(), "from file");
        std::fs::write(dir.path().join("chat_template.jinja"), "{% if %}").unwrap();
        let error = ChatTemplate::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
    }
}
