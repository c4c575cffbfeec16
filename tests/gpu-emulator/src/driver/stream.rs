//! Streams, events, capture.
//!
//! A stream is a queue. In eager mode its work is done when it is enqueued; in deferred mode when somebody waits for it,
//! so that a program which forgets to wait sees memory as it was.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::config::Streams;
use super::error::{Result, fail};
use super::state::{Driver, lock};
use super::work::Work;

/// Work that a stream holds before the oldest is done for it.
const QUEUE: usize = 8192;

/// A queue of work on one device.
pub(super) struct Stream {
    pub(super) context: u64,
    pub(super) device: usize,
    queue: Mutex<Queue>,
    /// Held by the thread that does the stream's work, so that it is done in order.
    turn: Mutex<()>,
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    enqueued: u64,
    done: u64,
    capture: Option<u64>,
}

/// A point in a stream.
#[derive(Clone, Default)]
pub(super) struct Event {
    /// Stream, and how much of its work must be done.
    pub(super) recorded: Option<(Arc<Stream>, u64)>,
    /// When it was reached.
    pub(super) mark: Arc<Mutex<Option<Instant>>>,
    /// The capture that recorded it, instead of a stream.
    captured: Option<u64>,
}

/// Work that is recorded instead of enqueued.
#[derive(Default)]
pub(super) struct Capture {
    work: Vec<Work>,
    origin: u64,
    /// Why it cannot become a graph.
    invalid: Option<String>,
}

impl Stream {
    pub(super) fn new(context: u64, device: usize) -> Self {
        Self {
            context,
            device,
            queue: Mutex::default(),
            turn: Mutex::new(()),
        }
    }

    fn done(&self) -> u64 {
        lock(&self.queue).done
    }

    /// Whether nothing is left to do.
    pub(super) fn idle(&self) -> bool {
        let queue = lock(&self.queue);
        queue.done == queue.enqueued
    }

    /// The capture it is in.
    pub(super) fn capture(&self) -> Option<u64> {
        lock(&self.queue).capture
    }
}

impl Event {
    pub(super) fn complete(&self) -> bool {
        self.recorded
            .as_ref()
            .is_none_or(|(stream, upto)| stream.done() >= *upto)
    }
}

impl Driver {
    /// Enqueue work, or record it where the stream is in a capture.
    pub(super) fn enqueue(&self, stream: &Arc<Stream>, work: Work) -> Result<()> {
        if let Some(id) = stream.capture() {
            return self.record_work(id, work);
        }
        let full = {
            let mut queue = lock(&stream.queue);
            queue.work.push_back(work);
            queue.enqueued += 1;
            queue.work.len() > QUEUE
        };
        if full || self.config.streams == Streams::Eager {
            self.drain(stream, u64::MAX)?;
        }
        Ok(())
    }

    fn record_work(&self, id: u64, work: Work) -> Result<()> {
        match self.tables().captures.get_mut(&id) {
            Some(capture) => capture.work.push(work),
            None => fail!(StreamCaptureInvalidated, "the capture has ended"),
        }
        Ok(())
    }

    /// Do the stream's work until `upto` pieces are done, or all.
    pub(super) fn drain(&self, stream: &Arc<Stream>, upto: u64) -> Result<()> {
        while self.step(stream, upto)? {}
        Ok(())
    }

    /// Do one piece of work; false when there is nothing to do.
    pub(super) fn step(&self, stream: &Arc<Stream>, upto: u64) -> Result<bool> {
        // Asked before the turn is taken: the stream may be in the middle of waiting for one that waits for its past.
        if stream.done() >= upto {
            return Ok(false);
        }
        let _turn = lock(&stream.turn);
        let work = {
            let mut queue = lock(&stream.queue);
            if queue.done >= upto {
                return Ok(false);
            }
            queue.work.pop_front()
        };
        let Some(work) = work else { return Ok(false) };
        let result = self.perform(stream, &work);
        lock(&stream.queue).done += 1;
        result.map(|()| true)
    }

    /// Wait until a stream has nothing left to do.
    pub(super) fn synchronise(&self, stream: &Arc<Stream>) -> Result<()> {
        self.not_capturing(stream, "waiting for a stream")?;
        self.drain(stream, u64::MAX)?;
        self.healthy(stream.context).map(|_| ())
    }

    /// Wait for all streams of a context.
    pub(super) fn synchronise_all(&self, context: u64) -> Result<()> {
        let streams: Vec<_> = self
            .tables()
            .streams
            .values()
            .filter(|stream| stream.context == context)
            .cloned()
            .collect();
        for stream in streams {
            self.synchronise(&stream)?;
        }
        self.healthy(context).map(|_| ())
    }

    /// Refuse, and spoil the capture, where a stream is in one.
    pub(super) fn not_capturing(&self, stream: &Stream, what: &str) -> Result<()> {
        let Some(id) = stream.capture() else { return Ok(()) };
        if let Some(capture) = self.tables().captures.get_mut(&id) {
            capture.invalid.get_or_insert_with(|| what.to_owned());
        }
        fail!(
            StreamCaptureUnsupported,
            "{what} is not possible while it captures"
        )
    }

    /// `cuEventRecord`.
    pub(super) fn record(&self, event: u64, stream: &Arc<Stream>) -> Result<()> {
        let mark = Arc::new(Mutex::new(None));
        let captured = stream.capture();
        let upto = lock(&stream.queue).enqueued + 1;
        {
            let mut tables = self.tables();
            let Some(event) = tables.events.get_mut(&event) else {
                fail!(InvalidHandle, "{event:#x} is no event");
            };
            event.mark = mark.clone();
            event.captured = captured;
            event.recorded = captured.is_none().then(|| (stream.clone(), upto));
        }
        if captured.is_some() {
            Ok(())
        } else {
            self.enqueue(stream, Work::Record(mark))
        }
    }

    /// `cuStreamWaitEvent`. Waiting for an event of a capture joins it.
    pub(super) fn wait_event(&self, stream: &Arc<Stream>, event: &Event) -> Result<()> {
        if let Some(id) = event.captured {
            if !self.tables().captures.contains_key(&id) {
                fail!(
                    StreamCaptureInvalidated,
                    "the capture that recorded the event has ended"
                );
            }
            lock(&stream.queue).capture = Some(id);
            return Ok(());
        }
        self.not_capturing(stream, "waiting for an event from outside of a capture")?;
        match &event.recorded {
            // A stream is in order with itself.
            Some((other, _)) if Arc::ptr_eq(other, stream) => Ok(()),
            Some((other, upto)) => self.enqueue(stream, Work::Wait(other.clone(), *upto)),
            None => Ok(()),
        }
    }

    /// `cuEventSynchronize`.
    pub(super) fn wait_host(&self, event: &Event) -> Result<()> {
        match &event.recorded {
            Some((stream, upto)) => {
                self.drain(stream, *upto)?;
                self.healthy(stream.context).map(|_| ())
            }
            None => Ok(()),
        }
    }

    /// `cuStreamBeginCapture`.
    pub(super) fn begin_capture(&self, handle: u64, stream: &Arc<Stream>) -> Result<()> {
        self.not_capturing(stream, "beginning a capture")?;
        let mut tables = self.tables();
        let id = tables.handle();
        tables.captures.insert(
            id,
            Capture {
                origin: handle,
                ..Capture::default()
            },
        );
        lock(&stream.queue).capture = Some(id);
        Ok(())
    }

    /// `cuStreamEndCapture`: the graph's handle.
    pub(super) fn end_capture(&self, handle: u64, stream: &Arc<Stream>) -> Result<u64> {
        let Some(id) = stream.capture() else {
            fail!(InvalidValue, "the stream is in no capture");
        };
        let mut tables = self.tables();
        for stream in tables.streams.values() {
            let mut queue = lock(&stream.queue);
            queue.capture = queue.capture.filter(|capture| *capture != id);
        }
        let Some(capture) = tables.captures.remove(&id) else {
            fail!(StreamCaptureInvalidated, "the capture has ended");
        };
        if let Some(reason) = capture.invalid {
            fail!(StreamCaptureInvalidated, "the capture was spoilt by {reason}");
        }
        if capture.origin != handle {
            fail!(
                StreamCaptureUnjoined,
                "a capture ends on the stream where it began"
            );
        }
        let graph = tables.handle();
        tables.graphs.insert(graph, Arc::new(capture.work));
        Ok(graph)
    }

    /// `cuGraphLaunch`: enqueue a graph's work in the order of its capture, which every dependency agrees with.
    pub(super) fn launch_graph(&self, graph: u64, stream: &Arc<Stream>) -> Result<()> {
        let work = match self.tables().graphs.get(&graph) {
            Some(work) => work.clone(),
            None => fail!(InvalidHandle, "{graph:#x} is no graph"),
        };
        self.enqueue(stream, Work::Graph(work))
    }

    /// Number of a launch, from 1.
    pub(super) fn count_launch(&self) -> u64 {
        self.launches.fetch_add(1, Relaxed) + 1
    }
}
