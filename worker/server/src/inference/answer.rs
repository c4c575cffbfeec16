//! One answer: the engine's tokens become text and end where the request says.

use std::borrow::Cow;

use llamero_engine::runtime::{
    self, AdapterChoice, Constraint, ConstraintError, EngineHandle, Event, FailureKind, Restriction, Sharing,
    Submission, SubmitError, TokenScore,
};
use llamero_engine::structured::{AllowedTokens, TokenConstraint};
use llamero_engine::text::tool_calls::{PYTHON_TAG, ToolCallParser, ToolPiece};
use llamero_engine::text::{Finished, GenerationRequest, OutputText, Tokenizer};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::model::{Model, blame};
use crate::grpc::exhausted;

/// The parameter with the tokens that an answer may have.
const TOKEN_LIST: &str = "allowed_token_ids";

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// This stop token came.
    StopToken(u32),
    /// This stop string came; it is not part of the text.
    StopString(String),
    /// The only tool call that was allowed is complete.
    Called,
    /// As many tokens as were allowed.
    Length,
    /// It was aborted.
    Aborted,
}

/// A token and its log-probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprob {
    /// Vocabulary id.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// What is new since the chunk before.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chunk {
    /// Whole characters.
    pub text: String,
    /// What is new of tool calls; without text.
    pub calls: Vec<ToolPiece>,
    /// Of the prompt's tokens, when they were asked for: more of them, the second one first. All come before the first token.
    pub prompt_logprobs: Vec<Logprob>,
    /// One for each of the tokens, when they were asked for.
    pub logprobs: Vec<Logprob>,
    /// Tokens, a stop token not included.
    pub token_ids: Vec<u32>,
    /// Output tokens so far, resumed ones and a stop token included.
    pub output_tokens: u32,
    /// Tokens of the prompt that were in the KV cache already; 0 before the first token.
    pub cached_tokens: u32,
    /// Set on the last chunk.
    pub ending: Option<Ending>,
}

/// An answer under way. Dropping it cancels the request, which is how a client's disconnect ends it.
pub struct Answer {
    events: UnboundedReceiver<Event>,
    submission: Option<Submission>,
    text: OutputText,
    tools: Option<Tools>,
    prompt_tokens: u32,
    output_tokens: u32,
    cached_tokens: u32,
    abort: CancellationToken,
    /// The parameter with its form.
    form: Cow<'static, str>,
    /// Set when resumed tokens had ended the answer already.
    over: Option<Ending>,
}

/// What reads the calls of an answer.
#[derive(Debug)]
pub struct Tools {
    parser: ToolCallParser,
    /// Llama's `<|python_tag|>`.
    python_tag: Option<u32>,
}

impl Tools {
    /// For the answer of a model with this tokenizer.
    #[must_use]
    pub fn new(tokenizer: &Tokenizer, parser: ToolCallParser) -> Self {
        Self {
            parser,
            python_tag: tokenizer.token_id(PYTHON_TAG),
        }
    }

    /// What a token and its text add.
    fn push(&mut self, token: u32, text: &str) -> Vec<ToolPiece> {
        if self.python_tag == Some(token) {
            return self.parser.python_tag();
        }
        self.parser.push(text)
    }
}

/// What an answer is to be, beside its request.
#[derive(Debug, Default)]
pub struct Wishes {
    /// Restricts its tokens, by the parameter that is named beside; has accepted resumed ones.
    pub constraint: Option<(Box<TokenConstraint>, Cow<'static, str>)>,
    /// Reads its calls.
    pub tools: Option<Tools>,
    /// With whom it shares what is computed for its prompt.
    pub sharing: Sharing,
    /// The adapter.
    pub adapter: Option<AdapterChoice>,
}

/// An answer that is not in the queue yet.
pub struct Opening {
    request: GenerationRequest,
    constraint: Option<Box<dyn Constraint>>,
    form: Cow<'static, str>,
    tools: Option<Tools>,
    sharing: Sharing,
    adapter: Option<AdapterChoice>,
    text: OutputText,
    /// How resumed tokens ended the answer.
    over: Option<Ending>,
}

impl Opening {
    /// Go through the tokens that the client has already, which takes a while when they are many: not for a thread that
    /// streams.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when no token may come first.
    pub fn new(model: &Model, mut request: GenerationRequest, wishes: Wishes) -> Result<Self, Status> {
        let Wishes {
            constraint,
            mut tools,
            sharing,
            adapter,
        } = wishes;
        let mut text = OutputText::new(model.tokenizer.clone(), &request.stop, request.max_tokens)
            .with_special_tokens(request.show_special_tokens);
        let over = resume(&mut text, tools.as_mut(), &request.resume_tokens);
        let allowed = std::mem::take(&mut request.allowed_tokens);
        let (form, parameter) = constraint.unzip();
        let parameter = parameter.unwrap_or_default();
        let constraint: Option<Box<dyn Constraint>> = match (allowed.as_slice(), form) {
            ([], None) => None,
            ([], Some(form)) => Some(form),
            (allowed, form) => {
                let ends = &model.defaults.eos_token_ids;
                let mut both = AllowedTokens::new(allowed, ends, model.limits.vocab_size, form);
                if request.resume_tokens.is_empty() {
                    both.mask().map_err(|why| unmet(why, &parameter))?;
                }
                Some(Box::new(both))
            }
        };
        Ok(Self {
            request,
            constraint,
            form: parameter,
            tools,
            sharing,
            adapter,
            text,
            over,
        })
    }

    /// The request.
    #[must_use]
    pub fn request(&self) -> &GenerationRequest {
        &self.request
    }
}

impl Answer {
    /// Queue a request.
    ///
    /// # Errors
    /// UNAVAILABLE while draining.
    pub fn begin(engine: &EngineHandle, opening: Opening, abort: CancellationToken) -> Result<Self, Status> {
        let count = |tokens: &[u32]| u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let Opening {
            request,
            constraint,
            form,
            tools,
            sharing,
            adapter,
            text,
            over,
        } = opening;
        let (sender, events) = unbounded_channel();
        let (prompt_tokens, output_tokens) = (count(&request.prompt), count(&request.resume_tokens));
        let submission = match over {
            Some(_) => None,
            None => {
                let request = runtime::GenerationRequest {
                    prompt: request.prompt,
                    resume: request.resume_tokens,
                    max_tokens: request.max_tokens,
                    open_ended: request.open_ended,
                    stop_tokens: request.stop.tokens,
                    sampling: request.sampling,
                    sharing,
                    prompt_logprobs: request.prompt_logprobs,
                    priority: request.priority,
                    pooling: None,
                    adapter,
                };
                let sink = Box::new(move |event| sender.send(event).is_ok());
                let submitted = engine.submit_constrained(request, constraint, sink);
                Some(submitted.map_err(refused)?)
            }
        };
        Ok(Self {
            events,
            submission,
            text,
            tools,
            prompt_tokens,
            output_tokens,
            cached_tokens: 0,
            abort,
            form,
            over,
        })
    }

    /// Tokens of the prompt.
    #[must_use]
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// Wait until the request is in the queue. A request that cannot be served is refused here.
    ///
    /// # Errors
    /// As the engine says.
    pub async fn accepted(&mut self) -> Result<(), Status> {
        if self.over.is_some() {
            return Ok(());
        }
        match self.events.recv().await {
            Some(Event::Accepted { .. }) => Ok(()),
            Some(Event::Failed { kind, message }) => Err(self.failed(kind, message)),
            Some(_) | None => Err(stopped()),
        }
    }

    /// The next chunk: everything that came since the last one. The chunk with an ending is the last.
    ///
    /// # Errors
    /// When the engine cannot finish the answer.
    pub async fn next(&mut self) -> Result<Chunk, Status> {
        let mut chunk = Chunk {
            output_tokens: self.output_tokens,
            ..Chunk::default()
        };
        if let Some(ending) = self.over.take() {
            chunk.ending = Some(ending);
            return Ok(chunk);
        }
        let first = loop {
            let event = tokio::select! {
                event = self.events.recv() => event,
                () = self.abort.cancelled() => {
                    self.submission = None;
                    let rest = self.text.rest();
                    self.show(None, &rest, &mut chunk);
                    self.close(&mut chunk);
                    chunk.cached_tokens = self.cached_tokens;
                    chunk.ending = Some(Ending::Aborted);
                    return Ok(chunk);
                }
            };
            match event {
                // It makes no chunk of its own.
                Some(Event::Started { cached_tokens }) => self.cached_tokens = cached_tokens,
                event => break event,
            }
        };
        let mut event = first.ok_or_else(stopped)?;
        chunk.cached_tokens = self.cached_tokens;
        loop {
            self.take(event, &mut chunk)?;
            if chunk.ending.is_some() {
                self.submission = None;
                return Ok(chunk);
            }
            // Those of a step fill a message.
            if !chunk.prompt_logprobs.is_empty() {
                return Ok(chunk);
            }
            event = match self.events.try_recv() {
                Ok(event) => event,
                Err(_) => return Ok(chunk),
            };
        }
    }

    /// Text of the answer, behind a token if it has just come. Tells whether the answer ends with it.
    fn show(&mut self, token: Option<u32>, text: &str, chunk: &mut Chunk) -> Option<Ending> {
        let Some(tools) = &mut self.tools else {
            chunk.text.push_str(text);
            return None;
        };
        let pieces = match token {
            Some(token) => tools.push(token, text),
            None => tools.parser.push(text),
        };
        chunk.add(pieces);
        tools.parser.is_done().then_some(Ending::Called)
    }

    /// No more text comes.
    fn close(&mut self, chunk: &mut Chunk) {
        if let Some(tools) = &mut self.tools {
            chunk.add(tools.parser.finish());
        }
    }

    fn take(&mut self, event: Event, chunk: &mut Chunk) -> Result<(), Status> {
        match event {
            Event::Accepted { .. } => {}
            Event::Started { cached_tokens } => {
                self.cached_tokens = cached_tokens;
                chunk.cached_tokens = cached_tokens;
            }
            Event::Scored(tokens) => {
                let logprob = |TokenScore { id, logprob, top }| Logprob { id, logprob, top };
                chunk.prompt_logprobs.extend(tokens.into_iter().map(logprob));
            }
            Event::Token { id, logprob, top } => {
                self.output_tokens += 1;
                let piece = self.text.push(id);
                let called = self.show(Some(id), &piece.text, chunk);
                chunk.token_ids.push(id);
                chunk
                    .logprobs
                    .extend(logprob.map(|logprob| Logprob { id, logprob, top }));
                chunk.output_tokens = self.output_tokens;
                chunk.ending = called.or(piece.finished.map(|finished| ending(finished, id)));
                if chunk.ending.is_some() {
                    self.close(chunk);
                }
            }
            Event::Finished {
                reason,
                output_tokens,
            } => {
                let rest = self.text.rest();
                self.show(None, &rest, chunk);
                self.close(chunk);
                chunk.output_tokens = output_tokens;
                chunk.ending = Some(match reason {
                    runtime::FinishReason::StopToken(id) => Ending::StopToken(id),
                    runtime::FinishReason::Length => Ending::Length,
                    runtime::FinishReason::Cancelled => Ending::Aborted,
                });
            }
            Event::Embedding(_) => return Err(Status::internal("an embedding came that nobody asked for")),
            Event::Failed { kind, message } => return Err(self.failed(kind, message)),
        }
        Ok(())
    }

    /// What restricts its tokens is named where it is at fault.
    fn failed(&self, kind: FailureKind, message: String) -> Status {
        match kind {
            FailureKind::Unmet(restriction) => blame(named(restriction, &self.form), &message),
            kind => failed(kind, message),
        }
    }
}

impl Chunk {
    fn add(&mut self, pieces: Vec<ToolPiece>) {
        for piece in pieces {
            match piece {
                ToolPiece::Text(text) => self.text.push_str(&text),
                call => self.calls.push(call),
            }
        }
    }
}

/// Go through tokens whose text the client has. How the answer ended, if it did with them.
fn resume(text: &mut OutputText, mut tools: Option<&mut Tools>, tokens: &[u32]) -> Option<Ending> {
    for &token in tokens {
        let piece = text.push(token);
        if let Some(tools) = &mut tools {
            tools.push(token, &piece.text);
            if tools.parser.is_done() {
                return Some(Ending::Called);
            }
        }
        if let Some(finished) = piece.finished {
            return Some(ending(finished, token));
        }
    }
    None
}

/// The parameter at fault; `form` is the one with the form.
fn named(restriction: Restriction, form: &str) -> &str {
    match restriction {
        Restriction::Form => form,
        Restriction::TokenList => TOKEN_LIST,
    }
}

fn unmet(why: ConstraintError, form: &str) -> Status {
    match why {
        ConstraintError::Unmet(restriction, message) => blame(named(restriction, form), &message),
        ConstraintError::Broken(message) => Status::internal(message),
    }
}

fn ending(finished: Finished, token: u32) -> Ending {
    match finished {
        Finished::Stop(Some(string)) => Ending::StopString(string),
        Finished::Stop(None) => Ending::StopToken(token),
        Finished::Length => Ending::Length,
    }
}

pub(super) fn refused(error: SubmitError) -> Status {
    match error {
        SubmitError::Draining | SubmitError::Stopped => Status::unavailable(error.to_string()),
        SubmitError::Full { retry_after, .. } => exhausted(error.to_string(), retry_after),
    }
}

pub(super) fn failed(kind: FailureKind, message: String) -> Status {
    match kind {
        FailureKind::Invalid | FailureKind::Unmet(_) => Status::invalid_argument(message),
        FailureKind::TooLong => Status::out_of_range(message),
        FailureKind::NoAdapter => Status::not_found(message),
        FailureKind::Internal => Status::internal(message),
        FailureKind::Unavailable => Status::unavailable(message),
    }
}

fn stopped() -> Status {
    refused(SubmitError::Stopped)
}
