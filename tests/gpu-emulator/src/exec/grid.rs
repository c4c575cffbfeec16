//! A launch: all blocks of a grid, on a few host threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use super::block::{Block, Progress};
use super::fault::{Cause, Fault};
use super::memory::Global;
use super::order::{Order, block_at};
use crate::ptx::Kernel;

/// Everything a launch needs.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The entry point.
    pub kernel: &'a Kernel,
    /// The parameter block, laid out as [`Kernel::params`] says.
    pub params: &'a [u8],
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Threads of a block along each axis.
    pub block: [u32; 3],
    /// Bytes of shared memory beyond what the kernel declares.
    pub dynamic_shared: usize,
    /// All blocks are resident and make progress together. The caller checks that they fit.
    pub cooperative: bool,
    /// Memory that the kernel may touch.
    pub global: &'a Global,
    /// Order of warps and blocks.
    pub order: Order,
    /// Host threads to run on.
    pub host_threads: usize,
    /// What `%nsmid` gives.
    pub multiprocessors: u32,
    /// What `%gridid` gives.
    pub number: u64,
    /// When the launch is given up.
    pub deadline: Instant,
}

impl Launch<'_> {
    pub(super) fn threads_per_block(&self) -> u32 {
        self.block.iter().product()
    }

    fn blocks(&self) -> u64 {
        self.grid.iter().map(|n| u64::from(*n)).product()
    }

    /// Bytes of shared memory of a block.
    pub(super) fn shared_bytes(&self) -> usize {
        match self.dynamic_shared {
            0 => self.kernel.shared_bytes,
            dynamic => crate::ptx::dynamic_shared(self.kernel.shared_bytes) + dynamic,
        }
    }

    fn index(&self, block: u64) -> [u32; 3] {
        let [x, y, _] = self.grid.map(u64::from);
        [block % x, block / x % y, block / x / y].map(|index| index as u32)
    }

    /// Run the grid to its end.
    ///
    /// # Errors
    /// The [`Fault`] that ended it; of several at once, any one.
    pub fn run(&self) -> Result<(), Fault> {
        let work = Work {
            launch: self,
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            fault: Mutex::new(None),
        };
        let threads = self
            .host_threads
            .clamp(1, 64)
            .min(self.blocks().try_into().unwrap_or(64))
            .max(1);
        if threads == 1 {
            work.run(0, 1);
        } else {
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let work = &work;
                    scope.spawn(move || work.run(thread as u64, threads as u64));
                }
            });
        }
        match work
            .fault
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
        {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }
}

/// What the host threads of a launch share.
struct Work<'a> {
    launch: &'a Launch<'a>,
    next: AtomicU64,
    stop: AtomicBool,
    fault: Mutex<Option<Fault>>,
}

impl Work<'_> {
    fn run(&self, thread: u64, threads: u64) {
        let result = if self.launch.cooperative {
            self.together(thread, threads)
        } else {
            self.one_by_one()
        };
        if let Err(fault) = result {
            self.stop.store(true, Relaxed);
            let mut first = self
                .fault
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            first.get_or_insert(fault);
        }
    }

    /// A thread's share of the blocks, all of them resident, each a turn at a time.
    fn together(&self, thread: u64, threads: u64) -> Result<(), Fault> {
        let count = self.launch.blocks();
        let mut blocks: Vec<Block<'_>> = (thread..count)
            .step_by(threads as usize)
            .map(|i| {
                Block::new(
                    self.launch,
                    self.launch.index(block_at(self.launch.order, i, count)),
                )
            })
            .collect();
        while !blocks.is_empty() && !self.stop.load(Relaxed) {
            let mut left = Vec::with_capacity(blocks.len());
            for mut block in blocks {
                if self.turn(&mut block)? == Progress::Moved {
                    left.push(block);
                }
            }
            blocks = left;
        }
        Ok(())
    }

    fn one_by_one(&self) -> Result<(), Fault> {
        let count = self.launch.blocks();
        while !self.stop.load(Relaxed) {
            let i = self.next.fetch_add(1, Relaxed);
            if i >= count {
                return Ok(());
            }
            let mut block = Block::new(
                self.launch,
                self.launch.index(block_at(self.launch.order, i, count)),
            );
            while self.turn(&mut block)? == Progress::Moved {
                if self.stop.load(Relaxed) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn turn(&self, block: &mut Block<'_>) -> Result<Progress, Fault> {
        if Instant::now() > self.launch.deadline {
            return Err(block.fault_here(Cause::Timeout));
        }
        block.turn()
    }
}
