//! One block: its warps, its shared memory and its barriers.

use super::access::Reach;
use super::fault::{Cause, Fault};
use super::grid::Launch;
use super::lanes::{Value, WARP, lanes};
use super::memory::GlobalPort;
use super::order::Turns;
use super::special::Position;
use super::warp::{Fragment, Wait, Warp, WarpFault};
use crate::ptx::ir::{BarOp, BarReduce};

/// How a turn of a block ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// All threads have exited.
    Done,
    Moved,
}

/// A block that is resident.
pub(super) struct Block<'a> {
    launch: &'a Launch<'a>,
    index: [u32; 3],
    warps: Vec<Warp>,
    shared: Vec<u8>,
    params: Vec<u8>,
    global: GlobalPort<'a>,
    turns: Turns,
}

/// Barriers of a block.
const BARRIERS: u32 = 16;

impl<'a> Block<'a> {
    pub(super) fn new(launch: &'a Launch<'a>, index: [u32; 3]) -> Self {
        let kernel = launch.kernel;
        let position = |warp| Position {
            warp,
            block: index,
            grid_dim: launch.grid,
            block_dim: launch.block,
            multiprocessors: launch.multiprocessors,
            static_shared: kernel.shared_bytes as u32,
            dynamic_shared: launch.dynamic_shared as u32,
            launch: launch.number,
        };
        let warps = launch.threads_per_block().div_ceil(WARP as u32);
        Self {
            launch,
            index,
            warps: (0..warps)
                .map(|warp| Warp::new(kernel.registers, kernel.local_bytes, position(warp)))
                .collect(),
            // Nobody may rely on what shared memory holds at the start.
            shared: vec![0xcd; launch.shared_bytes()],
            params: launch.params.to_vec(),
            global: GlobalPort::new(launch.global),
            turns: Turns::new(launch.order, warps as usize, index),
        }
    }

    /// Let every warp run for a while.
    pub(super) fn turn(&mut self) -> Result<Progress, Fault> {
        let mut moved = false;
        for (warp, budget) in self.turns.next() {
            let warp_state = &mut self.warps[warp];
            let mut local = std::mem::take(&mut warp_state.local);
            let mut reach = Reach {
                global: &mut self.global,
                shared: &mut self.shared,
                local: &mut local,
                local_bytes: self.launch.kernel.local_bytes,
                params: &mut self.params,
            };
            let result = warp_state.run(&self.launch.kernel.code, &mut reach, budget);
            warp_state.local = local;
            moved |= result.map_err(|fault| self.fault(warp, fault))? > 0;
        }
        if self.warps.iter().all(|warp| warp.fragments.is_empty()) {
            return Ok(Progress::Done);
        }
        moved |= self.release_barriers();
        if moved {
            Ok(Progress::Moved)
        } else {
            Err(self.stuck())
        }
    }

    fn fault(&self, warp: usize, (pc, (lane, cause)): WarpFault) -> Fault {
        Fault {
            kernel: self.launch.kernel.name.clone(),
            line: self.launch.kernel.code[pc as usize].line,
            block: self.index,
            thread: (warp * WARP + lane) as u32,
            lane: lane as u32,
            cause,
        }
    }

    /// A fault at the first thread that has not exited.
    pub(super) fn fault_here(&self, cause: Cause) -> Fault {
        let found = self.warps.iter().enumerate().find_map(|(warp, state)| {
            let fragment = state.fragments.first()?;
            Some((warp, fragment.pc, fragment.mask.trailing_zeros() as usize))
        });
        let (warp, pc, lane) = found.unwrap_or((0, 0, 0));
        self.fault(warp, (pc, (lane, cause)))
    }

    fn waiting(&self) -> impl Iterator<Item = (usize, &Fragment)> {
        let warps = self.warps.iter().enumerate();
        warps.flat_map(|(warp, state)| state.fragments.iter().map(move |fragment| (warp, fragment)))
    }

    /// Threads at a barrier, and how many it needs.
    fn barrier(&self, id: u32) -> Option<(u32, u32)> {
        let mut arrived = 0;
        let mut needed = None;
        for (_, fragment) in self.waiting() {
            if let Some(Wait::Barrier { id: at, threads, .. }) = fragment.wait
                && at == id
            {
                arrived += fragment.mask.count_ones();
                needed = needed.or(Some(threads));
            }
        }
        let live = || self.warps.iter().map(|warp| warp.live().count_ones()).sum();
        needed.map(|threads| (arrived, threads.unwrap_or_else(live)))
    }

    /// Open every barrier that is complete.
    fn release_barriers(&mut self) -> bool {
        let mut released = false;
        for id in 0..BARRIERS {
            if self
                .barrier(id)
                .is_some_and(|(arrived, needed)| arrived >= needed)
            {
                self.release(id);
                released = true;
            }
        }
        released
    }

    fn release(&mut self, id: u32) {
        let joined = self.reduce(id);
        for warp in &mut self.warps {
            for fragment in &mut warp.fragments {
                let Some(Wait::Barrier { id: at, reduce, .. }) = fragment.wait else {
                    continue;
                };
                if at != id {
                    continue;
                }
                if let Some(BarReduce { op, d, .. }) = reduce {
                    match op {
                        BarOp::Popc => u32::write(&mut warp.regs, d, fragment.mask, [joined.0; WARP]),
                        BarOp::And => warp
                            .regs
                            .set_pred(d, fragment.mask, if joined.1 { !0 } else { 0 }),
                        BarOp::Or => warp
                            .regs
                            .set_pred(d, fragment.mask, if joined.0 > 0 { !0 } else { 0 }),
                    }
                }
                fragment.wait = None;
                fragment.pc += 1;
            }
        }
    }

    /// How many threads of a reducing barrier gave true, and whether all did.
    fn reduce(&self, id: u32) -> (u32, bool) {
        let (mut holds, mut all) = (0, 0);
        for (warp, fragment) in self.waiting() {
            if let Some(Wait::Barrier {
                id: at,
                reduce: Some(reduce),
                ..
            }) = fragment.wait
                && at == id
            {
                let votes = self.warps[warp].regs.pred(reduce.a) & fragment.mask;
                holds += votes.count_ones();
                all += fragment.mask.count_ones();
            }
        }
        (holds, holds == all)
    }

    /// Nobody can move: name the first reason.
    fn stuck(&self) -> Fault {
        let Some((warp, fragment)) = self.waiting().next() else {
            return self.fault_here(Cause::Timeout);
        };
        let cause = match fragment.wait {
            Some(Wait::Lanes(members)) => Cause::LanesMissing {
                waiting: fragment.mask,
                missing: members & !fragment.mask,
            },
            Some(Wait::Barrier { id, .. }) => {
                let (arrived, expected) = self.barrier(id).unwrap_or_default();
                Cause::Barrier {
                    id,
                    arrived,
                    expected,
                }
            }
            None => Cause::Timeout,
        };
        let lane = lanes(fragment.mask).next().unwrap_or(0);
        self.fault(warp, (fragment.pc, (lane, cause)))
    }
}
