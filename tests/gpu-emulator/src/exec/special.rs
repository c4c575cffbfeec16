//! Special registers: where a thread is.

use std::time::{SystemTime, UNIX_EPOCH};

use super::lanes::{Lanes, Registers, Value, WARP};
use crate::ptx::ir::{Reg, Special};

/// Where the threads of one warp are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    pub(super) warp: u32,
    pub(super) block: [u32; 3],
    pub(super) grid_dim: [u32; 3],
    pub(super) block_dim: [u32; 3],
    pub(super) multiprocessors: u32,
    pub(super) static_shared: u32,
    pub(super) dynamic_shared: u32,
    pub(super) launch: u64,
}

impl Position {
    /// Lanes that are threads of the block.
    pub(super) fn threads(&self) -> u32 {
        let threads: u32 = self.block_dim.iter().product();
        let here = threads.saturating_sub(self.warp * WARP as u32).min(WARP as u32);
        1u64.wrapping_shl(here).wrapping_sub(1) as u32
    }

    fn thread(&self, axis: usize) -> Lanes<u32> {
        std::array::from_fn(|lane| {
            let thread = self.warp * WARP as u32 + lane as u32;
            let [x, y, _] = self.block_dim;
            [thread % x, thread / x % y, thread / x / y][axis]
        })
    }

    /// Write a special register's value to `d`.
    pub(super) fn read(
        &self,
        regs: &mut Registers,
        mask: u32,
        wide: bool,
        d: Reg,
        from: Special,
        steps: u64,
    ) {
        if wide {
            return u64::write(regs, d, mask, [self.wide(from, steps); WARP]);
        }
        let lane = |f: fn(u32) -> u32| std::array::from_fn(|lane| f(lane as u32));
        let values = match from {
            Special::Tid(axis) => self.thread(usize::from(axis)),
            Special::LaneId => lane(|lane| lane),
            Special::LaneMaskEq => lane(|lane| 1 << lane),
            Special::LaneMaskLt => lane(|lane| (1 << lane) - 1),
            Special::LaneMaskLe => lane(|lane| u32::MAX >> (31 - lane)),
            Special::LaneMaskGt => lane(|lane| !(u32::MAX >> (31 - lane))),
            Special::LaneMaskGe => lane(|lane| !((1 << lane) - 1)),
            _ => [self.uniform(from, steps); WARP],
        };
        u32::write(regs, d, mask, values);
    }

    fn wide(&self, from: Special, steps: u64) -> u64 {
        match from {
            Special::GlobalTimer => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                now.as_nanos() as u64
            }
            Special::GridId => self.launch,
            _ => steps,
        }
    }

    fn uniform(&self, from: Special, steps: u64) -> u32 {
        let threads: u32 = self.block_dim.iter().product();
        match from {
            Special::Ntid(axis) => self.block_dim[usize::from(axis)],
            Special::Ctaid(axis) => self.block[usize::from(axis)],
            Special::Nctaid(axis) => self.grid_dim[usize::from(axis)],
            Special::WarpId => self.warp,
            Special::NwarpId => threads.div_ceil(WARP as u32),
            Special::NsmId => self.multiprocessors,
            Special::SmId => self.block[0] % self.multiprocessors.max(1),
            Special::DynamicSmemSize => self.dynamic_shared,
            Special::TotalSmemSize => self.static_shared + self.dynamic_shared,
            Special::One => 1,
            Special::Clock => steps as u32,
            _ => 0,
        }
    }
}
