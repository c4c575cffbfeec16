//! Loads, stores, atomics, asynchronous copies and matrix loads of one warp.

use super::atomic;
use super::fault::Cause;
use super::lanes::{Lanes, Registers, Value, WARP, lanes};
use super::memory::{GlobalPort, Private, WINDOW_MASK, space_of};
use crate::ptx::ir::{Address, AnyReg, AnySrc, Atomic, Base, Reg, Src};
use crate::ptx::types::{Space, Type};

/// What one warp can reach.
pub(super) struct Reach<'w, 'g> {
    pub(super) global: &'w mut GlobalPort<'g>,
    pub(super) shared: &'w mut [u8],
    /// Local memory of all lanes, one after the other.
    pub(super) local: &'w mut [u8],
    /// Bytes of one lane.
    pub(super) local_bytes: usize,
    pub(super) params: &'w mut [u8],
}

/// A fault and the lane that caused it.
pub(super) type LaneFault = (usize, Cause);

pub(super) fn addresses(regs: &Registers, address: Address) -> Lanes<u64> {
    let offset = address.offset.cast_unsigned();
    match address.base {
        Base::Absolute => [offset; WARP],
        Base::Reg64(reg) => regs.r64[usize::from(reg)].map(|base| base.wrapping_add(offset)),
        // 32-bit addresses wrap around as 32-bit numbers.
        Base::Reg32(reg) => {
            regs.r32[usize::from(reg)].map(|base| u64::from(base.wrapping_add(offset as u32)))
        }
    }
}

impl Reach<'_, '_> {
    /// The space and the address in it.
    #[inline(always)]
    fn resolve(space: Space, address: u64) -> (Space, u64) {
        match space {
            Space::Generic => match space_of(address) {
                Space::Global => (Space::Global, address),
                space => (space, address & WINDOW_MASK),
            },
            // Constant memory is a part of global memory that kernels may not write.
            Space::Const => (Space::Global, address),
            space => (space, address),
        }
    }

    fn private(&mut self, space: Space, lane: usize) -> Private<'_> {
        match space {
            Space::Shared => Private {
                space: "shared",
                bytes: self.shared,
            },
            Space::Param => Private {
                space: "parameter",
                bytes: self.params,
            },
            _ => Private {
                space: "local",
                bytes: &mut self.local[lane * self.local_bytes..][..self.local_bytes],
            },
        }
    }

    /// Read a vector of `count` elements of `bytes` each.
    #[inline(always)]
    fn read(
        &mut self,
        (space, address): (Space, u64),
        lane: usize,
        (count, bytes): (usize, usize),
        counted: bool,
    ) -> Result<[u64; 4], Cause> {
        let mut values = [0; 4];
        let parts = values.iter_mut().take(count).zip((0..).map(|i| i * bytes as u64));
        if space == Space::Global {
            self.global.check_read(address, count * bytes, counted)?;
            for (value, offset) in parts {
                *value = self.global.read(address + offset, bytes)?;
            }
        } else {
            let memory = self.private(space, lane);
            memory.check("read", address, count * bytes)?;
            for (value, offset) in parts {
                *value = memory.read(address + offset, bytes)?;
            }
        }
        Ok(values)
    }

    fn write(
        &mut self,
        (space, address): (Space, u64),
        lane: usize,
        bytes: usize,
        values: &[u64],
    ) -> Result<(), Cause> {
        let parts = values.iter().zip((0..).map(|i| i * bytes as u64));
        if space == Space::Global {
            self.global.check_write(address, values.len() * bytes)?;
            for (value, offset) in parts {
                self.global.write(address + offset, bytes, *value)?;
            }
        } else {
            let mut memory = self.private(space, lane);
            memory.check("write", address, values.len() * bytes)?;
            for (value, offset) in parts {
                memory.write(address + offset, bytes, *value)?;
            }
        }
        Ok(())
    }

    /// `ld`.
    pub(super) fn load(
        &mut self,
        regs: &mut Registers,
        mask: u32,
        space: Space,
        ty: Type,
        d: &[Option<AnyReg>],
        from: Address,
    ) -> Result<(), LaneFault> {
        let from = addresses(regs, from);
        let mut values = [[0u64; WARP]; 4];
        let mut last = None;
        for lane in lanes(mask) {
            let at = Self::resolve(space, from[lane]);
            let loaded = self
                .read(at, lane, (d.len(), ty.bytes()), last != Some(at.1))
                .map_err(|cause| (lane, cause))?;
            last = Some(at.1);
            for (values, loaded) in values.iter_mut().zip(loaded) {
                values[lane] = extend(loaded, ty);
            }
        }
        for (d, values) in d.iter().zip(&values) {
            if let Some(d) = *d {
                regs.set_any(d, mask, values);
            }
        }
        Ok(())
    }

    /// `st`.
    pub(super) fn store(
        &mut self,
        regs: &Registers,
        mask: u32,
        space: Space,
        ty: Type,
        to: Address,
        values: &[AnySrc],
    ) -> Result<(), LaneFault> {
        let to = addresses(regs, to);
        let mut parts = [[0u64; WARP]; 4];
        for (part, value) in parts.iter_mut().zip(values) {
            *part = regs.any(*value);
        }
        for lane in lanes(mask) {
            let row: [u64; 4] = std::array::from_fn(|part| parts[part][lane]);
            self.write(
                Self::resolve(space, to[lane]),
                lane,
                ty.bytes(),
                &row[..values.len()],
            )
            .map_err(|cause| (lane, cause))?;
        }
        Ok(())
    }

    /// `atom` and `red`.
    #[allow(clippy::too_many_arguments, reason = "the parts of the instruction")]
    pub(super) fn atomic(
        &mut self,
        regs: &mut Registers,
        mask: u32,
        space: Space,
        (op, ty): (Atomic, Type),
        d: Option<Reg>,
        at: Address,
        (b, c): (Src, Option<Src>),
    ) -> Result<(), LaneFault> {
        let at = addresses(regs, at);
        let read = |src| {
            if ty.wide() {
                u64::read(regs, src)
            } else {
                u32::read(regs, src).map(u64::from)
            }
        };
        let (b, c) = (read(b), c.map_or([0; WARP], read));
        let mut old = [0; WARP];
        for lane in lanes(mask) {
            let next = |old| atomic::next(op, ty, old, b[lane], c[lane]);
            let (space, address) = Self::resolve(space, at[lane]);
            let bytes = ty.bytes();
            let before = if space == Space::Global {
                self.global.update(address, bytes, next)
            } else {
                let mut memory = self.private(space, lane);
                memory
                    .read(address, bytes)
                    .and_then(|old| memory.write(address, bytes, next(old)).map(|()| old))
            };
            old[lane] = before.map_err(|cause| (lane, cause))?;
        }
        if let Some(reg) = d {
            let d = AnyReg {
                reg,
                bytes: ty.bytes() as u8,
            };
            regs.set_any(d, mask, &old);
        }
        Ok(())
    }

    /// `ldmatrix`: rows of eight 16-bit elements, whose addresses eight lanes each give.
    pub(super) fn matrices(
        &mut self,
        regs: &mut Registers,
        d: &[Reg],
        trans: bool,
        from: Address,
    ) -> Result<(), LaneFault> {
        let from = addresses(regs, from);
        for (matrix, d) in d.iter().enumerate() {
            let mut rows = [[0u16; 8]; 8];
            for (row, lane) in rows.iter_mut().zip(8 * matrix..) {
                let halves = self
                    .read((Space::Shared, from[lane]), lane, (2, 8), true)
                    .map_err(|cause| (lane, cause))?;
                for (i, element) in row.iter_mut().enumerate() {
                    *element = (halves[i / 4] >> (16 * (i % 4))) as u16;
                }
            }
            let values = std::array::from_fn(|lane| {
                let (major, minor) = (lane / 4, 2 * (lane % 4));
                let at = |minor: usize| {
                    u32::from(if trans {
                        rows[minor][major]
                    } else {
                        rows[major][minor]
                    })
                };
                at(minor) | at(minor + 1) << 16
            });
            u32::write(regs, *d, !0, values);
        }
        Ok(())
    }
}

#[inline(always)]
fn extend(bits: u64, ty: Type) -> u64 {
    match ty {
        Type::S8 => i64::from(bits as i8).cast_unsigned(),
        Type::S16 => i64::from(bits as i16).cast_unsigned(),
        Type::S32 => i64::from(bits as i32).cast_unsigned(),
        _ => bits,
    }
}

/// Copies from global to shared memory that are under way.
///
/// A copy is performed as late as the program allows: when a wait names it. A missing wait then reads old bytes.
#[derive(Default)]
pub(super) struct Copies {
    pending: Vec<Copy>,
    /// Groups that each lane has committed.
    committed: Lanes<u32>,
}

struct Copy {
    lane: usize,
    group: u32,
    to: u64,
    from: u64,
    bytes: u64,
    source_bytes: u64,
}

impl Copies {
    /// `cp.async`: checked now, performed later.
    pub(super) fn start(
        &mut self,
        regs: &Registers,
        mask: u32,
        reach: &mut Reach<'_, '_>,
        bytes: u8,
        (to, from): (Address, Address),
        source_bytes: Option<Src>,
    ) -> Result<(), LaneFault> {
        let (to, from) = (addresses(regs, to), addresses(regs, from));
        let wanted = source_bytes.map(|src| u32::read(regs, src));
        for lane in lanes(mask) {
            let source_bytes = wanted.map_or(u64::from(bytes), |wanted| u64::from(wanted[lane]));
            let check = |reach: &mut Reach<'_, '_>| {
                if source_bytes > u64::from(bytes) {
                    return Err(Cause::Operands(format!(
                        "{source_bytes} source bytes for a copy of {bytes}"
                    )));
                }
                reach
                    .private(Space::Shared, lane)
                    .check("write", to[lane], usize::from(bytes))?;
                if from[lane] % u64::from(bytes) != 0 {
                    return Err(Cause::Misaligned {
                        access: "read",
                        bytes: usize::from(bytes),
                        space: "global",
                        address: from[lane],
                    });
                }
                Ok(())
            };
            check(reach).map_err(|cause| (lane, cause))?;
            let (pieces, piece) = pieces(source_bytes, u64::from(bytes));
            for at in 0..pieces {
                reach
                    .global
                    .check_read(from[lane] + at * piece, piece as usize, true)
                    .map_err(|cause| (lane, cause))?;
            }
            self.pending.push(Copy {
                lane,
                group: self.committed[lane],
                to: to[lane],
                from: from[lane],
                bytes: u64::from(bytes),
                source_bytes,
            });
        }
        Ok(())
    }

    pub(super) fn commit(&mut self, mask: u32) {
        for lane in lanes(mask) {
            self.committed[lane] += 1;
        }
    }

    /// Perform all copies of these lanes but those of the last `under_way` groups; without a number, all.
    pub(super) fn wait(
        &mut self,
        mask: u32,
        under_way: Option<u32>,
        reach: &mut Reach<'_, '_>,
    ) -> Result<(), LaneFault> {
        let committed = self.committed;
        let done = |copy: &Copy| {
            let finished = under_way.is_none_or(|groups| copy.group + groups < committed[copy.lane]);
            mask >> copy.lane & 1 != 0 && finished
        };
        let (now, later): (Vec<Copy>, Vec<Copy>) =
            std::mem::take(&mut self.pending).into_iter().partition(done);
        self.pending = later;
        for copy in now {
            copy.perform(reach).map_err(|cause| (copy.lane, cause))?;
        }
        Ok(())
    }
}

/// Whole copies go by words, partial ones by bytes.
fn pieces(source_bytes: u64, bytes: u64) -> (u64, u64) {
    if source_bytes == bytes {
        (1, bytes)
    } else {
        (source_bytes, 1)
    }
}

impl Copy {
    fn perform(&self, reach: &mut Reach<'_, '_>) -> Result<(), Cause> {
        let word = if self.source_bytes == self.bytes {
            self.bytes.min(8)
        } else {
            1
        };
        for at in (0..self.bytes).step_by(word as usize) {
            // What the source does not cover is zero.
            let value = if at < self.source_bytes {
                reach.global.read(self.from + at, word as usize)?
            } else {
                0
            };
            reach
                .private(Space::Shared, self.lane)
                .write(self.to + at, word as usize, value)?;
        }
        Ok(())
    }
}
