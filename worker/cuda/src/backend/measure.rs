//! What memory and exchanges give, apart from the steps that use them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, CudaSlice, CudaStream};
use llamero_engine::BackendError;

use super::CudaBackend;
use crate::error::{bug, refused};
use crate::exchange::Which;
use crate::ops::{MAX_ROWS, Ops};
use crate::preflight::SLOW;

/// How long reads one behind the other last by what the clock promises: launches and the memory's ramp are a small part of it.
const READ_SECONDS: f64 = 0.01;
/// Bytes of one read, at least and at most: more than any cache holds on GPUs that are fast enough, and few on slow ones.
const READ_BYTES: std::ops::RangeInclusive<u64> = (64 << 10)..=(256 << 20);
/// Reads one behind the other at most.
const MOST_READS: u64 = 256;
/// Clocks that sleep take a while to wake: reads are repeated for so long while they give less than they should.
const WAKING: Duration = Duration::from_secs(1);
/// Exchanges of one row and of as many as there are, one behind the other, whose mean counts; the best of some rounds, since a peer may come late. One
/// before them waits for the peers.
const ROUNDS: usize = 3;
const SMALL_EXCHANGES: u32 = 8;
const LARGE_EXCHANGES: u32 = 2;

fn event(stream: &Arc<CudaStream>) -> Result<CudaEvent, BackendError> {
    let event = stream
        .context()
        .new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
        .map_err(refused)?;
    event.record(stream).map_err(refused)?;
    Ok(event)
}

/// Seconds between two events, once the second has come.
fn seconds(start: &CudaEvent, end: &CudaEvent) -> Result<f64, BackendError> {
    end.synchronize().map_err(refused)?;
    Ok(f64::from(start.elapsed_ms(end).map_err(refused)?) / 1e3)
}

/// Bytes a second that reading the GPU's memory gives; none where too little of it is free. `nominal` is what it should give.
pub(super) fn read_bandwidth(ops: &mut Ops, nominal: Option<u64>) -> Result<Option<u64>, BackendError> {
    let stream = ops.stream().clone();
    let wanted = nominal.map_or(u64::MAX, |nominal| (nominal as f64 * READ_SECONDS) as u64);
    let bytes = wanted.clamp(*READ_BYTES.start(), *READ_BYTES.end());
    let reads = (wanted / bytes).clamp(1, MOST_READS);
    let (free, _) = ops.device().context.mem_get_info().map_err(refused)?;
    if (free as u64) < 4 * bytes {
        return Ok(None);
    }
    let read = repeat_reads(ops, (bytes, reads), nominal);
    // What was given back is free for all that is reckoned with from here on.
    stream.synchronize().map_err(refused)?;
    read.map(Some)
}

/// Bytes a second of `reads` reads of `bytes`, once clocks are awake.
fn repeat_reads(
    ops: &mut Ops,
    (bytes, reads): (u64, u64),
    nominal: Option<u64>,
) -> Result<u64, BackendError> {
    let stream = ops.stream().clone();
    let memory: CudaSlice<u8> = stream.alloc_zeros(bytes as usize).map_err(refused)?;
    let mut sum: CudaSlice<u32> = stream.alloc_zeros(1).map_err(refused)?;
    let until = Instant::now() + WAKING;
    loop {
        let start = event(&stream)?;
        for _ in 0..reads {
            ops.read_all(&memory, &mut sum)?;
        }
        let taken = seconds(&start, &event(&stream)?)?;
        let best = ((bytes * reads) as f64 / taken.max(1e-9)) as u64;
        let is_awake = nominal.is_none_or(|nominal| best as f64 >= SLOW * nominal as f64);
        if is_awake || Instant::now() >= until {
            return Ok(best);
        }
    }
}

impl CudaBackend {
    /// Measure what exchanges with the peers give, which do the same, and write it to the board. Not for a rank alone.
    pub(super) fn measure_exchanges(&mut self) -> Result<(), BackendError> {
        // A peer that dies meanwhile is noticed, as in a step.
        self.formed()?.set_busy(true);
        let small = self.best_exchange(1, SMALL_EXCHANGES)?;
        let large = self.best_exchange(MAX_ROWS, LARGE_EXCHANGES)?;
        let hidden = self.shape.hidden;
        self.formed()?.set_busy(false);
        let Some(exchange) = &self.formed()?.exchange else {
            return Ok(());
        };
        let sent = exchange.bytes_sent(Which::Ffn, MAX_ROWS * hidden) as f64;
        let (bandwidth, nanos) = ((sent / large) as u64, (small * 1e9) as u64);
        tracing::info!(
            "exchanges with the group's other GPUs: {:.1} us for a row, {:.1} GB/s",
            small * 1e6,
            sent / large / 1e9
        );
        self.board.update(|report| {
            report.exchange_bandwidth = Some(bandwidth);
            report.exchange_nanos = Some(nanos);
        });
        Ok(())
    }

    fn best_exchange(&mut self, rows: usize, count: u32) -> Result<f64, BackendError> {
        self.exchange_seconds(rows, 1)?;
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            best = best.min(self.exchange_seconds(rows, count)?);
        }
        Ok(best)
    }

    /// Seconds of a sum over all ranks of `rows` hidden rows and of its joining, by the device's clock: the mean of `count`, one
    /// behind the other. The other ranks do the same, unless this one exchanges with itself.
    ///
    /// # Errors
    /// [`BackendError::Bug`] when no group of several ranks was formed; the driver's.
    pub fn exchange_seconds(&mut self, rows: usize, count: u32) -> Result<f64, BackendError> {
        let width = self.shape.hidden;
        let (_, formed, ops) = self.parts()?;
        let Some(exchange) = &formed.exchange else {
            return Err(bug("a rank alone exchanges nothing"));
        };
        if rows == 0 || rows > MAX_ROWS || count == 0 {
            return Err(bug(format!(
                "{count} exchanges of {rows} rows; at most {MAX_ROWS} rows are exchanged at a time"
            )));
        }
        let stream = ops.stream().clone();
        let start = event(&stream)?;
        for _ in 0..count {
            exchange.sum(ops, Which::Ffn, &formed.work.roots, rows * width)?;
            let received = exchange.received(Which::Ffn, rows * width, None);
            ops.join_roots(&mut formed.work.hidden, received, rows, width)?;
        }
        let taken = seconds(&start, &event(&stream)?)?;
        formed.check_watch(0)?;
        Ok(taken / f64::from(count))
    }
}
