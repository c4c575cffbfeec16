//! Enqueues what steps need, in their order: decode steps as graphs, others launch by launch.

use cudarc::driver::result;
use cudarc::driver::sys::{CUgraphInstantiate_flags_enum, CUstreamCaptureMode};
use llamero_checkpoint::Runs;
use llamero_engine::kv_state::{Answer, resolve};
use llamero_engine::{BackendError, RowOutput};

use super::formed_group::FormedGroup;
use super::graphs::{Key, bucket, buckets, reach};
use super::step::{Phase, Step};
use crate::error::{bug, refused};
use crate::forward::{Chunk, Model};
use crate::ops::{MAX_ROWS, NOTHING, Ops};
use crate::sample::{Group, Room, Sampler, Wants};
use crate::work::{ENTRIES, REGIONS};

/// A formed group and what it computes with.
pub(super) struct Enqueue<'a> {
    pub(super) model: Model<'a>,
    pub(super) ops: &'a mut Ops,
    pub(super) group: &'a mut FormedGroup,
}

impl Enqueue<'_> {
    /// Layers in the order of the steps, as far as tokens are known and what the stage before gives is here; then candidates of every step whose biases and masks
    /// are.
    pub(super) fn pump(&mut self) -> Result<(), BackendError> {
        for index in 0..self.group.steps.len() {
            if !matches!(self.group.steps[index].phase, Phase::Submitted) {
                continue;
            }
            let step = &self.group.steps[index];
            if step.late.tokens().is_none() || !step.is_here {
                break;
            }
            self.tables(index)?;
            for (from, to) in &self.group.steps[index].plan.blocks.copies {
                self.group.cache.copy(*from, *to)?;
            }
            if self.group.steps[index].is_decode() {
                self.decode(index)?;
            } else {
                self.layers(index)?;
            }
        }
        for index in 0..self.group.steps.len() {
            let step = &self.group.steps[index];
            if matches!(step.phase, Phase::Forwarded) && step.late.adjustments().is_some() {
                self.candidates(index)?;
            }
        }
        Ok(())
    }

    /// Capture the graphs of the usual decode steps.
    pub(super) fn warm_up(&mut self) -> Result<(), BackendError> {
        let most = bucket(self.group.sizes.sequences);
        let sampling = self.model.shape.has_head.then(Wants::default);
        for lane in 0..self.group.lanes.len() {
            for rows in buckets().filter(|rows| *rows <= most) {
                let key = Key {
                    lane,
                    rows,
                    longest: reach(1),
                    sampling,
                };
                self.capture(key)?;
            }
        }
        Ok(())
    }

    /// Everything of a step of one token a row, all of which are sampled.
    fn decode(&mut self, index: usize) -> Result<(), BackendError> {
        let step = &mut self.group.steps[index];
        let tokens = step.late.tokens().map(|late| resolve(&step.plan, late));
        let tokens = tokens.ok_or_else(|| bug("late tokens are not there"))?;
        let lane = &mut self.group.lanes[step.lane];
        let rows = bucket(tokens.len());
        let vocab = Vocab::new(&self.model, self.group.exchange.is_some());
        let chunks = fill(step, &tokens, lane.frame.as_mut_slice(), MAX_ROWS, vocab);
        let spare = self.group.spare;
        let token = vocab.position(0);
        pad(lane.frame.as_mut_slice(), tokens.len()..rows, (token, spare));
        let answers: Vec<(usize, Answer)> = step.answers.iter().copied().enumerate().collect();
        let sampling = match (step.late.adjustments(), lane.room.take()) {
            (Some(adjustments), Some(room)) if self.model.shape.has_head && adjustments.is_empty() => {
                let group = Group::new(answers, &step.plan, &self.model.shape.vocab, room);
                let wants = group.wants();
                step.groups.push(group);
                Some(wants)
            }
            (_, room) => {
                lane.room = room;
                None
            }
        };
        let key = Key {
            lane: step.lane,
            rows,
            longest: reach(chunks.iter().map(|chunk| chunk.longest).max().unwrap_or(1)),
            sampling,
        };
        if !self.group.graphs.contains(&key) && self.make_room()? {
            self.capture(key)?;
        }
        match self.group.graphs.get(&key) {
            Some(graph) => graph.launch().map_err(refused)?,
            None => self.record(key)?,
        }
        let is_whole = sampling.is_some() || !self.model.shape.has_head;
        self.forwarded(index, is_whole)
    }

    /// A step's layers are enqueued, and with them the whole step or not.
    fn forwarded(&mut self, index: usize, is_whole: bool) -> Result<(), BackendError> {
        let phase = match is_whole {
            true => Phase::Enqueued(self.ops.stream().record_event(None).map_err(refused)?),
            false => Phase::Forwarded,
        };
        self.group.steps[index].phase = phase;
        Ok(())
    }

    /// Whether there is room for another graph, or is now.
    fn make_room(&mut self) -> Result<bool, BackendError> {
        if self.group.graphs.has_room() {
            return Ok(true);
        }
        let Some(unused) = self.group.graphs.unused() else {
            return Ok(false);
        };
        self.ops.stream().synchronize().map_err(refused)?;
        self.group.graphs.remove(&unused);
        Ok(true)
    }

    /// Make the graph of a whole step.
    fn capture(&mut self, key: Key) -> Result<(), BackendError> {
        let stream = self.ops.stream().clone();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(refused)?;
        let recorded = self.record(key);
        let flags = CUgraphInstantiate_flags_enum(0);
        // Ended also after a failure, so that the stream can be used again.
        let graph = stream.end_capture(flags).map_err(refused);
        recorded?;
        let graph = graph?.ok_or_else(|| bug("a captured step has no launches"))?;
        self.group.graphs.insert(key, graph);
        Ok(())
    }

    /// The launches and copies of a graph.
    fn record(&mut self, key: Key) -> Result<(), BackendError> {
        let group = &mut *self.group;
        let frame = &group.lanes[key.lane].frame.as_slice()[..REGIONS * MAX_ROWS];
        self.ops.upload(frame, self.ops.address(&group.work.frame))?;
        let chunk = Chunk {
            width: MAX_ROWS,
            first: 0,
            rows: key.rows,
            longest: key.longest,
        };
        let cache = (&group.cache, &group.sizes);
        let links = (group.exchange.as_ref(), &mut group.lanes[key.lane].edge);
        self.model.run(self.ops, &mut group.work, cache, links, chunk)?;
        if !self.model.shape.has_head {
            return group.bring_back_whether_failed(key.lane);
        }
        self.gather(key.lane, MAX_ROWS, (0, key.rows))?;
        let Some(wants) = key.sampling else { return Ok(()) };
        // A step that is under way has the room of its lane; warming up finds it at home.
        let group = &mut *self.group;
        let at_home = group.lanes[key.lane].room.as_mut();
        let mut under_way = group.steps.iter_mut().filter(|step| step.lane == key.lane);
        let room = match at_home {
            Some(room) => room,
            None => match under_way.next().and_then(|step| step.groups.first_mut()) {
                Some(group) => &mut group.room,
                None => return Err(bug("a lane has no room for results")),
            },
        };
        let mut sampler = Sampler {
            shape: self.model.shape,
            weights: self.model.weights,
            ops: self.ops,
            pool: &group.pool,
            buffers: &mut group.work.sampling,
        };
        let states = &group.lanes_states[key.lane];
        sampler.enqueue(states, (0, key.rows), wants, room, None)?;
        group.bring_back_whether_failed(key.lane)
    }

    /// Everything of a step up to the final norms of its answered positions, or up to what the next stage is given.
    fn layers(&mut self, index: usize) -> Result<(), BackendError> {
        let chunks = self.frame(index)?;
        if let (true, Some(exchange)) = (chunks.is_empty(), &self.group.exchange) {
            // A heartbeat proves that every rank still reaches every other.
            self.ops.meet(exchange.areas())?;
        }
        let mut answered = 0;
        for chunk in chunks {
            let group = &mut *self.group;
            let cache = (&group.cache, &group.sizes);
            let lane = group.steps[index].lane;
            let links = (group.exchange.as_ref(), &mut group.lanes[lane].edge);
            self.model.run(self.ops, &mut group.work, cache, links, chunk)?;
            if !self.model.shape.has_head {
                continue;
            }
            let step = &self.group.steps[index];
            let end = chunk.first + chunk.rows;
            let count = step.answers[answered..]
                .iter()
                .take_while(|answer| answer.token < end)
                .count();
            if count > 0 {
                self.gather(lane, chunk.width, (answered, count))?;
                answered += count;
            }
        }
        let has_head = self.model.shape.has_head;
        if !has_head {
            let lane = self.group.steps[index].lane;
            self.group.bring_back_whether_failed(lane)?;
        }
        self.forwarded(index, !has_head)
    }

    /// Keep the final norms of `count` answers from `first` on.
    fn gather(
        &mut self,
        lane: usize,
        width: usize,
        (first, count): (usize, usize),
    ) -> Result<(), BackendError> {
        let work = &self.group.work;
        let start = 3 * width + first;
        let rows = work.frame.slice(start..start + count);
        let states = &mut self.group.lanes_states[lane];
        let stride = self.model.shape.hidden_leaves.stride();
        self.ops
            .gather_rows(&work.normed, (&rows, count), (states, first), stride)?;
        Ok(())
    }

    /// Bring the device's block tables to the state of the step.
    fn tables(&mut self, index: usize) -> Result<(), BackendError> {
        let step = &mut self.group.steps[index];
        let entries = std::mem::take(&mut step.entries);
        let lane = &mut self.group.lanes[step.lane];
        for part in entries.chunks(ENTRIES) {
            let mut words = self.group.pool.take(3 * part.len()).map_err(refused)?;
            words.as_mut_slice().copy_from_slice(part.as_flattened());
            let work = &mut self.group.work;
            self.ops
                .upload(words.as_slice(), self.ops.address(&work.entries))?;
            lane.entries.push(words);
            let stride = self.group.sizes.table();
            self.ops
                .update_tables(&work.entries, part.len(), &mut work.tables, stride)?;
        }
        Ok(())
    }

    /// Upload tokens, positions, slots and answered rows; the chunks in which they are computed.
    fn frame(&mut self, index: usize) -> Result<Vec<Chunk>, BackendError> {
        let step = &self.group.steps[index];
        let Some(late) = step.late.tokens() else {
            return Err(bug("late tokens are not there"));
        };
        let tokens = resolve(&step.plan, late);
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        let width = tokens.len().next_multiple_of(MAX_ROWS);
        let vocab = Vocab::new(&self.model, self.group.exchange.is_some());
        let frame = &mut self.group.lanes[step.lane].frame;
        let chunks = fill(step, &tokens, frame.as_mut_slice(), width, vocab);
        let words = 3 * width + step.answers.len();
        self.ops.upload(
            &frame.as_slice()[..words],
            self.ops.address(&self.group.work.frame),
        )?;
        Ok(chunks)
    }

    /// Logits and candidates of a step, and the event behind which it is done.
    fn candidates(&mut self, index: usize) -> Result<(), BackendError> {
        let step = &mut self.group.steps[index];
        let shape = self.model.shape;
        let states = &self.group.lanes_states[step.lane];
        let Some(adjustments) = step.late.adjustments() else {
            return Err(bug("biases and masks are not there"));
        };
        let answers: Vec<_> = step.answers.iter().copied().enumerate().collect();
        for answers in answers.chunks(MAX_ROWS) {
            if !answers.iter().any(|(_, answer)| step.is_sampled(answer)) {
                continue;
            }
            let room = match self.group.rooms.pop() {
                Some(room) => room,
                None => Room::new(self.ops.stream().context(), shape.head_width()).map_err(refused)?,
            };
            let mut group = Group::new(answers.to_vec(), &step.plan, &shape.vocab, room);
            let mut sampler = Sampler {
                shape,
                weights: self.model.weights,
                ops: self.ops,
                pool: &self.group.pool,
                buffers: &mut self.group.work.sampling,
            };
            group.enqueue(&mut sampler, states, adjustments)?;
            step.groups.push(group);
        }
        self.hidden(index)?;
        self.group
            .bring_back_whether_failed(self.group.steps[index].lane)?;
        let event = self.ops.stream().record_event(None).map_err(refused)?;
        self.group.steps[index].phase = Phase::Enqueued(event);
        Ok(())
    }

    /// Bring back the states of rows that answer hidden ones.
    fn hidden(&mut self, index: usize) -> Result<(), BackendError> {
        let step = &mut self.group.steps[index];
        let states = &self.group.lanes_states[step.lane];
        let stride = self.model.shape.hidden_leaves.stride();
        for (number, answer) in step.answers.clone().iter().enumerate() {
            // Positions of a row stand behind each other.
            let rows = match step.output(answer) {
                RowOutput::Hidden => 1,
                RowOutput::HiddenSum if answer.offset == 0 => {
                    step.plan.rows[answer.row as usize].tokens.len()
                }
                _ => continue,
            };
            if !step.is_wanted(answer) {
                continue;
            }
            let mut state = self.group.pool.take::<u16>(rows * stride).map_err(refused)?;
            let from = self.ops.address(states) + 2 * (number * stride) as u64;
            // SAFETY: both sides have these rows; the host's is read behind the step's event.
            unsafe { result::memcpy_dtoh_async(state.as_mut_slice(), from, self.ops.stream().cu_stream()) }
                .map_err(refused)?;
            step.hidden.push((answer.row, state));
        }
        Ok(())
    }
}

/// Whose rows of the embedding the rank has.
#[derive(Clone, Copy)]
struct Vocab<'a> {
    own: &'a Runs,
    /// What stands for a token of another rank.
    others: u32,
}

impl<'a> Vocab<'a> {
    /// Where nobody gives the rows of other ranks, any row stands for them.
    fn new(model: &Model<'a>, is_exchanged: bool) -> Self {
        Self {
            own: &model.shape.vocab,
            others: if is_exchanged { NOTHING } else { 0 },
        }
    }

    /// The row of a token.
    fn position(self, token: u32) -> u32 {
        self.own.position(token).unwrap_or(self.others)
    }
}

/// Fill a frame whose regions are `width` words long.
fn fill(step: &Step, tokens: &[u32], frame: &mut [u32], width: usize, vocab: Vocab<'_>) -> Vec<Chunk> {
    let mut at = 0;
    let mut chunks: Vec<Chunk> = (0..tokens.len())
        .step_by(MAX_ROWS)
        .map(|first| Chunk {
            width,
            first,
            rows: MAX_ROWS.min(tokens.len() - first),
            longest: 0,
        })
        .collect();
    for span in &step.spans {
        for position in (span.start..).take(span.len) {
            frame[at] = vocab.position(tokens[at]);
            frame[width + at] = position;
            frame[2 * width + at] = span.slot;
            let chunk = &mut chunks[at / MAX_ROWS];
            chunk.longest = chunk.longest.max(position as usize + 1);
            at += 1;
        }
    }
    for (number, answer) in step.answers.iter().enumerate() {
        frame[3 * width + number] = (answer.token % MAX_ROWS) as u32;
    }
    chunks
}

/// Rows that only fill up a graph's batch: they write to a block that nobody reads.
fn pad(frame: &mut [u32], rows: std::ops::Range<usize>, (token, spare_slot): (u32, u32)) {
    for row in rows {
        frame[row] = token;
        frame[MAX_ROWS + row] = 0;
        frame[2 * MAX_ROWS + row] = spare_slot;
        frame[3 * MAX_ROWS + row] = row as u32;
    }
}
