//! What rank 0 knows of the model it answers for.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::time::Duration;

use llamero_checkpoint::{Checkpoint, GenerationConfig};
use llamero_engine::runtime::EngineHandle;
use llamero_engine::structured::{Form, FormError, Grammars, TokenConstraint};
use llamero_engine::text::tool_calls::{self, ToolTexts};
use llamero_engine::text::{
    ChatTemplate, ChatTemplateError, Conversation, GenerationRequest, Prompt, RequestDraft, RequestError,
    RequestLimits, Tokenizer, TokenizerError,
};
use llamero_engine::{KvDtype, runtime};
use llamero_proto::v1::{ChatMessage, ChatPrompt};
use llamero_settings::limits::MAX_TEXT_BYTES;
use serde_json::{Value, json};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::config::RankConfig;

/// A model and the limits it is served with.
#[derive(Debug)]
pub struct Model {
    /// The name that clients ask for.
    pub name: String,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its defaults of sampling and its stop tokens.
    pub defaults: GenerationConfig,
    /// Vocabulary and context.
    pub limits: RequestLimits,
    /// Ranks that share every layer.
    pub tensor: u32,
    /// Stages, of which each has its own layers.
    pub pipeline: u32,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Sequences at once.
    pub max_sequences: u32,
    /// Tokens in one step.
    pub max_batched_tokens: u32,
    /// Adapters that may be loaded at once.
    pub max_adapters: u32,
    /// A group that completes no step for this long is not ready.
    pub stall_timeout: Duration,
    /// Names this server.
    pub instance_id: String,
    /// What the weights are, and the type of the KV cache where that is not the usual one. An answer is only resumed on what began
    /// it.
    pub content_identity: String,
    /// Whether names of control tokens in messages are those tokens.
    parse_special_tokens: bool,
    /// Missing in base models, which can complete text only.
    chat_template: Result<ChatTemplate, String>,
    /// Compiles forms of answers; made when the first is asked for.
    grammars: OnceLock<Result<Grammars, FormError>>,
    /// The engine that serves it.
    engine: OnceLock<EngineHandle>,
}

/// What an answer must be resumed on to go on as it began: other weights give other tokens, and so does another KV cache.
fn answer_identity(settings: &runtime::RankConfig) -> String {
    match settings.kv_dtype {
        KvDtype::Bf16 => settings.content.clone(),
        KvDtype::Fp8E4m3 => format!("{} kv-e4m3", settings.content),
    }
}

/// Accept the weights that an answer would be computed with, or none named: it goes on only on those that began it.
///
/// # Errors
/// FAILED_PRECONDITION.
pub fn check_identity(identity: &str, asked: &str) -> Result<(), Status> {
    if asked.is_empty() || asked == identity {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "the answer was begun on the weights {asked:?}, but this server has {identity:?}: it would not go on as it began; \
         send the request to a replica with those weights, or start again without resume_token_ids"
    )))
}

impl Model {
    /// Read tokenizer, template and defaults.
    ///
    /// # Errors
    /// When there is no usable tokenizer. A missing template is an error of chat
    /// requests only.
    pub fn open(
        config: &RankConfig,
        settings: &runtime::RankConfig,
        checkpoint: &Checkpoint,
    ) -> anyhow::Result<Self> {
        let dir = &config.engine.model_dir;
        let tokenizer = Tokenizer::from_dir(dir)?;
        let chat_template = match ChatTemplate::from_dir(dir, &tokenizer) {
            Ok(template) => Ok(template),
            Err(missing @ ChatTemplateError::Missing(_)) => Err(missing.to_string()),
            // Tried again, or chat would be missing as long as this process lives.
            Err(passing @ ChatTemplateError::Io(_)) => return Err(passing.into()),
            Err(broken) => {
                tracing::warn!("chat is not available: {broken}");
                Err(broken.to_string())
            }
        };
        Ok(Self {
            name: config.engine.served_name(),
            tokenizer,
            defaults: checkpoint.generation().clone(),
            limits: RequestLimits {
                vocab_size: checkpoint.config().vocab_size,
                max_context: settings.max_context,
            },
            tensor: config.engine.tensor,
            pipeline: config.engine.pipeline,
            block_size: settings.block_size,
            max_sequences: settings.max_sequences,
            max_batched_tokens: settings.max_batched_tokens,
            max_adapters: settings.max_adapters,
            stall_timeout: settings.stall_timeout,
            instance_id: config.instance_id.clone(),
            content_identity: answer_identity(settings),
            parse_special_tokens: config.engine.parse_special_tokens_in_messages,
            chat_template,
            grammars: OnceLock::new(),
            engine: OnceLock::new(),
        })
    }

    /// Accept the name of this model, or none.
    ///
    /// # Errors
    /// NOT_FOUND.
    pub fn check_name(&self, asked: &str) -> Result<(), Status> {
        if asked.is_empty() || asked == self.name {
            return Ok(());
        }
        Err(Status::not_found(format!(
            "the model {asked:?} is not served here; this server has {:?}",
            self.name
        )))
    }

    /// The last `count` tokens of what [`Self::tokens_of_text`] would give for a text of any length.
    ///
    /// # Errors
    /// INVALID_ARGUMENT.
    pub fn last_tokens_of_text(
        &self,
        count: usize,
        text: &str,
        add_special: bool,
    ) -> Result<Vec<u32>, Status> {
        let tokens = self.tokenizer.encode_last(count, text, add_special);
        tokens.map_err(|error| self.refusal(&error))
    }

    /// Tokens of a plain text, behind the begin-of-text token if `add_special`. Names of special tokens in it become those tokens, since
    /// whoever sends a plain text writes the whole prompt, with the turns of a conversation if there are any.
    ///
    /// # Errors
    /// OUT_OF_RANGE when there are more than fit the context; INVALID_ARGUMENT.
    pub fn tokens_of_text(&self, text: &str, add_special: bool) -> Result<Vec<u32>, Status> {
        self.check_length(text)?;
        let tokens = self.tokenizer.encode_at_most(self.most(), text, add_special);
        tokens.map_err(|error| self.refusal(&error))
    }

    /// The text of tokens, those that steer the model by name.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a token that the model does not have, and for more text than fits an answer.
    pub fn text_of(&self, tokens: &[u32]) -> Result<String, Status> {
        self.check_spelling(tokens)?;
        let bytes = tokens.iter().flat_map(|&token| self.tokenizer.bytes(token));
        let bytes: Vec<u8> = bytes.copied().collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether the text of tokens fits an answer.
    ///
    /// # Errors
    /// As [`Self::text_of`].
    pub fn check_spelling(&self, tokens: &[u32]) -> Result<(), Status> {
        let size = self.limits.vocab_size;
        if let Some(token) = tokens.iter().find(|&&token| token >= size) {
            let most = size.saturating_sub(1);
            let why = format!("there is no token {token}; the model has the tokens 0 to {most}");
            return Err(blame("tokens", &why));
        }
        let bytes: usize = tokens
            .iter()
            .map(|&token| self.tokenizer.bytes(token).len())
            .sum();
        if bytes > MAX_TEXT_BYTES {
            let many = tokens.len();
            let why = format!(
                "the text of these {many} tokens has {bytes} bytes, of which an answer has room for {MAX_TEXT_BYTES}; ask for it in parts"
            );
            return Err(blame("tokens", &why));
        }
        Ok(())
    }

    /// The prompt of a conversation at a time in seconds since 1970, or now.
    ///
    /// # Errors
    /// FAILED_PRECONDITION when the model has no chat template, INVALID_ARGUMENT when the template refuses, OUT_OF_RANGE when the
    /// prompt must be longer than the context.
    pub fn render(&self, chat: ChatPrompt, time: i64) -> Result<Prompt, Status> {
        let template = self
            .chat_template
            .as_ref()
            .map_err(|why| Status::failed_precondition(why.clone()))?;
        let final_message = chat
            .continue_final_message
            .then(|| last_content(&chat))
            .transpose()?;
        let tools_json = (!chat.tools_json.is_empty()).then_some(chat.tools_json.as_str());
        let texts = if template.knows_tools() {
            ToolTexts::Template
        } else {
            ToolTexts::Messages
        };
        let messages = chat.messages.into_iter().map(message).collect::<Result<_, _>>()?;
        let messages = &tool_calls::conversation(messages, tools_json, texts).map_err(invalid)?;
        let conversation = Conversation {
            messages,
            tools_json,
            variables_json: (!chat.variables_json.is_empty()).then_some(chat.variables_json.as_str()),
            add_generation_prompt: !(chat.no_generation_prompt || chat.continue_final_message),
            now: date(time)?,
        };
        let mut prompt = template.render(&conversation).map_err(invalid)?;
        if let Some(text) = final_message
            && !prompt.end_behind(&text)
        {
            let message = "'continue_final_message' needs a last message whose content the chat template writes as it is";
            return Err(blame("continue_final_message", message));
        }
        Ok(prompt)
    }

    /// Tokens of a rendered conversation.
    ///
    /// # Errors
    /// OUT_OF_RANGE when there are more than fit the context; INVALID_ARGUMENT.
    pub fn tokens_of_chat(&self, prompt: &Prompt) -> Result<Vec<u32>, Status> {
        self.check_length(prompt.text())?;
        // The template has written what stands around a text already.
        let tokens = match self.parse_special_tokens {
            true => self.tokenizer.encode_at_most(self.most(), prompt.text(), false),
            false => self.tokenizer.encode_prompt(self.most(), prompt),
        };
        tokens.map_err(|error| self.refusal(&error))
    }

    /// Tokens of a prompt beyond which nothing more has to be known about it.
    fn most(&self) -> usize {
        self.limits.max_context as usize
    }

    fn refusal(&self, error: &TokenizerError) -> Status {
        match error {
            TokenizerError::TooMany { .. } => Status::out_of_range(
                RequestError::PromptMuchTooLong {
                    context: self.limits.max_context,
                }
                .to_string(),
            ),
            error => blame("prompt", &error.to_string()),
        }
    }

    /// The constraint of a form behind the tokens that exist already. `parameter` is what the client calls it.
    ///
    /// # Errors
    /// INVALID_ARGUMENT naming the parameter; FAILED_PRECONDITION when this model's answers can have no form.
    pub fn constraint(
        &self,
        form: &Form,
        resumed: &[u32],
        parameter: &str,
    ) -> Result<Box<TokenConstraint>, Status> {
        let grammars = self.grammars.get_or_init(|| {
            let ends = &self.defaults.eos_token_ids;
            Grammars::new(&self.tokenizer, self.limits.vocab_size, ends)
        });
        let grammars = grammars
            .as_ref()
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        let constraint = grammars.compile(form, resumed);
        constraint
            .map(Box::new)
            .map_err(|error| blame(parameter, &format!("'{parameter}' is not supported: {error}")))
    }

    /// Refuse a text that must be too long, without the work of encoding it.
    ///
    /// # Errors
    /// OUT_OF_RANGE.
    fn check_length(&self, text: &str) -> Result<(), Status> {
        let (fewest, context) = (self.tokenizer.fewest_tokens(text), self.limits.max_context);
        if fewest < context as usize {
            return Ok(());
        }
        Err(Status::out_of_range(format!(
            "the prompt has {} bytes, which are at least {fewest} tokens, since the longest token has {} bytes; \
             prompt and answer together may have {context} tokens; shorten the prompt",
            text.len(),
            self.tokenizer.longest_token()
        )))
    }

    /// Served by `engine` from here on.
    pub fn served_by(&mut self, engine: EngineHandle) {
        self.engine = engine.into();
    }

    /// Tokens that prompt and answer may have together now: fewer than [`Self::limits`] say while the group does without some of
    /// its ranks.
    #[must_use]
    pub fn context_now(&self) -> u32 {
        let longest = self.engine.get().map(EngineHandle::longest);
        let formed = longest.filter(|longest| *longest > 0);
        formed.map_or(self.limits.max_context, |longest| {
            longest.min(self.limits.max_context)
        })
    }

    /// The limits by which a request is checked. An answer that may be as long as fits is one that fits now; what is too long only
    /// now is told so by the engine, since it can be had elsewhere or later.
    fn limits_of(&self, draft: &RequestDraft) -> RequestLimits {
        let now = self.context_now();
        match draft.max_tokens {
            None if draft.prompt.len() < now as usize => RequestLimits {
                max_context: now,
                ..self.limits
            },
            _ => self.limits,
        }
    }

    /// Check a request against the model.
    ///
    /// # Errors
    /// OUT_OF_RANGE when prompt and answer are longer than the context, else INVALID_ARGUMENT; with a sentence for the user.
    pub fn validate(&self, draft: RequestDraft) -> Result<GenerationRequest, Status> {
        // Randomly keyed hashing is the standard library's source of randomness.
        let random_seed = RandomState::new().hash_one(0);
        let limits = self.limits_of(&draft);
        draft
            .validate(&self.defaults, limits, random_seed)
            .map_err(|error| match error.is_too_long() {
                true => Status::out_of_range(error.to_string()),
                false => blame(error.parameter(), &error.to_string()),
            })
    }
}

/// A message as a template sees it.
fn message(message: ChatMessage) -> Result<Value, Status> {
    if message.json.is_empty() {
        return Ok(json!({"role": message.role, "content": message.content}));
    }
    serde_json::from_str(&message.json)
        .map_err(|error| blame("messages", &format!("a message is not JSON: {error}")))
}

/// The text that the model is to go on with.
fn last_content(chat: &ChatPrompt) -> Result<String, Status> {
    let last = chat.messages.last().cloned().unwrap_or_default();
    let last = message(last)?;
    let content = last.get("content").and_then(Value::as_str).unwrap_or_default();
    if content.trim().is_empty() {
        let message = "'continue_final_message' needs a last message with a text to go on with";
        return Err(blame("continue_final_message", message));
    }
    Ok(content.to_owned())
}

/// What a template's date is.
fn date(seconds: i64) -> Result<jiff::civil::DateTime, Status> {
    let time = match seconds {
        0 => Ok(jiff::Timestamp::now()),
        _ => jiff::Timestamp::from_second(seconds),
    };
    let time = time.map_err(|error| blame("template_time", &error.to_string()))?;
    Ok(time.to_zoned(jiff::tz::TimeZone::UTC).datetime())
}

/// INVALID_ARGUMENT; the metadata `parameter` names the one at fault.
pub fn blame(parameter: &str, message: &str) -> Status {
    let mut metadata = MetadataMap::new();
    if let Ok(parameter) = MetadataValue::try_from(parameter) {
        metadata.insert("parameter", parameter);
    }
    Status::with_metadata(Code::InvalidArgument, message, metadata)
}

fn invalid(error: impl std::error::Error) -> Status {
    Status::invalid_argument(error.to_string())
}
