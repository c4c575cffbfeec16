//! Collectives between processes, and what a lost rank does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Child, Command};
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use libloading::{Library, Symbol};
use llamero_gpu_emulator::emulated;

const FLOAT32: u32 = 7;
/// `rank:unique id in hex` of a process that is one rank.
const RANK: &str = "LLAMERO_GPU_EMULATOR_TEST_RANK";

#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

/// A communicator, and the stream it works on.
struct Rank {
    library: Library,
    handle: u64,
    stream: Arc<CudaStream>,
}

type Collective = extern "C" fn(u64, u64, usize, u32, u64, u64) -> u32;
type PointToPoint = extern "C" fn(u64, usize, u32, i32, u64, u64) -> u32;
type Reduce = extern "C" fn(u64, u64, usize, u32, u32, u64, u64) -> u32;

fn library() -> Library {
    // SAFETY: the emulator has no initialisers.
    unsafe { Library::new("libnccl.so.2") }.unwrap()
}

/// A function of the library.
fn symbol<'a, T>(library: &'a Library, name: &str) -> Symbol<'a, T> {
    // SAFETY: callers name the type that `nccl.h` gives the function.
    unsafe { library.get(name.as_bytes()) }.unwrap()
}

impl Rank {
    fn join(ranks: i32, rank: i32, id: UniqueId) -> Self {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let (library, mut handle) = (library(), 0);
        let init: Symbol<'_, extern "C" fn(*mut u64, i32, UniqueId, i32) -> u32> =
            symbol(&library, "ncclCommInitRank");
        assert_eq!(init(&mut handle, ranks, id, rank), 0);
        Self {
            library,
            handle,
            stream,
        }
    }

    fn address<T>(&self, buffer: &CudaSlice<T>) -> u64 {
        buffer.device_ptr(&self.stream).0
    }

    fn stream(&self) -> u64 {
        self.stream.cu_stream() as u64
    }

    fn all_gather(&self, from: &CudaSlice<f32>, to: &CudaSlice<f32>) -> u32 {
        let call: Symbol<'_, Collective> = symbol(&self.library, "ncclAllGather");
        call(
            self.address(from),
            self.address(to),
            from.len(),
            FLOAT32,
            self.handle,
            self.stream(),
        )
    }

    /// Of a function that takes the communicator and nothing else.
    fn plain(&self, name: &str) -> u32 {
        let call: Symbol<'_, extern "C" fn(u64) -> u32> = symbol(&self.library, name);
        call(self.handle)
    }

    fn async_error(&self) -> u32 {
        let call: Symbol<'_, extern "C" fn(u64, *mut u32) -> u32> =
            symbol(&self.library, "ncclCommGetAsyncError");
        let mut error = 0;
        assert_eq!(call(self.handle, &mut error), 0);
        error
    }
}

/// Start this test again as each of `ranks` ranks.
fn start(ranks: usize) -> Vec<Child> {
    let library = library();
    let make: Symbol<'_, extern "C" fn(*mut UniqueId) -> u32> = symbol(&library, "ncclGetUniqueId");
    let mut id = UniqueId([0; 128]);
    assert_eq!(make(&mut id), 0);
    let hex: String = id.0.iter().map(|byte| format!("{byte:02x}")).collect();
    let test = std::thread::current().name().unwrap().to_owned();
    let start = |rank| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([&test, "--exact", "--nocapture"])
            .env(RANK, format!("{rank}:{hex}"))
            .spawn()
            .unwrap()
    };
    (0..ranks).map(start).collect()
}

/// The rank that this process is.
fn mine() -> Option<(i32, UniqueId)> {
    let text = std::env::var(RANK).ok()?;
    let (rank, hex) = text.split_once(':')?;
    let byte = |i: usize| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap();
    Some((rank.parse().unwrap(), UniqueId(std::array::from_fn(byte))))
}

fn exchange(rank: i32, id: UniqueId) {
    let me = Rank::join(3, rank, id);
    let own = me.stream.clone_htod(&[rank as f32 + 1.0; 2]).unwrap();
    let all = me.stream.alloc_zeros::<f32>(6).unwrap();
    assert_eq!(me.all_gather(&own, &all), 0);
    assert_eq!(
        me.stream.clone_dtoh(&all).unwrap(),
        [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    );
    // Around the ring in one group.
    let got = me.stream.alloc_zeros::<f32>(2).unwrap();
    let start: Symbol<'_, extern "C" fn() -> u32> = symbol(&me.library, "ncclGroupStart");
    let end: Symbol<'_, extern "C" fn() -> u32> = symbol(&me.library, "ncclGroupEnd");
    let send: Symbol<'_, PointToPoint> = symbol(&me.library, "ncclSend");
    let receive: Symbol<'_, PointToPoint> = symbol(&me.library, "ncclRecv");
    assert_eq!(start(), 0);
    assert_eq!(
        receive(
            me.address(&got),
            2,
            FLOAT32,
            (rank + 2) % 3,
            me.handle,
            me.stream()
        ),
        0
    );
    assert_eq!(
        send(
            me.address(&own),
            2,
            FLOAT32,
            (rank + 1) % 3,
            me.handle,
            me.stream()
        ),
        0
    );
    assert_eq!(end(), 0);
    assert_eq!(
        me.stream.clone_dtoh(&got).unwrap(),
        [((rank + 2) % 3) as f32 + 1.0; 2]
    );
    let reduce: Symbol<'_, Reduce> = symbol(&me.library, "ncclAllReduce");
    assert_eq!(
        reduce(
            me.address(&own),
            me.address(&got),
            2,
            FLOAT32,
            0,
            me.handle,
            me.stream()
        ),
        0
    );
    assert_eq!(me.stream.clone_dtoh(&got).unwrap(), [6.0; 2]);
    assert_eq!(me.plain("ncclCommDestroy"), 0);
}

fn lose_the_last(rank: i32, id: UniqueId) {
    let me = Rank::join(3, rank, id);
    if rank == 2 {
        // Gone without a word.
        std::process::exit(0);
    }
    let own = me.stream.clone_htod(&[1.0f32]).unwrap();
    let all = me.stream.alloc_zeros::<f32>(3).unwrap();
    assert_eq!(me.all_gather(&own, &all), 0);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| me.stream.synchronize());
        while me.async_error() == 0 {
            std::thread::yield_now();
        }
        assert_eq!(me.async_error(), 6);
        assert!(!waiting.is_finished(), "the stream waits for an abort");
        assert_eq!(me.plain("ncclCommAbort"), 0);
        waiting.join().unwrap().unwrap();
    });
    // The context lives on.
    assert_eq!(me.stream.clone_dtoh(&own).unwrap(), [1.0]);
}

emulated! {
    fn ranks_exchange_over_tcp() on ["streams=eager", "streams=deferred"], {
        let _context = CudaContext::new(0).unwrap();
        match mine() {
            Some((rank, id)) => exchange(rank, id),
            None => assert!(start(3).into_iter().all(|mut rank| rank.wait().unwrap().success())),
        }
    }

    fn a_lost_rank_is_an_error_and_an_abort_ends_the_wait() on ["streams=deferred"], {
        let _context = CudaContext::new(0).unwrap();
        match mine() {
            Some((rank, id)) => lose_the_last(rank, id),
            None => assert!(start(3).into_iter().all(|mut rank| rank.wait().unwrap().success())),
        }
    }
}
