//! What rank 0 knows of the model it answers for.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::time::Duration;

use llamero_checkpoint::{Checkpoint, GenerationConfig};
use llamero_engine::runtime;
use llamero_engine::structured::{Form, FormError, Grammars, TokenConstraint};
use llamero_engine::text::tool_calls::{self, ToolTexts};
use llamero_engine::text::{
    ChatTemplate, ChatTemplateError, Conversation, GenerationRequest, RequestDraft, RequestLimits, Tokenizer,
};
use serde_json::Value;
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
    /// Ranks of a tensor-parallel group.
    pub tensor: u32,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Sequences at once.
    pub max_sequences: u32,
    /// Tokens in one step.
    pub max_batched_tokens: u32,
    /// A group that completes no step for this long is not ready.
    pub stall_timeout: Duration,
    /// Names this server.
    pub instance_id: String,
    /// What the weights are. An answer is only resumed on the weights that began it.
    pub content_identity: String,
    /// Whether names of control tokens in messages are those tokens.
    parse_special_tokens: bool,
    /// Missing in base models, which can complete text only.
    chat_template: Result<ChatTemplate, String>,
    /// Compiles forms of answers; made when the first is asked for.
    grammars: OnceLock<Result<Grammars, FormError>>,
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
            block_size: settings.block_size,
            max_sequences: settings.max_sequences,
            max_batched_tokens: settings.max_batched_tokens,
            stall_timeout: settings.stall_timeout,
            instance_id: config.instance_id.clone(),
            content_identity: settings.content.clone(),
            parse_special_tokens: config.engine.parse_special_tokens_in_messages,
            chat_template,
            grammars: OnceLock::new(),
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

    /// Accept the weights of this model, or none named: an answer goes on only on the weights that began it.
    ///
    /// # Errors
    /// FAILED_PRECONDITION.
    pub fn check_identity(&self, asked: &str) -> Result<(), Status> {
        if asked.is_empty() || asked == self.content_identity {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "the answer was begun on the weights {asked:?}, but this server has {:?}: it would not go on as it began; \
             send the request to a replica with those weights, or start again without resume_token_ids",
            self.content_identity
        )))
    }

    /// Tokens of a plain text. Names of special tokens in it become those tokens, since whoever sends a plain text writes the whole
    /// prompt, with the turns of a conversation if there are any.
    ///
    /// # Errors
    /// INVALID_ARGUMENT.
    pub fn tokens_of_text(&self, text: &str) -> Result<Vec<u32>, Status> {
        self.tokenizer.encode(text, true).map_err(invalid)
    }

    /// Tokens of a conversation.
    ///
    /// # Errors
    /// FAILED_PRECONDITION when the model has no chat template, INVALID_ARGUMENT when the template refuses, OUT_OF_RANGE when the
    /// prompt must be longer than the context.
    pub fn tokens_of_chat(&self, messages: Vec<Value>, tools_json: &str) -> Result<Vec<u32>, Status> {
        let template = self
            .chat_template
            .as_ref()
            .map_err(|why| Status::failed_precondition(why.clone()))?;
        let tools_json = (!tools_json.is_empty()).then_some(tools_json);
        let texts = if template.knows_tools() {
            ToolTexts::Template
        } else {
            ToolTexts::Messages
        };
        let messages = &tool_calls::conversation(messages, tools_json, texts).map_err(invalid)?;
        let now = jiff::Timestamp::now()
            .to_zoned(jiff::tz::TimeZone::UTC)
            .datetime();
        let conversation = Conversation {
            messages,
            tools_json,
            variables_json: None,
            add_generation_prompt: true,
            now,
        };
        let prompt = template.render(&conversation).map_err(invalid)?;
        self.check_length(prompt.text())?;
        // The template has written what stands around a text already.
        let tokens = match self.parse_special_tokens {
            true => self.tokenizer.encode(prompt.text(), false),
            false => self.tokenizer.encode_prompt(&prompt),
        };
        tokens.map_err(invalid)
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
    pub fn check_length(&self, text: &str) -> Result<(), Status> {
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

    /// Check a request against the model.
    ///
    /// # Errors
    /// OUT_OF_RANGE when prompt and answer are longer than the context, else INVALID_ARGUMENT; with a sentence for the user.
    pub fn validate(&self, draft: RequestDraft) -> Result<GenerationRequest, Status> {
        // Randomly keyed hashing is the standard library's source of randomness.
        let random_seed = RandomState::new().hash_one(0);
        draft
            .validate(&self.defaults, self.limits, random_seed)
            .map_err(|error| match error.is_too_long() {
                true => Status::out_of_range(error.to_string()),
                false => blame(error.parameter(), &error.to_string()),
            })
    }
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
