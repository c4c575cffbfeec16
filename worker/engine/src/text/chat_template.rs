//! Messages to the prompt the model was trained on, by the Jinja template that comes with the checkpoint.

use std::path::{Path, PathBuf};

use jiff::civil::DateTime;
use llamero_checkpoint::IoError;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

use super::chat_message::{ChatMessage, from_json};
use super::markers::Markers;
use super::prompt::Prompt;
use super::python::{self, RAISED};
use super::template_files::TemplateFiles;
use super::tokenizer::Tokenizer;

/// Most messages of a conversation.
pub const MAX_MESSAGES: usize = 16_384;
/// Steps that a template may take for itself, for every message, for every four bytes that it is given, and in all. A step is one
/// instruction or 64 bytes of text. They bound time, memory at 64 bytes each, and how deep values can be nested.
const STEPS: u64 = 200_000;
const STEPS_A_MESSAGE: u64 = 256;
const BYTES_A_STEP: u64 = 4;
const MOST_STEPS: u64 = 3_000_000;
/// Stack of a thread that renders. Values are dropped, compared and written recursively, and with the most steps a template can nest
/// them some 400,000 deep. Only what is used of it takes memory.
const STACK: usize = 1 << 30;

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
    /// A disk or a network did not answer; another try may help.
    #[error(transparent)]
    Io(IoError),
    /// The template is not valid.
    #[error("the chat template is not valid: {0}; use the one that the checkpoint came with")]
    Syntax(String),
    /// The template refuses the conversation; the text is its own.
    #[error("the chat template refuses these messages: {0}")]
    Refused(String),
    /// The template failed.
    #[error("the chat template failed on these messages: {0}; check their roles and order")]
    Render(String),
    /// The template does not end.
    #[error(
        "the chat template took more than {steps} steps for these messages and was stopped; use the template that the checkpoint came with"
    )]
    TooManySteps {
        /// What was allowed.
        steps: u64,
    },
    /// A part of the conversation is not what it should be.
    #[error("{what} cannot be used: {reason}")]
    Json {
        /// Which part.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// No messages.
    #[error("there are no messages; send at least one")]
    NoMessages,
    /// Too many messages.
    #[error("there are {0} messages; send at most {MAX_MESSAGES}")]
    TooManyMessages(usize),
}

/// What a prompt is made of.
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'a> {
    /// At least one.
    pub messages: &'a [ChatMessage],
    /// JSON array of tools in OpenAI's form.
    pub tools_json: Option<&'a str>,
    /// JSON object of further variables that the template knows, such as `date_string`.
    pub variables_json: Option<&'a str>,
    /// Whether the prompt ends with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// What the template's `strftime_now` tells.
    pub now: DateTime,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    markers: Markers,
    token_names: Vec<(&'static str, Value)>,
    knows_tools: bool,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// The template of a model directory, see [`TemplateFiles::read`], whose control tokens are those of `tokenizer`.
    ///
    /// # Errors
    /// [`ChatTemplateError::Missing`], [`ChatTemplateError::Read`] or [`ChatTemplateError::Syntax`].
    pub fn from_dir(model_dir: &Path, tokenizer: &Tokenizer) -> Result<Self, ChatTemplateError> {
        Self::new(&TemplateFiles::read(model_dir)?, tokenizer)
    }

    /// Compile a template.
    ///
    /// # Errors
    /// [`ChatTemplateError::Syntax`].
    pub fn new(files: &TemplateFiles, tokenizer: &Tokenizer) -> Result<Self, ChatTemplateError> {
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| ChatTemplateError::Syntax(describe(&error)))?);
        python::install(&mut environment);
        let markers = Markers::new(tokenizer).map_err(ChatTemplateError::Syntax)?;
        let source = python::translate(&files.source).map_err(ChatTemplateError::Syntax)?;
        let source = markers.mark(&source);
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| ChatTemplateError::Syntax(describe(&error)))?;
        let marked = |(name, token): &(&'static str, String)| (*name, Value::from(markers.mark(token)));
        Ok(Self {
            environment,
            token_names: files.token_names.iter().map(marked).collect(),
            markers,
            knows_tools: files.source.contains("tools"),
        })
    }

    /// Whether it writes tools into the prompt.
    #[must_use]
    pub fn knows_tools(&self) -> bool {
        self.knows_tools
    }

    /// The prompt of a conversation.
    ///
    /// # Errors
    /// [`ChatTemplateError::NoMessages`], [`ChatTemplateError::TooManyMessages`], [`ChatTemplateError::Json`],
    /// [`ChatTemplateError::Refused`], [`ChatTemplateError::TooManySteps`] or [`ChatTemplateError::Render`].
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<Prompt, ChatTemplateError> {
        let steps = steps(conversation);
        let variables = self.variables(conversation)?;
        let failed = |error: Error| match error.detail().and_then(|detail| detail.strip_prefix(RAISED)) {
            Some(words) => ChatTemplateError::Refused(words.to_owned()),
            None if error.kind() == ErrorKind::OutOfFuel => ChatTemplateError::TooManySteps { steps },
            None => ChatTemplateError::Render(describe(&error)),
        };
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(steps));
        let render = move || environment.get_template(NAME)?.render(variables);
        let rendered = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("template".to_owned())
                .stack_size(STACK);
            let thread = thread
                .spawn_scoped(scope, render)
                .map_err(|error| ChatTemplateError::Render(format!("no thread can be started: {error}")))?;
            match thread.join() {
                Ok(rendered) => rendered.map_err(failed),
                Err(_) => Err(ChatTemplateError::Render("a fault of the server".to_owned())),
            }
        })?;
        Ok(self.markers.read(&rendered))
    }

    fn variables(&self, conversation: &Conversation<'_>) -> Result<Value, ChatTemplateError> {
        let messages = conversation.messages;
        match messages.len() {
            0 => return Err(ChatTemplateError::NoMessages),
            count if count > MAX_MESSAGES => return Err(ChatTemplateError::TooManyMessages(count)),
            _ => {}
        }
        let tools = match conversation.tools_json {
            None => Value::from(()),
            Some(json) => from_json("the list of tools", json)?,
        };
        let now = conversation.now;
        let strftime_now = Value::from_function(move |format: &str| {
            jiff::fmt::strtime::format(format, now)
                .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
        });
        let mut variables: Vec<(Value, Value)> = Vec::new();
        let mut set = |name: &str, value: Value| variables.push((Value::from(name), value));
        set("messages", messages.iter().map(ChatMessage::fields).collect());
        set("tools", tools);
        set("documents", Value::from(()));
        set("strftime_now", strftime_now);
        set("add_generation_prompt", conversation.add_generation_prompt.into());
        for (name, token) in &self.token_names {
            set(name, token.clone());
        }
        if let Some(json) = conversation.variables_json {
            let more = from_json("the template's variables", json)?;
            for name in more.try_iter().into_iter().flatten() {
                let value = more.get_item(&name).unwrap_or_default();
                variables.push((name, value));
            }
        }
        Ok(Value::from_pairs(variables))
    }
}

/// What a template may spend on a conversation.
fn steps(conversation: &Conversation<'_>) -> u64 {
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let texts = [conversation.tools_json, conversation.variables_json];
    let messages: usize = conversation.messages.iter().map(ChatMessage::bytes).sum();
    let bytes = messages + texts.into_iter().flatten().map(str::len).sum::<usize>();
    let messages = STEPS_A_MESSAGE.saturating_mul(count(conversation.messages.len()));
    STEPS
        .saturating_add(messages)
        .saturating_add(count(bytes) / BYTES_A_STEP)
        .min(MOST_STEPS)
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

#[cfg(test)]
mod tests;
