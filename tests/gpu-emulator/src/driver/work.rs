//! What streams do.

use std::ffi::c_void;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::error::{Code, Error, Result, error, fail};
use super::faults::{self, Kind};
use super::memory::Allocations;
use super::module::Function;
use super::state::{Driver, lock};
use super::stream::Stream;
use super::{device, log};
use crate::exec::fault::{Cause, Fault};
use crate::exec::grid::Launch;

/// One piece of work. Graphs perform theirs many times.
#[derive(Clone)]
pub(super) enum Work {
    Launch(Arc<KernelLaunch>),
    Copy {
        to: u64,
        from: Source,
        size: u64,
    },
    /// `count` elements of `width` bytes.
    Fill {
        to: u64,
        value: u32,
        width: u64,
        count: u64,
    },
    Free(u64),
    Record(Arc<Mutex<Option<Instant>>>),
    /// Until a stream has done so much.
    Wait(Arc<Stream>, u64),
    Host(HostCall),
    /// What another library of the emulator does.
    Call(Arc<dyn Fn() -> Result<()> + Send + Sync>),
    Graph(Arc<Vec<Work>>),
}

/// Where copied bytes come from.
#[derive(Clone)]
pub(super) enum Source {
    Address(u64),
    /// Pageable memory of the host, taken when the copy was enqueued: its owner may change it right after.
    Bytes(Arc<[u8]>),
}

/// A function of the host, called in a stream's order.
#[derive(Clone, Copy)]
pub(super) struct HostCall {
    pub(super) function: extern "C" fn(*mut c_void),
    pub(super) data: *mut c_void,
}

// SAFETY: the pointer is only handed back to the function that came with it; by the interface of `cuLaunchHostFunc` the
// caller expects it on a thread of the driver.
unsafe impl Send for HostCall {}
// SAFETY: as above; nothing here reads through the pointer.
unsafe impl Sync for HostCall {}

/// A launch with everything it was given.
pub(super) struct KernelLaunch {
    pub(super) function: Function,
    pub(super) params: Vec<u8>,
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) shared: u32,
    pub(super) cooperative: bool,
}

impl KernelLaunch {
    /// Check the shape against kernel and device, before it is enqueued.
    pub(super) fn check(&self, driver: &Driver) -> Result<()> {
        let name = &self.function.kernel().name;
        let threads: u64 = self.block.iter().map(|n| u64::from(*n)).product();
        let [x, y, z] = self.grid;
        if x == 0 || y == 0 || z == 0 || threads == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            fail!(
                InvalidValue,
                "`{name}`: a grid of {:?} blocks of {:?} threads",
                self.grid,
                self.block
            );
        }
        if self.block[0] > 1024 || self.block[1] > 1024 || self.block[2] > 64 || threads > 1024 {
            fail!(InvalidValue, "`{name}`: blocks of {:?} threads", self.block);
        }
        if threads > u64::from(self.function.max_threads()) {
            let most = self.function.max_threads();
            fail!(
                LaunchOutOfResources,
                "`{name}`: {threads} threads, it was compiled for {most}"
            );
        }
        if self.shared > self.function.dynamic_shared {
            let most = self.function.dynamic_shared;
            fail!(
                InvalidValue,
                "`{name}`: {} bytes of dynamic shared memory, {most} were allowed",
                self.shared
            );
        }
        if self.cooperative {
            let shared = self.shared + self.function.kernel().shared_bytes as u32;
            let each = device::occupancy(&driver.config, threads as u32, shared);
            let most = u64::from(each) * u64::from(driver.config.multiprocessors);
            let blocks: u64 = self.grid.iter().map(|n| u64::from(*n)).product();
            if blocks > most {
                fail!(
                    CooperativeLaunchTooLarge,
                    "`{name}`: {blocks} blocks, {most} are resident at once"
                );
            }
        }
        Ok(())
    }
}

impl Driver {
    /// Do one piece of a stream's work. A fault sticks to the stream's context.
    pub(super) fn perform(&self, stream: &Arc<Stream>, work: &Work) -> Result<()> {
        if let Work::Record(mark) = work {
            *lock(mark) = Some(Instant::now());
            return Ok(());
        }
        self.healthy(stream.context)?;
        match work {
            Work::Launch(launch) => self
                .run(stream, launch)
                .inspect_err(|fault| self.stick(stream.context, fault)),
            Work::Copy { to, from, size } => self.copy(*to, from, *size),
            Work::Fill {
                to,
                value,
                width,
                count,
            } => self.fill(*to, *value, *width, *count),
            Work::Free(base) => self.tables().memory.free(*base).map(|_| ()),
            Work::Wait(other, upto) => self.drain(other, *upto),
            Work::Host(call) => {
                (call.function)(call.data);
                Ok(())
            }
            Work::Call(call) => call().inspect_err(|fault| self.stick(stream.context, fault)),
            Work::Graph(graph) => graph.iter().try_for_each(|work| self.perform(stream, work)),
            Work::Record(_) => Ok(()),
        }
    }

    fn run(&self, stream: &Stream, launch: &KernelLaunch) -> Result<()> {
        let number = self.count_launch();
        let (global, keep) = {
            let tables = self.tables();
            let peers = tables
                .contexts
                .get(&stream.context)
                .map_or(0, |context| context.peers);
            tables.memory.reachable(stream.device, peers)
        };
        let kernel = launch.function.kernel();
        let started = Instant::now();
        let run = Launch {
            kernel,
            params: &launch.params,
            grid: launch.grid,
            block: launch.block,
            dynamic_shared: launch.shared as usize,
            cooperative: launch.cooperative,
            global: &global,
            order: self.config.order,
            host_threads: self.config.threads,
            multiprocessors: self.config.multiprocessors,
            number,
            deadline: started + self.config.timeout,
        };
        let result = match faults::of_launch(&self.config.faults, number, stream.device) {
            Some(kind) => Err(demanded(kind, &kernel.name, self.config.timeout)),
            None => run.run().map_err(|fault| of_fault(&fault)),
        };
        let reason = result.as_ref().err().map(|error| error.reason.as_str());
        log::launch(
            &self.config,
            &kernel.name,
            stream.device,
            [launch.grid, launch.block],
            reason,
            &global,
        );
        drop(keep);
        result
    }

    /// Copy bytes whose ranges were checked when the copy was enqueued; what was freed since is found now.
    fn copy(&self, to: u64, from: &Source, size: u64) -> Result<()> {
        let tables = self.tables();
        let keep = |memory: &Allocations, address| match memory.find(address) {
            Some(_) => memory.span(address, size),
            // Memory of the host that the driver does not know is the caller's to keep.
            None => Ok(None),
        };
        let _to = keep(&tables.memory, to)?;
        let (start, _from) = match from {
            Source::Address(address) => (*address as *const u8, keep(&tables.memory, *address)?),
            Source::Bytes(bytes) => (bytes.as_ptr(), None),
        };
        drop(tables);
        // SAFETY: device ranges are mapped (checked and kept above), host ranges are promised by the caller of the copy;
        // ranges may overlap.
        unsafe { std::ptr::copy(start, to as *mut u8, size as usize) };
        Ok(())
    }

    /// Bytes of the device's memory.
    pub(super) fn peek(&self, address: u64, size: u64) -> Result<Vec<u8>> {
        let _keep = self.tables().memory.span(address, size)?;
        let mut bytes = vec![0; size as usize];
        // SAFETY: the range lies in an allocation that is kept.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(bytes)
    }

    /// Write bytes to the device's memory.
    pub(super) fn poke(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let _keep = self.tables().memory.span(address, bytes.len() as u64)?;
        // SAFETY: the range lies in an allocation that is kept.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        Ok(())
    }

    fn fill(&self, to: u64, value: u32, width: u64, count: u64) -> Result<()> {
        let _keep = self.tables().memory.span(to, width * count)?;
        let bytes = value.to_le_bytes();
        for at in 0..count {
            // SAFETY: the whole range lies in an allocation that is kept.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), (to + at * width) as *mut u8, width as usize)
            };
        }
        Ok(())
    }

    /// Count an allocation, and fail it where that was asked for.
    pub(super) fn count_allocation(&self, size: u64) -> Result<()> {
        let count = self.allocations.fetch_add(1, Relaxed) + 1;
        if faults::of_allocation(&self.config.faults, count) {
            fail!(
                OutOfMemory,
                "allocation {count}, of {size} bytes, fails on demand"
            );
        }
        Ok(())
    }
}

fn of_fault(fault: &Fault) -> Error {
    let code = match fault.cause {
        Cause::OutOfBounds { .. } => Code::IllegalAddress,
        Cause::Misaligned { .. } => Code::MisalignedAddress,
        Cause::Trap => Code::IllegalInstruction,
        Cause::Timeout => Code::LaunchTimeout,
        Cause::LanesMissing { .. } | Cause::Barrier { .. } | Cause::Operands(_) => Code::LaunchFailed,
    };
    error(code, fault.to_string())
}

/// A fault that was asked for. A hang lasts as long as a launch may.
fn demanded(kind: Kind, kernel: &str, timeout: std::time::Duration) -> Error {
    let (code, what) = match kind {
        Kind::Ecc => (Code::EccUncorrectable, "an uncorrectable memory error"),
        Kind::Hang => {
            let (_keep, never) = std::sync::mpsc::channel::<()>();
            let _ = never.recv_timeout(timeout);
            (Code::LaunchTimeout, "a hang")
        }
        Kind::Illegal | Kind::OutOfMemory | Kind::Xid(_) => (Code::IllegalAddress, "an illegal address"),
    };
    error(code, format!("kernel `{kernel}`: {what}, on demand"))
}
