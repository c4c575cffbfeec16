//! Requests that are not finished: their clients, and what sampling needs of their history.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::load::LoadCell;
use super::request::{Event, EventSink, FailureKind, FinishReason, GenerationRequest};
use crate::sampling::{Sampled, SamplingParams, TokenCounts};
use crate::schedule::{Scheduler, Sequence, SequenceId};

struct Entry {
    sink: EventSink,
    sampling: SamplingParams,
    stop_tokens: Vec<u32>,
    counts: TokenCounts,
    prompt_tokens: u32,
    /// Submission, then each token.
    last_at: Instant,
    first_token_sent: bool,
}

pub(super) struct Book {
    entries: BTreeMap<SequenceId, Entry>,
    load: Arc<LoadCell>,
}

impl Book {
    pub(super) fn new(load: Arc<LoadCell>) -> Self {
        Self {
            entries: BTreeMap::new(),
            load,
        }
    }

    /// Queue a request, or tell its client why not.
    pub(super) fn submit(
        &mut self,
        scheduler: &mut Scheduler,
        id: SequenceId,
        request: GenerationRequest,
        mut sink: EventSink,
        at: Instant,
    ) {
        let GenerationRequest {
            prompt,
            resume,
            max_tokens,
            stop_tokens,
            sampling,
        } = request;
        let prompt_tokens = length(&prompt);
        let resumed = length(&resume);
        // An interrupted answer may have been complete already.
        let stopped = resume.last().copied().filter(|last| stop_tokens.contains(last));
        let ended = stopped.map(FinishReason::StopToken);
        let ended = ended.or_else(|| (resumed > 0 && resumed >= max_tokens).then_some(FinishReason::Length));
        if let Some(reason) = ended {
            sink(Event::Accepted { prompt_tokens });
            sink(Event::Finished {
                reason,
                output_tokens: resumed,
            });
            return;
        }
        let counts = TokenCounts::of(&resume);
        let tokens = [prompt, resume].concat();
        let longest = prompt_tokens.saturating_add(max_tokens);
        match scheduler.add(Sequence::new(id, tokens, longest, sampling.key())) {
            Ok(()) => {
                self.load
                    .update(|figures| figures.prompt_tokens += u64::from(prompt_tokens));
                if !sink(Event::Accepted { prompt_tokens }) {
                    scheduler.remove(id);
                    return;
                }
                let entry = Entry {
                    sink,
                    sampling,
                    stop_tokens,
                    counts,
                    prompt_tokens,
                    last_at: at,
                    first_token_sent: false,
                };
                self.entries.insert(id, entry);
            }
            Err(refusal) => {
                sink(Event::Failed {
                    kind: FailureKind::Invalid,
                    message: refusal.to_string(),
                });
            }
        }
    }

    /// A client went away or changed its mind.
    pub(super) fn cancel(&mut self, scheduler: &mut Scheduler, id: SequenceId) {
        if let (Some(mut entry), Some(sequence)) = (self.entries.remove(&id), scheduler.remove(id)) {
            self.publish(scheduler);
            let output_tokens = sequence.len() - entry.prompt_tokens;
            (entry.sink)(Event::Finished {
                reason: FinishReason::Cancelled,
                output_tokens,
            });
        }
    }

    /// A request cannot go on.
    pub(super) fn fail(
        &mut self,
        scheduler: &mut Scheduler,
        id: SequenceId,
        kind: FailureKind,
        message: String,
    ) {
        scheduler.remove(id);
        self.publish(scheduler);
        if let Some(mut entry) = self.entries.remove(&id) {
            (entry.sink)(Event::Failed { kind, message });
        }
    }

    /// No request goes on here; another leader can take them.
    pub(super) fn fail_all(&mut self, scheduler: &mut Scheduler, message: &str) {
        while let Some(id) = self.entries.keys().next().copied() {
            self.fail(scheduler, id, FailureKind::Unavailable, message.to_owned());
        }
    }

    /// How a request samples, and the biases of its next token.
    pub(super) fn sampling(&self, id: SequenceId) -> Option<(&SamplingParams, Vec<(u32, f32)>)> {
        let entry = self.entries.get(&id)?;
        Some((&entry.sampling, entry.counts.biases(&entry.sampling)))
    }

    /// A request's next token.
    pub(super) fn token(&mut self, scheduler: &mut Scheduler, id: SequenceId, sampled: Sampled) {
        let (Some(entry), Some(length)) = (self.entries.get_mut(&id), scheduler.push(id, sampled.token))
        else {
            return;
        };
        let now = Instant::now();
        let waited = now.duration_since(entry.last_at);
        let first = !std::mem::replace(&mut entry.first_token_sent, true);
        entry.last_at = now;
        self.load.update(|figures| {
            figures.output_tokens += 1;
            let histogram = if first {
                &mut figures.first_token
            } else {
                &mut figures.inter_token
            };
            histogram.record(waited);
        });
        entry.counts.record(sampled.token);
        let output_tokens = length - entry.prompt_tokens;
        let mut heard = true;
        let stopped = entry.stop_tokens.contains(&sampled.token);
        if !stopped {
            heard = (entry.sink)(Event::Token {
                id: sampled.token,
                logprob: sampled.logprob,
            });
        }
        let full = scheduler.is_full(id);
        if stopped || full || !heard {
            let reason = match (stopped, heard) {
                (true, _) => FinishReason::StopToken(sampled.token),
                (false, true) => FinishReason::Length,
                (false, false) => FinishReason::Cancelled,
            };
            // Freed first: whoever hears of the end finds it in the figures.
            scheduler.remove(id);
            self.publish(scheduler);
            if let Some(mut entry) = self.entries.remove(&id) {
                (entry.sink)(Event::Finished {
                    reason,
                    output_tokens,
                });
            }
        }
    }

    /// Renew the figures about the queue.
    pub(super) fn publish(&self, scheduler: &Scheduler) {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        self.load.update(|figures| {
            figures.running = count(scheduler.running());
            figures.waiting = count(scheduler.waiting());
            figures.kv = scheduler.kv_blocks();
        });
    }
}

fn length(tokens: &[u32]) -> u32 {
    u32::try_from(tokens.len()).unwrap_or(u32::MAX)
}
