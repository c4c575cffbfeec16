//! Which of the announced blocks are here.
#![expect(
    clippy::indexing_slicing,
    reason = "numbers of blocks, files and sums come from the plan, which these lists were made from"
)]

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::fetch::Remote;
use super::file::Body;
use super::lock;
use super::plan::Plan;
use super::sum::Sum;
use crate::FetchError;

/// Requests at a time.
const IN_FLIGHT: usize = 16;
/// Bytes that are on their way or wait to be read. A reader that needs a block of its own may go beyond by that block.
const WINDOW_BYTES: u64 = 64 << 20;

/// The blocks of one load, fetched ahead of their readers.
#[derive(Debug)]
pub(super) struct Window {
    plan: Plan,
    files: Vec<Arc<Body>>,
    state: Mutex<State>,
    /// A block has come, a sum is complete, or something failed.
    news: Condvar,
    /// There may be something to fetch.
    work: Notify,
}

#[derive(Debug)]
struct State {
    blocks: Vec<BlockState>,
    /// The first block that was never taken.
    next: usize,
    /// Blocks that readers wait for.
    urgent: VecDeque<usize>,
    held: u64,
    /// None while somebody adds to it.
    sums: Vec<Option<Sum>>,
    failure: Option<Arc<FetchError>>,
    closed: bool,
}

#[derive(Debug, Default)]
struct BlockState {
    place: Place,
    /// Bytes that were read of it.
    read: u64,
    /// Whether no sum needs it any more.
    summed: bool,
}

#[derive(Debug, Default)]
enum Place {
    /// At the source.
    #[default]
    There,
    /// On its way.
    Coming,
    /// Here.
    Here(Arc<Vec<u8>>),
}

/// What somebody who fetches does next.
enum Task {
    Fetch(usize),
    Wait,
    Stop,
}

impl Window {
    /// Nothing is fetched before [`Self::start`].
    pub(super) fn new(mut plan: Plan, files: Vec<Arc<Body>>) -> Self {
        let mut blocks: Vec<BlockState> = Vec::new();
        blocks.resize_with(plan.blocks.len(), || BlockState {
            summed: true,
            ..BlockState::default()
        });
        for block in plan.sums.iter().flat_map(|sum| sum.blocks.clone()) {
            blocks[block].summed = false;
        }
        let sums = std::mem::take(&mut plan.sums);
        let state = State {
            blocks,
            next: 0,
            urgent: VecDeque::new(),
            held: 0,
            sums: sums.into_iter().map(Some).collect(),
            failure: None,
            closed: false,
        };
        Self {
            plan,
            files,
            state: Mutex::new(state),
            news: Condvar::new(),
            work: Notify::new(),
        }
    }

    /// Begin to fetch.
    pub(super) fn start(self: &Arc<Self>, runtime: &Handle, remote: &Arc<Remote>) {
        for _ in 0..IN_FLIGHT.min(self.plan.blocks.len()) {
            let (window, remote) = (Arc::clone(self), Arc::clone(remote));
            runtime.spawn(async move { window.fetch(&remote).await });
        }
    }

    /// Give up: whoever waits is told.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.blocks.clear();
        drop(state);
        self.news.notify_all();
        self.work.notify_waiters();
    }

    /// Fill `buffer` from the blocks; false when some of it was not announced.
    ///
    /// # Errors
    /// A block cannot be fetched.
    pub(super) fn read(&self, file: usize, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let end = offset + buffer.len() as u64;
        let Some(parts) = self.plan.find(file, offset..end) else {
            return Ok(false);
        };
        let mut rest = buffer;
        for (number, part) in parts {
            let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
            let start = part.start - self.plan.blocks[number].range.start;
            let bytes = part.end - part.start;
            let (target, after) = rest.split_at_mut(place(bytes));
            let block = self.wait(number)?;
            let part = block.get(place(start)..place(start + bytes));
            target.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            rest = after;
            self.count(number, bytes);
        }
        Ok(true)
    }

    /// Wait until the sums of all files that are read whole are known to be right.
    ///
    /// # Errors
    /// One is not.
    pub(super) fn finish(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        loop {
            state.failed()?;
            let is_complete = |sum: &Option<Sum>| sum.as_ref().is_some_and(Sum::is_complete);
            if state.sums.iter().all(is_complete) {
                drop(state);
                self.close();
                return Ok(());
            }
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wait(&self, number: usize) -> io::Result<Arc<Vec<u8>>> {
        let mut state = lock(&self.state);
        loop {
            state.failed()?;
            match &state.blocks[number].place {
                Place::Here(bytes) => return Ok(Arc::clone(bytes)),
                Place::There if !state.urgent.contains(&number) => {
                    state.urgent.push_back(number);
                    self.work.notify_waiters();
                }
                Place::There | Place::Coming => {}
            }
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn count(&self, number: usize, bytes: u64) {
        let mut state = lock(&self.state);
        if let Some(block) = state.blocks.get_mut(number) {
            block.read = block.read.saturating_add(bytes);
        }
        if state.drop_read(&self.plan, number) {
            self.work.notify_waiters();
        }
    }

    /// Fetch blocks until there are no more.
    async fn fetch(&self, remote: &Remote) {
        loop {
            let work = self.work.notified();
            tokio::pin!(work);
            // From now on no news is missed.
            work.as_mut().enable();
            let task = lock(&self.state).take(&self.plan);
            match task {
                Task::Stop => return,
                Task::Wait => work.await,
                Task::Fetch(number) => {
                    let block = &self.plan.blocks[number];
                    let body = &self.files[block.file];
                    let fetched = remote
                        .fetch(&body.source, block.range.clone(), Some(body.bytes))
                        .await;
                    self.arrived(number, fetched.map(|(bytes, _)| bytes));
                }
            }
        }
    }

    fn arrived(&self, number: usize, fetched: Result<Vec<u8>, FetchError>) {
        let mut state = lock(&self.state);
        match fetched {
            Ok(bytes) => {
                if let Some(block) = state.blocks.get_mut(number) {
                    block.place = Place::Here(Arc::new(bytes));
                }
            }
            Err(error) => {
                state.failure.get_or_insert(Arc::new(error));
                self.work.notify_waiters();
            }
        }
        drop(state);
        self.news.notify_all();
        self.sum(number);
    }

    /// Add what can be added to the sum that needs this block. One thread at a time has a sum; it goes on with the blocks
    /// that others bring meanwhile.
    fn sum(&self, number: usize) {
        let mut state = lock(&self.state);
        if state.blocks.get(number).is_none_or(|block| block.summed) {
            return;
        }
        let of_block = |sum: &Option<Sum>| sum.as_ref().is_some_and(|sum| sum.blocks.contains(&number));
        let Some(place) = state.sums.iter().position(of_block) else {
            return;
        };
        let Some(mut sum) = state.sums[place].take() else {
            return;
        };
        while !sum.is_complete() {
            let next = sum.blocks.start;
            let Some(Place::Here(bytes)) = state.blocks.get(next).map(|block| &block.place) else {
                break;
            };
            let bytes = Arc::clone(bytes);
            drop(state);
            sum.add(&bytes);
            drop(bytes);
            state = lock(&self.state);
            if let Some(block) = state.blocks.get_mut(next) {
                block.summed = true;
            }
            if state.drop_read(&self.plan, next) {
                self.work.notify_waiters();
            }
        }
        if sum.is_complete()
            && let Err(error) = sum.check()
        {
            state.failure.get_or_insert(Arc::new(error));
        }
        state.sums[place] = Some(sum);
        drop(state);
        self.news.notify_all();
    }
}

impl State {
    fn failed(&self) -> io::Result<()> {
        match &self.failure {
            Some(error) => Err(FetchError::to_io(error)),
            None if self.closed => Err(io::Error::other("the load is over")),
            None => Ok(()),
        }
    }

    /// What to fetch next: what somebody waits for, else the next block if there is room for it.
    fn take(&mut self, plan: &Plan) -> Task {
        if self.closed || self.failure.is_some() {
            return Task::Stop;
        }
        while let Some(number) = self.urgent.pop_front() {
            if matches!(self.blocks[number].place, Place::There) {
                self.make_room(plan, number);
                return self.coming(plan, number);
            }
        }
        while self.next < self.blocks.len() && !matches!(self.blocks[self.next].place, Place::There) {
            self.next += 1;
        }
        let Some(block) = plan.blocks.get(self.next) else {
            return Task::Wait;
        };
        if self.held > 0 && self.held + block.bytes() > WINDOW_BYTES {
            return Task::Wait;
        }
        self.next += 1;
        self.coming(plan, self.next - 1)
    }

    fn coming(&mut self, plan: &Plan, number: usize) -> Task {
        self.blocks[number].place = Place::Coming;
        self.held += plan.blocks[number].bytes();
        Task::Fetch(number)
    }

    /// Let blocks go that come before `number` and were not read to their end: whoever still wants them fetches them again.
    fn make_room(&mut self, plan: &Plan, number: usize) {
        for before in 0..number {
            if self.held + plan.blocks[number].bytes() <= WINDOW_BYTES {
                return;
            }
            if self.blocks[before].summed && plan.blocks[before].wanted.is_some() {
                self.leave(plan, before);
            }
        }
    }

    /// Let a block go if nobody wants it any more; whether it went.
    fn drop_read(&mut self, plan: &Plan, number: usize) -> bool {
        let Some(block) = self.blocks.get(number) else {
            return false;
        };
        let wanted = plan.blocks[number].wanted;
        let is_read = wanted.is_some_and(|wanted| block.read >= wanted);
        is_read && block.summed && self.leave(plan, number)
    }

    fn leave(&mut self, plan: &Plan, number: usize) -> bool {
        let place = &mut self.blocks[number].place;
        let here = matches!(place, Place::Here(_));
        if here {
            *place = Place::There;
            self.held = self.held.saturating_sub(plan.blocks[number].bytes());
        }
        here
    }
}
