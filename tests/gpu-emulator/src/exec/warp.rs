//! One warp: lanes that run together, part, and join again.
//!
//! Each lane has a program counter; lanes with the same one form a fragment. The fragment that is furthest behind runs,
//! so that lanes which left a loop or skipped a branch wait for the others and join them at the same instruction.
//! `.sync` instructions wait for all lanes that they name, as hardware since sm_70 does.

use super::access::{Copies, LaneFault, Reach};
use super::alu;
use super::collective;
use super::fault::Cause;
use super::lanes::{Registers, Value, WARP, lanes};
use super::special::Position;
use crate::ptx::ir::{BarReduce, Inst, Op, Src};

/// Lanes at the same instruction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fragment {
    pub(super) pc: u32,
    pub(super) mask: u32,
    pub(super) wait: Option<Wait>,
}

/// What a fragment waits for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wait {
    /// Lanes that its instruction names.
    Lanes(u32),
    /// A barrier of the block.
    Barrier {
        id: u32,
        /// All threads of the block when none.
        threads: Option<u32>,
        reduce: Option<BarReduce>,
    },
}

/// Where an instruction leads its lanes.
enum Flow {
    Next,
    Jump(u32),
    Wait(Wait),
    Exit,
}

/// The state of one warp.
pub(super) struct Warp {
    pub(super) regs: Registers,
    pub(super) fragments: Vec<Fragment>,
    pub(super) local: Vec<u8>,
    copies: Copies,
    position: Position,
    /// Instructions executed so far.
    pub(super) steps: u64,
}

/// A fault with its instruction.
pub(super) type WarpFault = (u32, LaneFault);

impl Warp {
    pub(super) fn new(registers: [usize; 3], local_bytes: usize, position: Position) -> Self {
        Self {
            regs: Registers::new(registers),
            fragments: vec![Fragment {
                pc: 0,
                mask: position.threads(),
                wait: None,
            }],
            local: vec![0xcd; local_bytes * WARP],
            copies: Copies::default(),
            position,
            steps: 0,
        }
    }

    /// Lanes that have not exited.
    pub(super) fn live(&self) -> u32 {
        self.fragments
            .iter()
            .fold(0, |mask, fragment| mask | fragment.mask)
    }

    /// Run up to `budget` instructions, until no lane can move. Returns how many were executed.
    pub(super) fn run(
        &mut self,
        code: &[Inst],
        reach: &mut Reach<'_, '_>,
        budget: u64,
    ) -> Result<u64, WarpFault> {
        let start = self.steps;
        while self.steps - start < budget {
            let Some(index) = self.pick() else { break };
            let fragment = self.fragments.swap_remove(index);
            let left = budget - (self.steps - start);
            self.run_fragment(fragment, code, reach, left)?;
        }
        Ok(self.steps - start)
    }

    /// Join fragments that met, and choose the one to run: that with the lowest program counter.
    fn pick(&mut self) -> Option<usize> {
        if self.fragments.len() > 1 {
            self.join();
        }
        let live = self.live();
        for fragment in &mut self.fragments {
            if let Some(Wait::Lanes(members)) = fragment.wait
                && members & live & !fragment.mask == 0
            {
                fragment.wait = None;
            }
        }
        let runnable = self
            .fragments
            .iter()
            .enumerate()
            .filter(|(_, fragment)| fragment.wait.is_none());
        runnable
            .min_by_key(|(_, fragment)| fragment.pc)
            .map(|(index, _)| index)
    }

    fn join(&mut self) {
        self.fragments.sort_by_key(|fragment| fragment.pc);
        self.fragments.dedup_by(|next, kept| {
            let both_at_barrier =
                [&next.wait, &kept.wait].map(|wait| matches!(wait, Some(Wait::Barrier { .. })));
            // A lane that has yet to arrive at a barrier must still execute it.
            let meet = next.pc == kept.pc && both_at_barrier[0] == both_at_barrier[1];
            if meet {
                kept.mask |= next.mask;
                kept.wait = kept.wait.or(next.wait);
            }
            meet
        });
    }

    /// Run a fragment until it parts, waits, or meets or passes another one.
    fn run_fragment(
        &mut self,
        mut fragment: Fragment,
        code: &[Inst],
        reach: &mut Reach<'_, '_>,
        budget: u64,
    ) -> Result<(), WarpFault> {
        for _ in 0..budget {
            let inst = &code[fragment.pc as usize];
            let active = fragment.mask & self.regs.pred(inst.guard);
            self.steps += 1;
            let flow = match self.missing_lanes(&inst.op, fragment.mask, active) {
                Some(members) => {
                    fragment.wait = Some(Wait::Lanes(members));
                    self.fragments.push(fragment);
                    return Ok(());
                }
                None if active == 0 => Flow::Next,
                None => self
                    .execute(&inst.op, active, reach)
                    .map_err(|fault| (fragment.pc, fault))?,
            };
            match flow {
                Flow::Next => fragment.pc += 1,
                Flow::Jump(target) if active == fragment.mask => fragment.pc = target,
                parting => {
                    self.part(fragment, active, &parting);
                    return Ok(());
                }
            }
            if self
                .fragments
                .iter()
                .any(|other| self.yields_to(&fragment, other))
            {
                break;
            }
        }
        self.fragments.push(fragment);
        Ok(())
    }

    fn yields_to(&self, fragment: &Fragment, other: &Fragment) -> bool {
        other.pc == fragment.pc || (other.wait.is_none() && other.pc < fragment.pc)
    }

    /// Lanes do different things from here on.
    fn part(&mut self, fragment: Fragment, active: u32, flow: &Flow) {
        let rest = fragment.mask & !active;
        if rest != 0 {
            self.fragments.push(Fragment {
                pc: fragment.pc + 1,
                mask: rest,
                wait: None,
            });
        }
        let (pc, wait) = match *flow {
            Flow::Exit => return,
            Flow::Next => (fragment.pc + 1, None),
            Flow::Jump(target) => (target, None),
            Flow::Wait(wait) => (fragment.pc, Some(wait)),
        };
        self.fragments.push(Fragment {
            pc,
            mask: active,
            wait,
        });
    }

    /// The lanes that a `.sync` instruction names, when some of them are not here yet.
    fn missing_lanes(&self, op: &Op, here: u32, active: u32) -> Option<u32> {
        let members = match op {
            Op::Shfl { members, .. }
            | Op::Vote { members, .. }
            | Op::Ballot { members, .. }
            | Op::Redux { members, .. }
            | Op::Elect { members, .. }
            | Op::BarWarp { members } => self.members(*members, active),
            Op::LdMatrix { .. } | Op::Mma { .. } => !0,
            _ => return None,
        };
        let others = self.live() & !here;
        (members & others != 0).then_some(members)
    }

    /// The member mask of the lanes that execute; they must agree on it.
    fn members(&self, members: Src, active: u32) -> u32 {
        let values = u32::read(&self.regs, members);
        lanes(active).fold(0, |mask, lane| mask | values[lane])
    }

    fn execute(&mut self, op: &Op, mask: u32, reach: &mut Reach<'_, '_>) -> Result<Flow, LaneFault> {
        if matches!(op, Op::Mma { .. } | Op::LdMatrix { .. }) && mask != !0 {
            let cause = Cause::Operands(format!(
                "only lanes {mask:#010x} execute an instruction of the whole warp"
            ));
            return Err((mask.trailing_zeros() as usize, cause));
        }
        if alu::execute(op, &mut self.regs, mask) {
            return Ok(Flow::Next);
        }
        match *op {
            Op::Bra { target } => Ok(Flow::Jump(target)),
            Op::Exit => Ok(Flow::Exit),
            Op::Trap => Err((mask.trailing_zeros() as usize, Cause::Trap)),
            Op::Bar { id, threads, reduce } => {
                let lane = mask.trailing_zeros() as usize;
                Ok(Flow::Wait(Wait::Barrier {
                    id: u32::read(&self.regs, id)[lane],
                    threads: threads.map(|threads| u32::read(&self.regs, threads)[lane]),
                    reduce,
                }))
            }
            Op::MovSpecial { wide, d, from } => {
                self.position
                    .read(&mut self.regs, mask, wide, d, from, self.steps);
                Ok(Flow::Next)
            }
            _ => self.together(op, mask, reach).map(|()| Flow::Next),
        }
    }

    /// Instructions of memory.
    fn together(&mut self, op: &Op, mask: u32, reach: &mut Reach<'_, '_>) -> Result<(), LaneFault> {
        let regs = &mut self.regs;
        match *op {
            Op::Load {
                space,
                ty,
                ref d,
                from,
            } => reach.load(regs, mask, space, ty, d, from),
            Op::Store {
                space,
                ty,
                to,
                ref values,
            } => reach.store(regs, mask, space, ty, to, values),
            Op::Atom {
                space,
                op,
                ty,
                d,
                at,
                b,
                c,
            } => reach.atomic(regs, mask, space, (op, ty), d, at, (b, c)),
            Op::LdMatrix { ref d, trans, from } => reach.matrices(regs, d, trans, from),
            Op::CpAsync {
                bytes,
                to,
                from,
                source_bytes,
            } => self
                .copies
                .start(regs, mask, reach, bytes, (to, from), source_bytes),
            Op::CpCommit => {
                self.copies.commit(mask);
                Ok(())
            }
            Op::CpWait { pending } => self.copies.wait(mask, Some(pending), reach),
            Op::CpWaitAll => self.copies.wait(mask, None, reach),
            _ => self.collective(op, mask),
        }
    }

    /// Instructions in which lanes see each other's registers.
    fn collective(&mut self, op: &Op, mask: u32) -> Result<(), LaneFault> {
        let regs = &mut self.regs;
        match *op {
            Op::Shfl {
                mode,
                d,
                valid,
                a,
                b,
                c,
                ..
            } => collective::shuffle(regs, mask, mode, (d, valid), (a, b, c))
                .map_err(|reason| (mask.trailing_zeros() as usize, Cause::Operands(reason))),
            Op::Vote { mode, d, a, members } => {
                let holds = collective::vote(mode, regs.pred(a), self.members(members, mask) & mask);
                self.regs.set_pred(d, mask, if holds { !0 } else { 0 });
                Ok(())
            }
            Op::Ballot { d, a, members } => {
                let votes = regs.pred(a) & self.members(members, mask) & mask;
                u32::write(&mut self.regs, d, mask, [votes; WARP]);
                Ok(())
            }
            Op::Redux {
                op,
                ty,
                d,
                a,
                members,
            } => {
                let members = self.members(members, mask) & mask;
                let value = collective::reduce(op, ty, &u32::read(&self.regs, a), members);
                u32::write(&mut self.regs, d, mask, [value; WARP]);
                Ok(())
            }
            Op::Elect { d, leader, .. } => {
                let first = mask.trailing_zeros();
                if let Some(d) = d {
                    u32::write(regs, d, mask, [first; WARP]);
                }
                regs.set_pred(leader, mask, 1 << first);
                Ok(())
            }
            // `bar.warp.sync`, whose lanes have met; all others were handled before.
            _ => Ok(()),
        }
    }
}
