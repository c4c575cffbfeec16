//! The algorithm of a ring of words between one producer and one consumer, and of the bell that wakes who waits. Loom checks
//! it (`loom_tests`), so it knows neither where the words lie nor how a thread sleeps.

use std::sync::atomic::Ordering;
use std::time::Duration;

/// A counter or a flag that both sides see.
pub(super) trait Word {
    fn load(&self, order: Ordering) -> u32;
    fn store(&self, value: u32, order: Ordering);
    /// Add one, wrapping.
    fn increment(&self, order: Ordering);
    /// Sleep while the word is `value`, at most for `limit`; may return early.
    fn sleep(&self, value: u32, limit: Duration);
    /// Wake who sleeps on the word.
    fn wake(&self);
    /// A sequentially consistent fence.
    fn fence();
}

/// Eight bytes of data.
pub(super) trait Datum {
    fn get(&self) -> u64;
    fn set(&self, value: u64);
}

/// Bytes of a [`Datum`].
pub(super) const DATUM: usize = size_of::<u64>();

/// The other side broke the ring's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the counters of its ring in shared memory are {written} and {read}, further apart than the ring is long"
)]
pub(super) struct Broken {
    written: u32,
    read: u32,
}

/// A ring. What is pushed in several pieces must be popped in pieces that end where those end, except that either side may be
/// stopped at any datum by an empty or a full ring.
pub(super) struct Ring<'a, W, D> {
    /// Data pushed so far, wrapping; the producer's.
    pub(super) written: &'a W,
    /// Data popped so far, wrapping; the consumer's.
    pub(super) read: &'a W,
    /// Whether the producer waits for room; set by the producer, cleared by the consumer.
    pub(super) wants_room: &'a W,
    /// As many as a power of two.
    pub(super) data: &'a [D],
}

impl<W: Word, D: Datum> Ring<'_, W, D> {
    /// Push from the front of `bytes` as much as there is room for; how many bytes that was. All but the end of `bytes` are
    /// pushed by whole data. When not all fits, the consumer rings once there is room.
    pub(super) fn push(&self, bytes: &[u8]) -> Result<usize, Broken> {
        let count = self.push_some(bytes)?;
        if count == bytes.len() {
            return Ok(count);
        }
        self.wants_room.store(1, Ordering::Relaxed);
        // Either the consumer sees the wish after it has made room, or this sees the room.
        W::fence();
        Ok(count + self.push_some(bytes.get(count..).unwrap_or_default())?)
    }

    fn push_some(&self, bytes: &[u8]) -> Result<usize, Broken> {
        let written = self.written.load(Ordering::Relaxed);
        let held = self.held(written, self.read.load(Ordering::Acquire))?;
        let data = bytes.len().div_ceil(DATUM).min(self.data.len() - held);
        let taken = bytes.len().min(data * DATUM);
        let (front, back) = self.span(written, data);
        let (bytes, _) = bytes.split_at(taken);
        let (to_front, to_back) = bytes.split_at(taken.min(front.len() * DATUM));
        store(front, to_front);
        store(back, to_back);
        if data > 0 {
            self.written.store(behind(written, data), Ordering::Release);
        }
        Ok(taken)
    }

    /// Pop to the front of `into` what is there; how many bytes that was, and whether the producer waits for the room. All but
    /// the end of `into` are popped by whole data.
    pub(super) fn pop(&self, into: &mut [u8]) -> Result<(usize, bool), Broken> {
        let read = self.read.load(Ordering::Relaxed);
        let held = self.held(self.written.load(Ordering::Acquire), read)?;
        let data = into.len().div_ceil(DATUM).min(held);
        if data == 0 {
            return Ok((0, false));
        }
        let taken = into.len().min(data * DATUM);
        let (front, back) = self.span(read, data);
        let (into, _) = into.split_at_mut(taken);
        let (from_front, from_back) = into.split_at_mut(taken.min(front.len() * DATUM));
        load(front, from_front);
        load(back, from_back);
        self.read.store(behind(read, data), Ordering::Release);
        W::fence();
        let wanted = self.wants_room.load(Ordering::Relaxed) != 0;
        if wanted {
            self.wants_room.store(0, Ordering::Relaxed);
        }
        Ok((taken, wanted))
    }

    fn held(&self, written: u32, read: u32) -> Result<usize, Broken> {
        let held = written.wrapping_sub(read) as usize;
        if held > self.data.len() {
            return Err(Broken { written, read });
        }
        Ok(held)
    }

    /// So many data from a position on, up to the end of the ring and from its beginning.
    fn span(&self, from: u32, count: usize) -> (&[D], &[D]) {
        let from = from as usize & (self.data.len() - 1);
        let (beginning, end) = self.data.split_at(from);
        let front = count.min(end.len());
        (end.split_at(front).0, beginning.split_at(count - front).0)
    }
}

/// A counter, so many data later.
#[expect(
    clippy::cast_possible_truncation,
    reason = "no ring has more data than the counter counts"
)]
fn behind(counter: u32, data: usize) -> u32 {
    counter.wrapping_add(data as u32)
}

fn store<D: Datum>(data: &[D], bytes: &[u8]) {
    let mut whole = bytes.chunks_exact(DATUM);
    for (datum, bytes) in data.iter().zip(&mut whole) {
        let mut value = [0; DATUM];
        value.copy_from_slice(bytes);
        datum.set(u64::from_le_bytes(value));
    }
    let rest = whole.remainder();
    if let (Some(last), false) = (data.last(), rest.is_empty()) {
        let mut value = [0; DATUM];
        value.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        last.set(u64::from_le_bytes(value));
    }
}

fn load<D: Datum>(data: &[D], bytes: &mut [u8]) {
    let mut whole = bytes.chunks_exact_mut(DATUM);
    for (datum, bytes) in data.iter().zip(&mut whole) {
        bytes.copy_from_slice(&datum.get().to_le_bytes());
    }
    let rest = whole.into_remainder();
    if let (Some(last), false) = (data.last(), rest.is_empty()) {
        let value = last.get().to_le_bytes();
        rest.iter_mut().zip(value).for_each(|(to, from)| *to = from);
    }
}

/// Wakes one thread that waits for any of several rings.
pub(super) struct Bell<'a, W> {
    /// How often it rang, wrapping.
    pub(super) count: &'a W,
    /// Whether its thread sleeps or is about to.
    pub(super) asleep: &'a W,
}

impl<W: Word> Bell<'_, W> {
    /// To be read before the rings are looked at.
    pub(super) fn rung(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// Something has changed for who waits.
    pub(super) fn ring(&self) {
        self.count.increment(Ordering::Release);
        // Either the sleeper's flag is seen here, or the count is seen by who falls asleep.
        W::fence();
        if self.asleep.load(Ordering::Relaxed) != 0 {
            self.count.wake();
        }
    }

    /// Sleep until it rings, unless it has since `rung` was read. At most for `limit`; may return early.
    pub(super) fn sleep(&self, rung: u32, limit: Duration) {
        self.asleep.store(1, Ordering::Relaxed);
        W::fence();
        self.count.sleep(rung, limit);
        self.asleep.store(0, Ordering::Relaxed);
    }
}
