//! Submitting and cancelling, from other threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::adapters::{AdapterError, AdapterInfo, AdapterList, AdapterReply};
use super::constraint::Constraint;
use super::control::RankContext;
use super::input::Input;
use super::load::{LoadCell, LoadSnapshot};
use super::queue::QueueGauge;
use super::request::{Event, EventSink, GenerationRequest};
use crate::schedule::SequenceId;

/// Why a request is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The group is about to end.
    #[error("this group is draining: send the request to another replica")]
    Draining,
    /// As many requests wait as may.
    #[error("the queue is full: {message}; try again in {} s, or send the request to another replica", retry_after.as_secs())]
    Full {
        /// What there is too much of.
        message: String,
        /// When the queue will have got shorter, by the measured speed.
        retry_after: Duration,
    },
    /// The rank's thread has ended.
    #[error("the engine has stopped: send the request to another replica")]
    Stopped,
}

/// The way to the leader's queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    inputs: mpsc::Sender<Input>,
    next: Arc<AtomicU64>,
    load: Arc<LoadCell>,
    context: Arc<RankContext>,
    queue: Arc<QueueGauge>,
    adapters: Arc<AdapterList>,
}

/// A request that was taken. Dropping it cancels the request, which is harmless after its end.
#[derive(Debug)]
pub struct Submission {
    id: SequenceId,
    inputs: mpsc::Sender<Input>,
}

impl EngineHandle {
    pub(super) fn new(
        inputs: mpsc::Sender<Input>,
        load: Arc<LoadCell>,
        context: Arc<RankContext>,
        queue: Arc<QueueGauge>,
        adapters: Arc<AdapterList>,
    ) -> Self {
        Self {
            inputs,
            next: Arc::default(),
            load,
            context,
            queue,
            adapters,
        }
    }

    /// The adapters that requests may ask for, by name.
    #[must_use]
    pub fn adapters(&self) -> Vec<AdapterInfo> {
        self.adapters.get()
    }

    /// Load the adapter in the folder `path` below that for adapters, on every rank. Does not wait: `reply` takes the end.
    pub fn load_adapter(&self, name: String, path: String, reply: AdapterReply) {
        let input = Input::LoadAdapter { name, path, reply };
        self.steer(input);
    }

    /// Forget an adapter that no request uses. Does not wait: `reply` takes the end.
    pub fn unload_adapter(&self, name: String, reply: AdapterReply) {
        self.steer(Input::UnloadAdapter { name, reply });
    }

    fn steer(&self, input: Input) {
        if let Err(mpsc::SendError(Input::LoadAdapter { reply, .. } | Input::UnloadAdapter { reply, .. })) =
            self.inputs.send(input)
        {
            reply(Err(AdapterError::Unavailable(SubmitError::Stopped.to_string())));
        }
    }

    /// Queue a request; `sink` takes its events. Does not wait.
    ///
    /// # Errors
    /// [`SubmitError`]. Requests that can never fit are refused by [`Event::Failed`].
    pub fn submit(&self, request: GenerationRequest, sink: EventSink) -> Result<Submission, SubmitError> {
        self.submit_constrained(request, None, sink)
    }

    /// Queue a request whose tokens are restricted.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_constrained(
        &self,
        request: GenerationRequest,
        constraint: Option<Box<dyn Constraint>>,
        sink: EventSink,
    ) -> Result<Submission, SubmitError> {
        if self.context.refuses() {
            return Err(SubmitError::Draining);
        }
        let queued = request.queued_tokens();
        self.queue.enter(queued).map_err(|full| SubmitError::Full {
            message: full.message,
            retry_after: full.retry_after,
        })?;
        let id = SequenceId(self.next.fetch_add(1, Ordering::Relaxed));
        let input = Input::Submit {
            id,
            request,
            constraint,
            sink,
            at: Instant::now(),
        };
        if self.inputs.send(input).is_err() {
            self.queue.leave(queued);
            return Err(SubmitError::Stopped);
        }
        Ok(Submission {
            id,
            inputs: self.inputs.clone(),
        })
    }

    /// Queue a request whose events come through a channel.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_channel(
        &self,
        request: GenerationRequest,
    ) -> Result<(Submission, mpsc::Receiver<Event>), SubmitError> {
        let (sender, receiver) = mpsc::channel();
        let submission = self.submit(request, Box::new(move |event| sender.send(event).is_ok()))?;
        Ok((submission, receiver))
    }

    /// Load of the group.
    #[must_use]
    pub fn load(&self) -> LoadSnapshot {
        self.load.snapshot(self.context.is_draining())
    }

    /// Tokens of the longest sequence that the group holds now: see [`LoadSnapshot::longest`].
    #[must_use]
    pub fn longest(&self) -> u32 {
        self.load.longest()
    }

    /// Time since the group was seen to work last, by a step or by a layer of a slow one; none before the first step. Health
    /// compares it with the stall time-out.
    #[must_use]
    pub fn idle_for(&self) -> Option<Duration> {
        self.context.state.get().worked_at().map(|at| at.elapsed())
    }
}

impl Submission {
    /// Number of the request in this engine.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id.0
    }

    /// End the request; its last event is [`super::FinishReason::Cancelled`] unless it has ended before.
    pub fn cancel(&self) {
        let _ = self.inputs.send(Input::Cancel(self.id));
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        self.cancel();
    }
}
