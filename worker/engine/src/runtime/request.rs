//! A request and the events of its answer, in token ids.

use llamero_checkpoint::ContentIdentity;

use crate::pooling::Pooling;
use crate::runtime::constraint::Restriction;
use crate::sampling::SamplingParams;
use crate::schedule::Refusal;

/// What a client wants, tokenised and validated.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationRequest {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// Output that the client has already: generation goes on behind it. Counts toward `max_tokens`.
    pub resume: Vec<u32>,
    /// Most output tokens, resumed ones included.
    pub max_tokens: u32,
    /// Whether the client named no such number, so that it is what the context leaves: where the group comes to hold less, the answer
    /// ends there.
    pub open_ended: bool,
    /// Tokens that end the answer (the checkpoint's end-of-turn tokens unless they are to be ignored).
    pub stop_tokens: Vec<u32>,
    /// How to sample.
    pub sampling: SamplingParams,
    /// With whom it shares what is computed for the beginnings of prompts. No token depends on it.
    pub sharing: Sharing,
    /// Whether log-probabilities of the prompt's tokens from the second on are wanted, and beside each those of so many of the
    /// likeliest tokens.
    pub prompt_logprobs: Option<u16>,
    /// Requests with a lower one begin first; see [`crate::schedule::Scheduler`] for what bounds that.
    pub priority: i32,
    /// Set when an embedding is wanted, and no token: [`Event::Embedding`] comes instead.
    pub pooling: Option<Pooling>,
    /// The adapter; none for the model as it is.
    pub adapter: Option<AdapterChoice>,
}

/// Which adapter a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterChoice {
    /// Its name.
    pub name: String,
    /// What it was when the client was told: another one that has come under the name since then is not taken for it.
    pub identity: ContentIdentity,
}

/// A token of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// Vocabulary id.
    pub id: u32,
    /// Its log-probability behind the tokens before it, at temperature 1 and without any rule.
    pub logprob: f32,
    /// The likeliest tokens and their log-probabilities, best first, as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// With which requests one shares the KV blocks of a common beginning, where the group does that at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sharing {
    /// With those that have the same salt, which may be empty. Others cannot tell by the time to the first token what was
    /// asked with it.
    With(String),
    /// With none.
    Nobody,
}

impl Default for Sharing {
    fn default() -> Self {
        Self::With(String::new())
    }
}

impl GenerationRequest {
    /// The embedding of a text.
    #[must_use]
    pub fn embedding(prompt: Vec<u32>, pooling: Pooling, sharing: Sharing, priority: i32) -> Self {
        Self {
            prompt,
            resume: Vec::new(),
            // The scheduler wants room for one: a row that pools stands where one that samples would.
            max_tokens: 1,
            open_ended: false,
            stop_tokens: Vec::new(),
            sampling: SamplingParams::greedy(),
            sharing,
            prompt_logprobs: None,
            priority,
            pooling: Some(pooling),
            adapter: None,
        }
    }

    /// What it counts in the queue: all tokens that are to be computed before the first new one.
    pub(super) fn queued_tokens(&self) -> u64 {
        self.prompt.len() as u64 + self.resume.len() as u64
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// This stop token was sampled; it is not sent as [`Event::Token`].
    StopToken(u32),
    /// `max_tokens` were generated.
    Length,
    /// Cancelled.
    Cancelled,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The request can never be served anywhere.
    Invalid,
    /// No token can meet this restriction any more, or it has grown too complex.
    Unmet(Restriction),
    /// Prompt and answer are longer than this group holds.
    TooLong,
    /// The adapter that it is for is not there, or no more.
    NoAdapter,
    /// Something broke here.
    Internal,
    /// This leader ends; another one can go on with the request.
    Unavailable,
}

impl From<&Refusal> for FailureKind {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::TooLong { .. } => Self::TooLong,
            Refusal::Empty | Refusal::NothingToGenerate => Self::Invalid,
        }
    }
}

/// What happens to a request, in order. The last event is [`Event::Finished`] or [`Event::Failed`].
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It is in the queue.
    Accepted {
        /// Tokens of the prompt.
        prompt_tokens: u32,
    },
    /// It begins to be computed. Comes once, before the first token, and not where nothing is computed.
    Started {
        /// Tokens of the prompt, from the first on, whose keys and values were in the KV cache already.
        cached_tokens: u32,
    },
    /// More tokens of the prompt in order, the first of them its second one. All come before the first output token.
    Scored(Vec<TokenScore>),
    /// The embedding of the prompt, of length 1.
    Embedding(Vec<f32>),
    /// One more output token.
    Token {
        /// Vocabulary id.
        id: u32,
        /// Its log-probability, when asked for.
        logprob: Option<f32>,
        /// The likeliest tokens and their log-probabilities, best first, as many as were asked for.
        top: Vec<(u32, f32)>,
    },
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Output tokens in all: resumed ones and a stop token included.
        output_tokens: u32,
    },
    /// The end, without a usable answer.
    Failed {
        /// Whose fault.
        kind: FailureKind,
        /// A sentence for the client.
        message: String,
    },
}

/// Takes the events of one request. Called on the leader's thread, so it must not wait; false when nobody listens any
/// more, which cancels the request.
pub type EventSink = Box<dyn FnMut(Event) -> bool + Send>;
