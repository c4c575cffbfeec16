//! Requests that are not finished: their clients, what sampling needs of their history, and why they end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use llamero_settings::losses::Losses;

use super::choice::Chosen;
use crate::pooling::Pooled;
use crate::runtime::adapters::AdapterInfo;
use crate::runtime::constraint::{Constraint, ConstraintError};
use crate::runtime::load::LoadCell;
use crate::runtime::queue::QueueGauge;
use crate::runtime::request::{
    Event, EventSink, FailureKind, FinishReason, GenerationRequest, Sharing, TokenScore,
};
use crate::sampling::{SamplingParams, TokenCounts};
use crate::schedule::{Admission, PrefixHash, Refusal, Scheduler, Sequence, SequenceId};

/// What changes the logits of one position before it is sampled.
#[derive(Default)]
pub(super) struct Adjustment {
    /// What is added, by token.
    pub(super) biases: Vec<(u32, f32)>,
    /// A repetition penalty and its tokens.
    pub(super) repeated: Option<(f32, Vec<u32>)>,
    /// Which tokens may come; none: any.
    pub(super) mask: Option<Vec<u8>>,
}

struct Request {
    sink: EventSink,
    sampling: SamplingParams,
    stop_tokens: Vec<u32>,
    counts: TokenCounts,
    constraint: Option<Constrained>,
    /// The number of its adapter.
    adapter: Option<u32>,
    /// Set when an embedding is wanted, and no token.
    pooled: Option<Pooled>,
    prompt_tokens: u32,
    /// Tokens that count in the queue, until it is admitted first.
    queued: Option<u64>,
    /// Submission, then each token.
    last_at: Instant,
    first_token_sent: bool,
    /// Members that were lost while they worked on it.
    losses: Losses,
    /// Whether one more loss would be one too many.
    suspected: bool,
}

/// What a lost member means for a request that it worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Charge {
    /// Bad luck.
    Bearable,
    /// The next one is too many.
    Suspected,
    /// It is not tried again.
    TooMany,
}

/// A constraint and what it has not been told.
struct Constrained {
    constraint: Box<dyn Constraint>,
    /// The tokens before the next one that it has not accepted. They are when the mask is needed, which is while the next step
    /// computes.
    pending: Vec<u32>,
    /// Why no mask could be made: the token sampled without one is of no use.
    broken: Option<ConstraintError>,
}

impl Constrained {
    /// The mask of the next position and those behind its drafts, as far as they are allowed; at least one.
    fn masks(&mut self, drafts: &[u32]) -> Vec<Option<Vec<u8>>> {
        let mut masks = vec![self.mask()];
        let ahead = if drafts.is_empty() || self.broken.is_some() {
            None
        } else {
            self.constraint.fork()
        };
        let Some(mut ahead) = ahead else { return masks };
        for draft in drafts {
            // A draft that is not allowed is wrong, so what would come behind it never does, and what a form's automaton would make of it
            // is not to count against the form's bounds. Where a mask cannot be made, it is tried again when the tokens before are
            // certain, and tells the client then.
            if !masks.last().is_some_and(|mask| allows(mask.as_deref(), *draft)) {
                break;
            }
            let behind = ahead.accept(*draft).and_then(|()| ahead.mask());
            let Ok(mask) = behind else { break };
            masks.push(mask);
        }
        masks
    }

    fn mask(&mut self) -> Option<Vec<u8>> {
        let mut pending = std::mem::take(&mut self.pending).into_iter();
        let accepted = pending.try_for_each(|token| self.constraint.accept(token));
        match accepted.and_then(|()| self.constraint.mask()) {
            Ok(mask) => mask,
            Err(why) => {
                self.broken = Some(why);
                None
            }
        }
    }
}

/// Whether a mask, of [`Constraint::mask`], has a token.
fn allows(mask: Option<&[u8]>, token: u32) -> bool {
    mask.is_none_or(|mask| {
        let byte = mask.get(token as usize / 8);
        byte.is_some_and(|byte| byte >> (token % 8) & 1 == 1)
    })
}

/// What a client is to hear after a step.
pub(in crate::runtime) struct Publication {
    sequence: SequenceId,
    /// The token, unless it is a stop token; or scores of the prompt's tokens.
    token: Option<Event>,
    end: Option<Event>,
}

impl Publication {
    /// The model's output is unusable for this request.
    pub(super) fn broken(sequence: SequenceId, message: String) -> Self {
        Self::failed(sequence, FailureKind::Internal, message)
    }

    fn failed(sequence: SequenceId, kind: FailureKind, message: String) -> Self {
        Self {
            sequence,
            token: None,
            end: Some(Event::Failed { kind, message }),
        }
    }

    pub(super) fn sequence(&self) -> SequenceId {
        self.sequence
    }

    pub(super) fn ends(&self) -> bool {
        self.end.is_some()
    }
}

pub(in crate::runtime) struct Requests {
    open: BTreeMap<SequenceId, Request>,
    load: Arc<LoadCell>,
    queue: Arc<QueueGauge>,
    /// What the group computes; none when requests share no KV blocks.
    prefix: Option<PrefixHash>,
    /// Whether the group has all its ranks.
    whole: bool,
}

/// A request begins to be computed: what its client is to hear.
pub(super) type Started = (SequenceId, Event);

impl Requests {
    pub(super) fn new(load: Arc<LoadCell>, queue: Arc<QueueGauge>, prefix: Option<PrefixHash>) -> Self {
        Self {
            open: BTreeMap::new(),
            load,
            queue,
            prefix,
            whole: true,
        }
    }

    /// Whether the group has all its ranks from now on.
    pub(super) fn set_whole(&mut self, whole: bool) {
        self.whole = whole;
    }

    /// Queue a request, which counts in the queue's gauge already, or tell its client why not.
    pub(super) fn submit(
        &mut self,
        scheduler: &mut Scheduler,
        id: SequenceId,
        (request, constraint): (GenerationRequest, Option<Box<dyn Constraint>>),
        adapter: Option<&AdapterInfo>,
        (mut sink, at): (EventSink, Instant),
    ) {
        let queued = request.queued_tokens();
        let resumed = !request.resume.is_empty();
        let GenerationRequest {
            prompt,
            resume,
            max_tokens,
            open_ended,
            stop_tokens,
            sampling,
            sharing,
            prompt_logprobs,
            priority,
            pooling,
            adapter: _,
        } = request;
        let prompt_tokens = length(&prompt);
        if let Some(end) = ended_before(&resume, max_tokens, &stop_tokens) {
            self.queue.leave(queued);
            sink(Event::Accepted { prompt_tokens });
            sink(end);
            return;
        }
        let counts = TokenCounts::of(&resume).behind(&prompt, &sampling);
        let longest = prompt_tokens.saturating_add(max_tokens);
        let sequence = Sequence::new(id, [prompt, resume].concat(), longest, sampling.key())
            .with_open_end(open_ended)
            .with_root(self.root(&sharing, adapter))
            .with_adapter(adapter.map(|adapter| adapter.number))
            .with_priority(priority)
            .with_scores(prompt_logprobs, prompt_tokens)
            .with_pooling(pooling);
        if let Err(refusal) = scheduler.add(sequence) {
            self.queue.leave(queued);
            let fits_elsewhere = resumed || !self.whole;
            let kind = kind_of_refusal(&refusal, fits_elsewhere, scheduler.limits().max_context);
            let message = refusal.to_string();
            sink(Event::Failed { kind, message });
            return;
        }
        // Whoever hears that the request is accepted finds it counted.
        self.load.update(|figures| {
            figures.prompt_tokens += u64::from(prompt_tokens);
            figures.queue(scheduler);
        });
        if !sink(Event::Accepted { prompt_tokens }) {
            self.queue.leave(queued);
            scheduler.remove(id);
            return;
        }
        let request = Request {
            sink,
            sampling,
            stop_tokens,
            counts,
            constraint: constraint.map(|constraint| Constrained {
                constraint,
                pending: Vec::new(),
                broken: None,
            }),
            adapter: adapter.map(|adapter| adapter.number),
            pooled: pooling.map(Pooled::new),
            prompt_tokens,
            queued: Some(queued),
            last_at: at,
            first_token_sent: false,
            losses: Losses::default(),
            suspected: false,
        };
        self.open.insert(id, request);
    }

    /// Tell the client of a request, which counts in the queue's gauge already, that its adapter is not there.
    pub(super) fn refuse_adapter(&self, request: &GenerationRequest, mut sink: EventSink) {
        self.queue.leave(request.queued_tokens());
        let name = request.adapter.as_ref().map_or("", |choice| &choice.name);
        sink(Event::Failed {
            kind: FailureKind::NoAdapter,
            message: format!("the adapter {name} was unloaded, or exchanged for another one"),
        });
    }

    /// Where the blocks of a request stand in the prefix cache, if it shares them.
    fn root(&self, sharing: &Sharing, adapter: Option<&AdapterInfo>) -> Option<PrefixHash> {
        match (&self.prefix, sharing) {
            (Some(group), Sharing::With(salt)) => {
                Some(group.of_requests(salt, adapter.map(|adapter| adapter.identity)))
            }
            _ => None,
        }
    }

    /// These sequences run from here on. Returns what [`Self::tell`] tells clients whose requests begin for the first time.
    pub(super) fn admitted(&mut self, admissions: &[Admission]) -> Vec<Started> {
        let mut started = Vec::new();
        for Admission {
            sequence,
            looked_up,
            cached,
        } in admissions
        {
            let Some(request) = self.open.get_mut(sequence) else {
                continue;
            };
            let Some(queued) = request.queued.take() else {
                continue;
            };
            self.queue.leave(queued);
            self.load.update(|figures| {
                figures.prefix_lookup_tokens += u64::from(*looked_up);
                figures.prefix_hit_tokens += u64::from(*cached);
            });
            let cached_tokens = (*cached).min(request.prompt_tokens);
            started.push((*sequence, Event::Started { cached_tokens }));
        }
        started
    }

    /// Tell clients that their requests begin. Who does not listen any more is found by the first token.
    pub(super) fn tell(&mut self, started: Vec<Started>) {
        for (id, event) in started {
            if let Some(request) = self.open.get_mut(&id) {
                (request.sink)(event);
            }
        }
    }

    /// A request's next token; `length` is that of its history with it. What its client is to hear.
    pub(super) fn sampled(
        &mut self,
        id: SequenceId,
        chosen: Chosen,
        length: u32,
        full: bool,
    ) -> Option<Publication> {
        let request = self.open.get_mut(&id)?;
        let Chosen { sampled, top } = chosen;
        request.counts.record(sampled.token);
        if let Some(constrained) = &mut request.constraint {
            constrained.pending.push(sampled.token);
            if let Some(why) = constrained.broken.take() {
                let kind = match why {
                    ConstraintError::Unmet(restriction, _) => FailureKind::Unmet(restriction),
                    ConstraintError::Broken(_) => FailureKind::Internal,
                };
                return Some(Publication::failed(id, kind, why.to_string()));
            }
        }
        let stopped = request.stop_tokens.contains(&sampled.token);
        let reason = if stopped {
            Some(FinishReason::StopToken(sampled.token))
        } else {
            full.then_some(FinishReason::Length)
        };
        let output_tokens = length.saturating_sub(request.prompt_tokens);
        Some(Publication {
            sequence: id,
            token: (!stopped).then_some(Event::Token {
                id: sampled.token,
                logprob: sampled.logprob,
                top,
            }),
            end: reason.map(|reason| Event::Finished {
                reason,
                output_tokens,
            }),
        })
    }

    /// The next tokens of a request's prompt were scored. What its client is to hear.
    pub(super) fn scored(&self, id: SequenceId, tokens: Vec<TokenScore>) -> Option<Publication> {
        self.open.contains_key(&id).then_some(Publication {
            sequence: id,
            token: Some(Event::Scored(tokens)),
            end: None,
        })
    }

    /// Hidden states of the row of a request's positions `start .. end` have come. What its client is to hear.
    pub(super) fn pooled(
        &mut self,
        id: SequenceId,
        (start, end): (u32, u32),
        values: Vec<f64>,
    ) -> Option<Publication> {
        let request = self.open.get_mut(&id)?;
        let pooled = request.pooled.as_mut()?;
        if let Err(error) = pooled.take(start, end, values) {
            return Some(Publication::broken(id, error.to_string()));
        }
        if end < request.prompt_tokens {
            return None;
        }
        Some(match pooled.vector() {
            Ok(vector) => Publication {
                sequence: id,
                token: Some(Event::Embedding(vector)),
                end: Some(Event::Finished {
                    reason: FinishReason::Length,
                    output_tokens: 0,
                }),
            },
            Err(error) => Publication::broken(id, error.to_string()),
        })
    }

    /// Tell the clients. Returns the requests whose clients do not listen any more.
    pub(super) fn publish(&mut self, news: Vec<Publication>, now: Instant) -> Vec<SequenceId> {
        let mut gone = Vec::new();
        for Publication { sequence, token, end } in news {
            let Some(request) = self.open.get_mut(&sequence) else {
                continue;
            };
            let broken = matches!(end, Some(Event::Failed { .. }));
            let is_token = !matches!(token, Some(Event::Scored(_) | Event::Embedding(_)));
            if !broken && is_token {
                request.note_latency(&self.load, now);
            }
            // Who left at one token of a step hears no more of it.
            let has_left = gone.last() == Some(&sequence);
            let heard = has_left || token.is_none_or(|token| (request.sink)(token));
            let end = end.map(|end| match end {
                // The answer was whole, but for who left before.
                Event::Finished { output_tokens, .. } if has_left => Event::Finished {
                    reason: FinishReason::Cancelled,
                    output_tokens,
                },
                end => end,
            });
            match end {
                Some(end) => self.end(sequence, end),
                None if !heard => gone.push(sequence),
                None => {}
            }
        }
        gone
    }

    /// A request was cancelled with this history.
    pub(super) fn cancelled(&mut self, id: SequenceId, history: Option<Vec<u32>>) {
        let prompt_tokens = self.open.get(&id).map_or(0, |request| request.prompt_tokens);
        let output_tokens = history.map_or(0, |history| length(&history).saturating_sub(prompt_tokens));
        let reason = FinishReason::Cancelled;
        self.end(
            id,
            Event::Finished {
                reason,
                output_tokens,
            },
        );
    }

    /// A member was lost while it worked on a request whose history has `length` tokens.
    pub(super) fn charge_loss(&mut self, id: SequenceId, length: u32) -> Charge {
        let Some(request) = self.open.get_mut(&id) else {
            return Charge::Bearable;
        };
        let tokens = request.output_tokens(length);
        if request.losses.add(tokens) {
            return Charge::TooMany;
        }
        request.suspected = request.losses.is_last_chance(tokens);
        if request.suspected {
            Charge::Suspected
        } else {
            Charge::Bearable
        }
    }

    /// Whether one more loss would be one too many for a request.
    pub(super) fn is_suspected(&self, id: SequenceId) -> bool {
        self.open.get(&id).is_some_and(|request| request.suspected)
    }

    /// Whether a request has got on far enough, with `length` tokens in its history, to be suspected no more. Told once.
    pub(super) fn is_cleared(&mut self, id: SequenceId, length: u32) -> bool {
        let Some(request) = self.open.get_mut(&id).filter(|request| request.suspected) else {
            return false;
        };
        request.suspected = request.losses.is_last_chance(request.output_tokens(length));
        !request.suspected
    }

    /// A request cannot go on.
    pub(super) fn failed(&mut self, id: SequenceId, kind: FailureKind, message: String) {
        self.end(id, Event::Failed { kind, message });
    }

    fn end(&mut self, id: SequenceId, event: Event) {
        if let Some(mut request) = self.open.remove(&id) {
            if let Some(queued) = request.queued {
                self.queue.leave(queued);
            }
            (request.sink)(event);
        }
    }

    /// Requests that use an adapter.
    pub(super) fn of_adapter(&self, adapter: u32) -> Vec<SequenceId> {
        let all = self.open.iter();
        all.filter(|(_, request)| request.adapter == Some(adapter))
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn contains(&self, id: SequenceId) -> bool {
        self.open.contains_key(&id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn ids(&self) -> Vec<SequenceId> {
        self.open.keys().copied().collect()
    }

    /// How a request samples.
    pub(super) fn sampling(&self, id: SequenceId) -> Option<&SamplingParams> {
        self.open.get(&id).map(|request| &request.sampling)
    }

    /// Whether something is added to a request's logits, or some tokens are not allowed.
    pub(super) fn adjusts(&self, id: SequenceId) -> bool {
        let request = self.open.get(&id);
        request.is_some_and(|request| request.sampling.has_biases() || request.constraint.is_some())
    }

    /// What changes the logits of a request's next token, and of the tokens behind its drafts if they are right: as far as that is
    /// known.
    pub(super) fn adjustments(&mut self, id: SequenceId, drafts: &[u32]) -> Vec<Adjustment> {
        let Some(request) = self.open.get_mut(&id) else {
            return Vec::new();
        };
        let masks = match &mut request.constraint {
            Some(constraint) => constraint.masks(drafts),
            None => vec![None; drafts.len() + 1],
        };
        // With those drafts that come before.
        let mut counts = None;
        let mut all = Vec::with_capacity(masks.len());
        for (offset, mask) in masks.into_iter().enumerate() {
            if let Some(draft) = offset.checked_sub(1).and_then(|before| drafts.get(before)) {
                counts
                    .get_or_insert_with(|| request.counts.clone())
                    .record(*draft);
            }
            let counts = counts.as_ref().unwrap_or(&request.counts);
            let repeated = counts.repeated(&request.sampling);
            all.push(Adjustment {
                biases: counts.biases(&request.sampling),
                repeated: (!repeated.is_empty()).then_some((request.sampling.repetition_penalty, repeated)),
                mask,
            });
        }
        all
    }

    /// How many of these tokens, which follow each other, a request takes: it ends with a stop token.
    pub(super) fn taken(&self, id: SequenceId, tokens: &[u32]) -> usize {
        let stops = self.open.get(&id).map_or(&[][..], |request| &request.stop_tokens);
        let stopped = tokens.iter().position(|token| stops.contains(token));
        stopped.map_or(tokens.len(), |at| at + 1)
    }
}

impl Request {
    /// Tokens of the answer when the history has `length`.
    fn output_tokens(&self, length: u32) -> usize {
        length.saturating_sub(self.prompt_tokens) as usize
    }

    fn note_latency(&mut self, load: &LoadCell, now: Instant) {
        let waited = now.saturating_duration_since(self.last_at);
        let first = !std::mem::replace(&mut self.first_token_sent, true);
        self.last_at = now;
        load.update(|figures| {
            figures.output_tokens += 1;
            let histogram = if first {
                &mut figures.first_token
            } else {
                &mut figures.inter_token
            };
            histogram.record(waited);
        });
    }
}

/// An interrupted answer may have been complete already.
fn ended_before(resume: &[u32], max_tokens: u32, stop_tokens: &[u32]) -> Option<Event> {
    let output_tokens = length(resume);
    let stopped = resume.last().copied().filter(|last| stop_tokens.contains(last));
    let full = output_tokens > 0 && output_tokens >= max_tokens;
    let reason = match stopped {
        Some(token) => FinishReason::StopToken(token),
        None if full => FinishReason::Length,
        None => return None,
    };
    Some(Event::Finished {
        reason,
        output_tokens,
    })
}

fn length(tokens: &[u32]) -> u32 {
    u32::try_from(tokens.len()).unwrap_or(u32::MAX)
}

/// What a client is told who is not taken. An answer that a group of the same settings has begun fits elsewhere, where the
/// context is not what is too short; so does what is too long only while ranks are missing here.
fn kind_of_refusal(refusal: &Refusal, fits_elsewhere: bool, max_context: u32) -> FailureKind {
    match refusal {
        Refusal::TooLong { wanted, .. } if fits_elsewhere && *wanted <= max_context => {
            FailureKind::Unavailable
        }
        _ => FailureKind::from(refusal),
    }
}
