//! What a rank has from forming a group until leaving it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaSlice, result};
use llamero_engine::kv_state::KvState;
use llamero_engine::pooling;
use llamero_engine::{
    BackendError, FormSpec, KvCapacity, Late, LogitShard, MemoryPlan, MeshError, Plan, RowOutput, StepOutput,
    StepProgress, Ticket, Waited,
};

use super::enqueue::Enqueue;
use super::graphs::Graphs;
use super::step::{Phase, Span, Step};
use crate::error::{bug, refused, unusable};
use crate::exchange::{Edge, Exchange, Hop, Watch, frame_bytes};
use crate::forward::Model;
use crate::kv::KvCache;
use crate::ops::Ops;
use crate::pinned::{Lent, Pinned, Pool};
use crate::sample::{Room, Sampler};
use crate::work::{REGIONS, Sizes, Workspace, reserve, states};

/// How long a wait asks without pause; then it sleeps in between.
const EAGER: Duration = Duration::from_millis(2);
/// How long the device may take to end what is under way once nothing of it waits for peers: the longest step.
const ENDING: Duration = Duration::from_secs(60);
/// How long it sleeps.
const NAP: Duration = Duration::from_micros(50);

/// Host memory that a step keeps until it is released.
pub(super) struct Lane {
    pub(super) frame: Pinned<u32>,
    pub(super) entries: Vec<Lent<u32>>,
    /// Not 0 where an exchange had failed by the end of the step.
    failed: Pinned<u32>,
    /// What it takes from other stages and gives to them.
    pub(super) edge: Edge,
    /// For results of graphs; away while a step has it.
    pub(super) room: Option<Room>,
}

/// Cache, workspace and steps under way.
pub(super) struct FormedGroup {
    spec: FormSpec,
    pub(super) sizes: Sizes,
    pub(super) cache: KvCache,
    blocks: u32,
    state: KvState,
    // Graphs go before the buffers that they name.
    pub(super) graphs: Graphs,
    pub(super) work: Workspace,
    /// With the other ranks of the stage; none for a rank alone there.
    pub(super) exchange: Option<Exchange>,
    /// To other stages; none where there is but one.
    pub(super) hop: Option<Hop>,
    /// Hears of all other ranks of the group; none for a rank alone.
    pub(super) watch: Option<Watch>,
    pub(super) lanes: Vec<Lane>,
    /// Final norms of answered positions, of each lane.
    pub(super) lanes_states: Vec<CudaSlice<u16>>,
    /// The slot of rows that only fill up a batch.
    pub(super) spare: u32,
    is_first_stage: bool,
    free_lanes: Vec<usize>,
    /// Host memory for what comes and goes with a step.
    pub(super) pool: Pool,
    /// Host memory of groups that nobody uses now.
    pub(super) rooms: Vec<Room>,
    next_step: u64,
    /// Submitted and not released, in order.
    pub(super) steps: VecDeque<Step>,
    /// Layers that were told of.
    layers_told: u32,
    stream: std::sync::Arc<cudarc::driver::CudaStream>,
}

impl FormedGroup {
    pub(super) fn new(
        spec: &FormSpec,
        sizes: Sizes,
        plan: &MemoryPlan,
        model: (&crate::shape::Shape, &Ops),
    ) -> Result<Self, BackendError> {
        let (shape, ops) = model;
        let stream = ops.stream().clone();
        let blocks = blocks(spec, plan, &stream)?;
        let work = Workspace::new(&stream, shape, &sizes)?;
        let (mut lanes, mut lanes_states) = (Vec::new(), Vec::new());
        for _ in 0..sizes.in_flight {
            lanes_states.push(states(&stream, shape, &sizes)?);
            lanes.push(Lane {
                frame: Pinned::new(stream.context(), REGIONS * sizes.tokens).map_err(refused)?,
                entries: Vec::new(),
                failed: Pinned::new(stream.context(), 1).map_err(refused)?,
                edge: Edge::new(stream.context(), shape, sizes.tokens)?,
                room: Some(Room::new(stream.context(), shape.head_width()).map_err(refused)?),
            });
        }
        let cache = KvCache::new(
            &stream,
            shape.layers,
            blocks as usize,
            sizes.block_elements(shape),
        )?;
        let mut group = Self {
            spec: *spec,
            state: KvState::new(&spec.limits, vec![0; blocks as usize]),
            free_lanes: (0..lanes.len()).rev().collect(),
            sizes,
            cache,
            blocks,
            graphs: Graphs::default(),
            work,
            exchange: None,
            hop: None,
            watch: None,
            lanes,
            lanes_states,
            spare: spec.limits.max_sequences,
            is_first_stage: shape.has_embedding,
            pool: Pool::new(stream.context()),
            rooms: Vec::new(),
            next_step: 1,
            steps: VecDeque::new(),
            layers_told: 0,
            stream,
        };
        group.set_spare_table()?;
        Ok(group)
    }

    /// The first position of the spare slot lies in the block behind the others.
    fn set_spare_table(&mut self) -> Result<(), BackendError> {
        let stride = self.sizes.table();
        let at = self.spare as usize * stride;
        let mut entry = self.work.tables.slice_mut(at..at + 1);
        self.stream
            .memcpy_htod(&[self.blocks], &mut entry)
            .map_err(refused)?;
        self.stream.synchronize().map_err(refused)
    }

    /// Capture the graphs of the usual decode steps.
    pub(super) fn warm_up(&mut self, model: Model<'_>, ops: &mut Ops) -> Result<(), BackendError> {
        Enqueue {
            model,
            ops,
            group: self,
        }
        .warm_up()
    }

    pub(super) fn capacity(&self) -> KvCapacity {
        KvCapacity {
            blocks: self.blocks,
            // Blocks do not outlive their era yet.
            kept: None,
        }
    }

    pub(super) fn submit(&mut self, plan: &Plan, vocab: usize) -> Result<Ticket, BackendError> {
        let bug = |reason: String| bug(format!("step {} is refused: {reason}", plan.step));
        if plan.era != self.spec.era {
            return Err(bug(format!(
                "it is of {:?}, this rank is in {:?}",
                plan.era, self.spec.era
            )));
        }
        if plan.step != self.next_step {
            return Err(bug(format!("step {} was expected", self.next_step)));
        }
        let Some(lane) = self.free_lanes.last().copied() else {
            return Err(bug(format!(
                "{} steps are in flight, as many as were agreed on",
                self.steps.len()
            )));
        };
        let mut touched = changed_slots(plan);
        touched.retain(|slot| *slot < self.spec.limits.max_sequences);
        let before: Vec<_> = touched.iter().map(|slot| self.state.table(*slot)).collect();
        self.state.advance(plan, &self.spec.limits, vocab).map_err(bug)?;
        self.free_lanes.pop();
        self.next_step += 1;
        let mut entries = Vec::new();
        for (slot, before) in touched.iter().zip(before) {
            let after = self.state.table(*slot);
            let news = (0u32..)
                .zip(after.iter())
                .filter(|(index, block)| before.get(*index as usize) != Some(*block));
            entries.extend(news.map(|(index, block)| [*slot, index, *block]));
        }
        let spans = plan.rows.iter().map(|row| Span {
            slot: row.slot,
            start: row.start,
            len: row.tokens.len(),
            table: self.state.table(row.slot),
        });
        let ticket = Ticket(plan.step);
        let step = Step::new(
            ticket,
            plan,
            spans.collect(),
            entries,
            (lane, self.is_first_stage),
        );
        self.steps.push_back(step);
        self.set_busy(true);
        Ok(ticket)
    }

    pub(super) fn late(&mut self, ticket: Ticket, late: &Late, vocab: usize) -> Result<(), BackendError> {
        let bug = |reason: String| bug(format!("late values of step {}: {reason}", ticket.0));
        let step = self.steps.iter_mut().find(|step| step.ticket == ticket);
        let step = step.ok_or_else(|| bug("it was not submitted, or is released".into()))?;
        step.late.take(&step.plan, late, vocab).map_err(bug)
    }

    /// Enqueue whatever has all that it needs.
    pub(super) fn pump(&mut self, model: Model<'_>, ops: &mut Ops) -> Result<(), BackendError> {
        Enqueue {
            model,
            ops,
            group: self,
        }
        .pump()
    }

    /// Wait for a step of which all is enqueued by [`Self::pump`] that can be. Frames of other stages are moved meanwhile.
    pub(super) fn wait(
        &mut self,
        ticket: Ticket,
        until: Instant,
        (model, ops): (Model<'_>, &mut Ops),
        progress: &StepProgress,
    ) -> Result<Waited, BackendError> {
        let index = self.index(ticket)?;
        for step in self.steps.iter().take(index + 1) {
            if matches!(step.phase, Phase::Forwarded) {
                return Ok(Waited::NeedsSampling);
            }
            if step.late.tokens().is_none() {
                return Err(bug(format!(
                    "step {} is waited for before its {} late tokens are there",
                    step.plan.step, step.plan.late_tokens
                )));
            }
        }
        let started = Instant::now();
        loop {
            self.take_frame(model, ops)?;
            let is_before_sampling = |step: &Step| matches!(step.phase, Phase::Forwarded);
            if self.steps.iter().take(index + 1).any(is_before_sampling) {
                return Ok(Waited::NeedsSampling);
            }
            self.end_steps(index, model)?;
            // What the device has counted up to there.
            self.tell(progress);
            if let Phase::Done(output) = &self.steps[index].phase {
                return Ok(Waited::Done(output.clone()));
            }
            if progress.is_stopped() {
                return Err(MeshError::Aborted.into());
            }
            let now = Instant::now();
            if now >= until {
                return Ok(Waited::Pending);
            }
            if now - started < EAGER {
                std::thread::yield_now();
            } else {
                std::thread::park_timeout(NAP.min(until - now));
            }
        }
    }

    /// Enqueue the next step that waits for the stage before, if its frame is here or has begun to come.
    fn take_frame(&mut self, model: Model<'_>, ops: &mut Ops) -> Result<(), BackendError> {
        let Some(hop) = &mut self.hop else {
            return Ok(());
        };
        let mut steps = self.steps.iter_mut();
        let next = steps.find(|step| matches!(step.phase, Phase::Submitted));
        // Whoever gives it has the same late tokens.
        let Some(step) = next.filter(|step| !step.is_here && step.late.tokens().is_some()) else {
            return Ok(());
        };
        let bytes = frame_bytes(model.shape, step.computed_rows());
        let incoming = self.lanes[step.lane].edge.incoming.as_mut();
        let Some(into) = incoming.and_then(|all| all.as_mut_slice().get_mut(..bytes)) else {
            return Err(bug(format!("{bytes} bytes of the stage before have no room")));
        };
        step.is_here = hop.take(self.watch.as_ref(), step.ticket.0, into)?;
        match step.is_here {
            true => self.pump(model, ops),
            false => Ok(()),
        }
    }

    /// End the steps up to this one that are computed, in their order: give the next stage what it waits for.
    fn end_steps(&mut self, index: usize, model: Model<'_>) -> Result<(), BackendError> {
        for number in 0..=index {
            let step = &self.steps[number];
            match &step.phase {
                Phase::Done(_) => continue,
                Phase::Enqueued(event) if event.try_is_complete().map_err(refused)? => {}
                Phase::Submitted | Phase::Forwarded | Phase::Enqueued(_) => return Ok(()),
            }
            self.check_exchanges(number)?;
            if let (Some(hop), Some(outgoing)) = (&self.hop, &self.lanes[step.lane].edge.outgoing) {
                let bytes = frame_bytes(model.shape, step.computed_rows());
                let Some(frame) = outgoing.as_slice().get(..bytes) else {
                    return Err(bug(format!("{bytes} bytes for the stage behind have no room")));
                };
                hop.give(self.watch.as_ref(), step.ticket.0, frame)?;
            }
            self.finish(number, model);
        }
        Ok(())
    }

    /// Enqueue, behind everything of a step, to bring back whether an exchange has failed so far. Later steps may fail while the
    /// host has not yet seen that this one is done.
    pub(super) fn bring_back_whether_failed(&mut self, lane: usize) -> Result<(), BackendError> {
        let Some(exchange) = &self.exchange else {
            return Ok(());
        };
        let (from, to) = (exchange.failed(), self.lanes[lane].failed.as_mut_slice());
        // SAFETY: both are one word, and the host's is read behind the step's event.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) }.map_err(refused)
    }

    /// An error when an exchange of a step, which is done, has failed: what was computed behind it is worth nothing.
    fn check_exchanges(&self, index: usize) -> Result<(), BackendError> {
        let step = &self.steps[index];
        if self.exchange.is_none() || self.lanes[step.lane].failed.read(0) == 0 {
            return Ok(());
        }
        self.check_watch(step.ticket.0)?;
        Err(MeshError::Aborted.into())
    }

    /// The error by which a wait on the device has failed; none while all have ended well.
    pub(super) fn check_watch(&self, step: u64) -> Result<(), BackendError> {
        match &self.watch {
            Some(watch) => Ok(watch.check(step)?),
            None => Ok(()),
        }
    }

    /// Whether steps are under way, for which peers have to be there.
    pub(super) fn set_busy(&self, is_busy: bool) {
        if let Some(watch) = &self.watch {
            watch.set_busy(is_busy);
        }
    }

    /// Tell how many layers the device has computed.
    fn tell(&mut self, progress: &StepProgress) {
        let seen = self.work.layers_seen.read(0);
        for _ in 0..seen.wrapping_sub(self.layers_told) {
            progress.layer();
        }
        self.layers_told = seen;
    }

    /// Turn what came back into the step's output.
    fn finish(&mut self, index: usize, model: Model<'_>) {
        let step = &mut self.steps[index];
        let mut output = StepOutput::default();
        for group in step.groups.drain(..) {
            output.candidates.extend(group.read(&step.plan, model.shape));
            give_back(&mut self.lanes[step.lane], &mut self.rooms, group.room);
        }
        output
            .candidates
            .retain(|candidates| !step.late.is_cancelled(candidates.row));
        let leaves = &model.shape.hidden_leaves;
        for (row, state) in step.hidden.drain(..) {
            let leaf = |padded: &[u16]| -> Vec<f32> {
                padded[..leaves.width]
                    .iter()
                    .map(|bits| half::bf16::from_bits(*bits).to_f32())
                    .collect()
            };
            let mut sum = vec![0.0; model.shape.hidden];
            let mut states = state.as_slice().chunks_exact(leaves.stride());
            if matches!(step.plan.rows[row as usize].output, RowOutput::Hidden) {
                let values = states
                    .next()
                    .into_iter()
                    .flat_map(|state| state.chunks_exact(leaves.padded()));
                sum = values.flat_map(leaf).map(f64::from).collect();
            } else {
                for state in states {
                    pooling::add(&mut sum, state.chunks_exact(leaves.padded()).flat_map(leaf));
                }
            }
            output.hidden.push((row, sum));
        }
        self.lanes[step.lane].entries.clear();
        step.phase = Phase::Done(output);
        self.set_busy(!self.steps.iter().all(Step::is_done));
    }

    fn index(&self, ticket: Ticket) -> Result<usize, BackendError> {
        let index = self.steps.iter().position(|step| step.ticket == ticket);
        index.ok_or_else(|| bug(format!("step {} was not submitted, or is released", ticket.0)))
    }

    /// The logits of a sampled position, computed once more: they are needed too rarely to be kept.
    pub(super) fn fetch(
        &mut self,
        ticket: Ticket,
        (row, offset): (u32, u32),
        model: Model<'_>,
        ops: &mut Ops,
    ) -> Result<LogitShard, BackendError> {
        let why = |why: String| bug(format!("logits of step {}: {why}", ticket.0));
        let step = &self.steps[self.index(ticket)?];
        if !matches!(step.phase, Phase::Done(_)) {
            return Err(why("it is not computed".into()));
        }
        if !model.shape.has_head {
            return Err(why(
                "the last stage has the head, and this rank is of an earlier one".into(),
            ));
        }
        let sampled = |answer: &&llamero_engine::kv_state::Answer| {
            (answer.row, answer.offset) == (row, offset)
                && matches!(step.output(answer), RowOutput::Sample { .. })
        };
        let Some(state) = step.answers.iter().position(|answer| sampled(&answer)) else {
            return Err(why(format!("position {offset} of row {row} was not sampled")));
        };
        let vocab = model.shape.head_width();
        let mut room = match self.rooms.pop() {
            Some(room) => room,
            None => Room::new(self.stream.context(), vocab).map_err(refused)?,
        };
        let mut logits = self.pool.take::<f32>(vocab).map_err(refused)?;
        let mut sampler = Sampler {
            shape: model.shape,
            weights: model.weights,
            ops,
            pool: &self.pool,
            buffers: &mut self.work.sampling,
        };
        let places = [(row, offset)];
        let adjustments = step
            .late
            .adjustments()
            .map(|adjustments| (&places[..], adjustments));
        let states = &self.lanes_states[step.lane];
        sampler.logits(states, (state, 1), adjustments, &mut room)?;
        let from = ops.address(&self.work.sampling.logits);
        // SAFETY: both sides have that many; the host's is read after the stream was waited for.
        unsafe { result::memcpy_dtoh_async(logits.as_mut_slice(), from, self.stream.cu_stream()) }
            .map_err(refused)?;
        self.stream.synchronize().map_err(refused)?;
        room.clear();
        self.rooms.push(room);
        Ok(LogitShard {
            tokens: model.shape.vocab.clone(),
            logits: logits.as_slice().to_vec(),
        })
    }

    pub(super) fn save(&mut self, block: u32) -> Result<Vec<u8>, BackendError> {
        let Some(mut bytes) = self.state.begin_saved(block, self.cache.block_bytes()) else {
            return Err(self.no_block(block));
        };
        let block_size = self.sizes.block;
        if let Some(step) = self.steps.iter().find(|step| step.writes(block, block_size)) {
            return Err(bug(format!(
                "KV block {block} is saved before step {}, which writes it, is computed",
                step.ticket.0
            )));
        }
        self.cache.save(block, &mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn restore(&mut self, block: u32, bytes: &[u8]) -> Result<(), BackendError> {
        if self.state.filled(block).is_none() {
            return Err(self.no_block(block));
        }
        let block_bytes = self.cache.block_bytes();
        let (filled, data) = self.state.read_saved(bytes, block_bytes).map_err(bug)?;
        if let Some(step) = self.steps.iter().find(|step| step.uses(block)) {
            return Err(bug(format!(
                "KV block {block} is restored before step {}, which uses it, is computed",
                step.ticket.0
            )));
        }
        self.cache.restore(block, data)?;
        self.state.set_filled(block, filled);
        Ok(())
    }

    fn no_block(&self, block: u32) -> BackendError {
        bug(format!(
            "KV block {block} does not exist: there are {}",
            self.blocks
        ))
    }

    /// A step that is not done is waited for: its buffers are about to be used again.
    pub(super) fn release(&mut self, ticket: Ticket) {
        let Some(index) = self.steps.iter().position(|step| step.ticket == ticket) else {
            return;
        };
        let Some(step) = self.steps.remove(index) else {
            return;
        };
        if !matches!(step.phase, Phase::Submitted | Phase::Done(_)) {
            let _ = self.stream.synchronize();
        }
        for group in step.groups {
            give_back(&mut self.lanes[step.lane], &mut self.rooms, group.room);
        }
        self.free_lanes.push(step.lane);
    }
}

impl Drop for FormedGroup {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
            self.end();
        }
        // Pinned memory is given back at once, and the device may still be writing to it.
        let _ = self.stream.synchronize();
    }
}

impl FormedGroup {
    /// Wait until the device has ended its work, whose waits for peers are over. A process whose GPU does not end can neither
    /// give back its memory nor form again, so it dies, for its supervisor to start another one.
    fn end(&self) {
        let Ok(end) = self.stream.record_event(None) else {
            return;
        };
        let until = Instant::now() + ENDING;
        while let Ok(false) = end.try_is_complete() {
            if Instant::now() >= until {
                tracing::error!(
                    "the GPU has not ended its work {} s after the group did: this process ends, for another one to have the GPU",
                    ENDING.as_secs()
                );
                std::process::abort();
            }
            std::thread::park_timeout(NAP);
        }
    }
}

/// Host memory of results goes back to the lane that misses its own, else to all.
fn give_back(lane: &mut Lane, rooms: &mut Vec<Room>, mut room: Room) {
    room.clear();
    match lane.room {
        None => lane.room = Some(room),
        Some(_) => rooms.push(room),
    }
}

/// Slots whose tables a plan changes.
fn changed_slots(plan: &Plan) -> Vec<u32> {
    let deltas = &plan.blocks;
    let appends = deltas.appends.iter().map(|(slot, _)| *slot);
    let replaces = deltas.replaces.iter().map(|(slot, ..)| *slot);
    let mut slots: Vec<u32> = appends.chain(replaces).collect();
    slots.sort_unstable();
    slots.dedup();
    slots
}

/// KV blocks of this rank: as many as were asked for, if there is room for them beside what else is about to be allocated.
fn blocks(
    spec: &FormSpec,
    plan: &MemoryPlan,
    stream: &cudarc::driver::CudaStream,
) -> Result<u32, BackendError> {
    stream.synchronize().map_err(refused)?;
    let (free, total) = stream.context().mem_get_info().map_err(refused)?;
    let others = plan.workspace + plan.logits + reserve(total as u64);
    let left = (free as u64).saturating_sub(others);
    // One more than are told of: see `KvCache`.
    let asked = plan.blocks(spec.kv_bytes);
    let fit = plan.blocks(left).saturating_sub(1);
    if fit < asked {
        tracing::warn!(
            asked,
            fit,
            left,
            "the GPU has room for fewer KV blocks than asked for"
        );
    }
    let blocks = asked.min(fit);
    let needed = spec.limits.max_context.div_ceil(spec.limits.block_size);
    if blocks < needed {
        let (block, context) = (plan.kv_block, spec.limits.max_context);
        return Err(unusable(format!(
            "one sequence of {context} tokens needs {} bytes of KV cache; {} were asked for and {left} are left of the GPU's \
             {total} bytes: raise the KV memory, lower maxContextLength to at most {}, lower the tokens in a step, or use \
             more tensor-parallel ranks",
            u64::from(needed) * block,
            spec.kv_bytes,
            u64::from(blocks) * u64::from(spec.limits.block_size)
        )));
    }
    Ok(blocks)
}
