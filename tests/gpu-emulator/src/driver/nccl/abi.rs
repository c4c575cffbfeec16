//! The exported functions of `libnccl.so.2`.

use std::cell::RefCell;
use std::ffi::{c_char, c_void};
use std::sync::Arc;

use super::communicator::{Communicator, Exchange, Transfer};
use super::mesh::{ID_BYTES, MAX_RANKS, unique_id};
use crate::driver::abi::Out;
use crate::driver::error::{Code, Result, fail};
use crate::driver::log::complain;
use crate::driver::state::driver;
use crate::driver::work::Work;

/// 2.32.3.
const VERSION: i32 = 23_203;
/// `ncclFloat32` and `ncclSum`.
const FLOAT32: u32 = 7;
const SUM: u32 = 0;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; ID_BYTES]);

/// Work of a group that was started and not ended: by communicator and stream.
#[derive(Default)]
struct Group {
    depth: u32,
    parts: Vec<(u64, u64, Exchange)>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

fn answer(call: &str, body: impl FnOnce() -> Result<()>) -> u32 {
    match body() {
        Ok(()) => 0,
        Err(error) => {
            complain(call, &error.reason);
            match error.code {
                Code::InvalidValue | Code::InvalidHandle => 4,
                Code::NotSupported => 5,
                Code::Unknown => 2,
                _ => 1,
            }
        }
    }
}

/// Define exported functions whose bodies give a [`Result`].
macro_rules! calls {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "the names of NCCL")]
            extern "C" fn $name($($arg: $ty),*) -> u32 {
                answer(stringify!($name), move || $body)
            }
        )*
    };
}

fn communicator(handle: u64) -> Result<Arc<Communicator>> {
    match driver()?.tables().communicators.get(&handle) {
        Some(communicator) => Ok(communicator.clone()),
        None => fail!(InvalidHandle, "{handle:#x} is no communicator"),
    }
}

fn begin(id: UniqueId, ranks: i32, rank: i32) -> Result<u64> {
    let driver = driver()?;
    let (_, device) = driver.current()?;
    let (Ok(ranks), Ok(rank)) = (usize::try_from(ranks), usize::try_from(rank)) else {
        fail!(InvalidValue, "rank {rank} of {ranks}");
    };
    if rank >= ranks || ranks > MAX_RANKS {
        fail!(InvalidValue, "rank {rank} of {ranks}");
    }
    let joined = match Communicator::new(&id.0, ranks, rank, device) {
        Ok(joined) => joined,
        Err(reason) => fail!(Unknown, "rank {rank} does not reach the others: {reason}"),
    };
    let mut tables = driver.tables();
    let handle = tables.handle();
    tables.communicators.insert(handle, Arc::new(joined));
    Ok(handle)
}

fn end(handle: u64) -> Result<()> {
    communicator(handle)?.abort();
    driver()?.tables().communicators.remove(&handle);
    Ok(())
}

/// Bytes of an `ncclDataType_t`.
fn element_bytes(kind: u32) -> Result<u64> {
    Ok(match kind {
        0 | 1 | 10 | 11 => 1,
        2 | 3 | 7 => 4,
        4 | 5 | 8 => 8,
        6 | 9 => 2,
        other => fail!(InvalidValue, "{other} is no data type"),
    })
}

/// Enqueue an exchange, or keep it until the group ends.
fn submit(handle: u64, stream: u64, exchange: Exchange) -> Result<()> {
    let grouped = GROUP.with_borrow_mut(|group| {
        if group.depth == 0 {
            return Some(exchange);
        }
        let found = group
            .parts
            .iter_mut()
            .find(|part| (part.0, part.1) == (handle, stream));
        match found {
            Some((_, _, all)) => {
                all.sends.extend(exchange.sends);
                all.receives.extend(exchange.receives);
            }
            None => group.parts.push((handle, stream, exchange)),
        }
        None
    });
    grouped.map_or(Ok(()), |exchange| enqueue(handle, stream, exchange))
}

fn enqueue(handle: u64, stream: u64, exchange: Exchange) -> Result<()> {
    let (driver, communicator) = (driver()?, communicator(handle)?);
    for part in exchange.sends.iter().chain(&exchange.receives) {
        if part.peer >= communicator.ranks {
            fail!(InvalidValue, "rank {} of {}", part.peer, communicator.ranks);
        }
        driver.tables().memory.span(part.address, part.bytes)?;
    }
    let stream = driver.stream(stream)?;
    let work = move || communicator.perform(driver, &exchange);
    driver.enqueue(&stream, Work::Call(Arc::new(work)))
}

fn all_gather(from: u64, to: u64, bytes: u64, communicator: &Communicator) -> Exchange {
    let each = |peer: usize, address| Transfer { peer, address, bytes };
    Exchange {
        sends: (0..communicator.ranks).map(|peer| each(peer, from)).collect(),
        receives: (0..communicator.ranks)
            .map(|peer| each(peer, to + peer as u64 * bytes))
            .collect(),
    }
}

/// Sum in the order of ranks, through memory of the device.
fn all_reduce(from: u64, to: u64, count: u64, handle: u64, stream: u64) -> Result<()> {
    let (driver, communicator) = (driver()?, communicator(handle)?);
    let bytes = 4 * count;
    driver.tables().memory.span(from, bytes)?;
    driver.tables().memory.span(to, bytes)?;
    let stream = driver.stream(stream)?;
    let all = bytes * communicator.ranks as u64;
    let work = move || {
        let room = driver
            .tables()
            .memory
            .allocate(communicator.device, all, u64::MAX)?;
        let gathered = communicator
            .perform(driver, &all_gather(from, room, bytes, &communicator))
            .and_then(|()| driver.peek(room, all));
        driver.tables().memory.free(room)?;
        let gathered = gathered?;
        let word = |rank: usize, i: usize| {
            let at = rank * bytes as usize + 4 * i;
            f32::from_le_bytes([gathered[at], gathered[at + 1], gathered[at + 2], gathered[at + 3]])
        };
        let sums = (0..count as usize)
            .map(|i| (1..communicator.ranks).fold(word(0, i), |sum, rank| sum + word(rank, i)));
        driver.poke(to, &sums.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
    };
    driver.enqueue(&stream, Work::Call(Arc::new(work)))
}

calls! {
    fn ncclGetVersion(version: Out<i32>) {
        version.set(VERSION)
    }

    fn ncclGetUniqueId(id: Out<UniqueId>) {
        match unique_id() {
            Ok(made) => id.set(UniqueId(made)),
            Err(reason) => fail!(Unknown, "no meeting point: {reason}"),
        }
    }

    fn ncclCommInitRank(communicator: Out<u64>, ranks: i32, id: UniqueId, rank: i32) {
        communicator.set(begin(id, ranks, rank)?)
    }

    // Of the configuration only what the defaults say is done: a blocking communicator.
    fn ncclCommInitRankConfig(communicator: Out<u64>, ranks: i32, id: UniqueId, rank: i32, _config: *const c_void) {
        communicator.set(begin(id, ranks, rank)?)
    }

    fn ncclCommFinalize(handle: u64) {
        communicator(handle).map(|_| ())
    }

    fn ncclCommDestroy(handle: u64) {
        end(handle)
    }

    fn ncclCommAbort(handle: u64) {
        end(handle)
    }

    fn ncclCommCount(handle: u64, count: Out<i32>) {
        count.set(communicator(handle)?.ranks as i32)
    }

    fn ncclCommUserRank(handle: u64, rank: Out<i32>) {
        rank.set(communicator(handle)?.rank as i32)
    }

    fn ncclCommCuDevice(handle: u64, device: Out<i32>) {
        device.set(communicator(handle)?.device as i32)
    }

    // 6: a remote error.
    fn ncclCommGetAsyncError(handle: u64, error: Out<u32>) {
        error.set(if communicator(handle)?.lost() { 6 } else { 0 })
    }

    fn ncclAllGather(from: u64, to: u64, count: usize, kind: u32, handle: u64, stream: u64) {
        let exchange = all_gather(from, to, count as u64 * element_bytes(kind)?, &*communicator(handle)?);
        submit(handle, stream, exchange)
    }

    fn ncclAllReduce(from: u64, to: u64, count: usize, kind: u32, op: u32, handle: u64, stream: u64) {
        if (kind, op) != (FLOAT32, SUM) {
            fail!(NotSupported, "only sums of f32 are reduced");
        }
        all_reduce(from, to, count as u64, handle, stream)
    }

    fn ncclSend(from: u64, count: usize, kind: u32, peer: i32, handle: u64, stream: u64) {
        let part = Transfer { peer: peer as usize, address: from, bytes: count as u64 * element_bytes(kind)? };
        submit(handle, stream, Exchange { sends: vec![part], receives: Vec::new() })
    }

    fn ncclRecv(to: u64, count: usize, kind: u32, peer: i32, handle: u64, stream: u64) {
        let part = Transfer { peer: peer as usize, address: to, bytes: count as u64 * element_bytes(kind)? };
        submit(handle, stream, Exchange { sends: Vec::new(), receives: vec![part] })
    }

    fn ncclGroupStart() {
        GROUP.with_borrow_mut(|group| group.depth += 1);
        Ok(())
    }

    fn ncclGroupEnd() {
        let parts = GROUP.with_borrow_mut(|group| match group.depth {
            0 => None,
            1 => {
                group.depth = 0;
                Some(std::mem::take(&mut group.parts))
            }
            _ => {
                group.depth -= 1;
                Some(Vec::new())
            }
        });
        let Some(parts) = parts else {
            fail!(InvalidValue, "no group was started");
        };
        parts.into_iter().try_for_each(|(handle, stream, exchange)| enqueue(handle, stream, exchange))
    }
}

/// Texts for `ncclResult_t`.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the names of NCCL")]
extern "C" fn ncclGetErrorString(code: u32) -> *const c_char {
    let text = match code {
        0 => c"no error",
        1 => c"unhandled cuda error",
        2 => c"unhandled system error",
        4 => c"invalid argument",
        5 => c"invalid usage",
        6 => c"remote process exited or there was a network error",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

/// What was wrong stands on standard error.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the names of NCCL")]
extern "C" fn ncclGetLastError(_communicator: u64) -> *const c_char {
    c"see standard error".as_ptr()
}
