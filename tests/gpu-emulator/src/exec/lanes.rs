//! Values of the 32 lanes of a warp, and the registers that hold them.

use crate::ptx::ir::{AnyReg, AnySrc, Pred, Reg, Src};

/// Lanes of a warp.
pub(super) const WARP: usize = 32;

/// One value a lane.
pub(super) type Lanes<T> = [T; WARP];

/// The register files of one warp.
pub(super) struct Registers {
    pub(super) r32: Vec<Lanes<u32>>,
    pub(super) r64: Vec<Lanes<u64>>,
    /// One bit a lane.
    pub(super) pred: Vec<u32>,
}

impl Registers {
    /// `counts` are those of [`crate::ptx::Kernel`]. Registers start with a pattern that is neither zero nor a
    /// usable address, so that a read before the first write shows.
    pub(super) fn new(counts: [usize; 3]) -> Self {
        Self {
            r32: vec![[0xbad0_bad0; WARP]; counts[0]],
            r64: vec![[0xbad0_bad0_bad0_bad0; WARP]; counts[1]],
            pred: vec![0; counts[2]],
        }
    }

    /// Lanes in which the predicate holds.
    #[inline(always)]
    pub(super) fn pred(&self, pred: Pred) -> u32 {
        match pred {
            Pred::Const(true) => !0,
            Pred::Const(false) => 0,
            Pred::Reg { reg, negated: false } => self.pred[usize::from(reg)],
            Pred::Reg { reg, negated: true } => !self.pred[usize::from(reg)],
        }
    }

    #[inline(always)]
    pub(super) fn set_pred(&mut self, reg: Reg, mask: u32, value: u32) {
        let old = &mut self.pred[usize::from(reg)];
        *old = (*old & !mask) | (value & mask);
    }

    /// The values of an operand whose register may be of any width, zero-extended.
    pub(super) fn any(&self, src: AnySrc) -> Lanes<u64> {
        match src {
            AnySrc::Imm(value) => [value; WARP],
            AnySrc::Reg(AnyReg { reg, bytes: 8 }) => self.r64[usize::from(reg)],
            AnySrc::Reg(AnyReg { reg, .. }) => self.r32[usize::from(reg)].map(u64::from),
        }
    }

    /// Write values that are already extended to 64 bits; a narrower register takes the lower part.
    pub(super) fn set_any(&mut self, d: AnyReg, mask: u32, values: &Lanes<u64>) {
        match d.bytes {
            8 => u64::write(self, d.reg, mask, *values),
            4 => u32::write(self, d.reg, mask, values.map(|value| value as u32)),
            _ => u16::write(self, d.reg, mask, values.map(|value| value as u16)),
        }
    }
}

/// What a register can hold.
pub(super) trait Value: Copy {
    fn read(regs: &Registers, src: Src) -> Lanes<Self>;
    /// Write the lanes of `mask`.
    fn write(regs: &mut Registers, d: Reg, mask: u32, values: Lanes<Self>);
}

#[inline(always)]
fn blend<T: Copy>(old: &mut Lanes<T>, mask: u32, new: Lanes<T>) {
    if mask == !0 {
        *old = new;
        return;
    }
    for lane in 0..WARP {
        if mask >> lane & 1 != 0 {
            old[lane] = new[lane];
        }
    }
}

macro_rules! value {
    ($ty:ty, $file:ident, $word:ty, $of:expr, $to:expr) => {
        impl Value for $ty {
            #[inline(always)]
            fn read(regs: &Registers, src: Src) -> Lanes<Self> {
                let of: fn($word) -> $ty = $of;
                match src {
                    Src::Imm(bits) => [of(bits as $word); WARP],
                    Src::Reg(reg) => regs.$file[usize::from(reg)].map(of),
                }
            }

            #[inline(always)]
            fn write(regs: &mut Registers, d: Reg, mask: u32, values: Lanes<Self>) {
                let to: fn($ty) -> $word = $to;
                blend(&mut regs.$file[usize::from(d)], mask, values.map(to));
            }
        }
    };
}
value!(u16, r32, u32, |word| word as u16, u32::from);
value!(u32, r32, u32, |word| word, |value| value);
value!(u64, r64, u64, |word| word, |value| value);
value!(f32, r32, u32, f32::from_bits, f32::to_bits);
value!(f64, r64, u64, f64::from_bits, f64::to_bits);

/// Apply `f` to every lane, and write the lanes of `mask`.
#[inline(always)]
pub(super) fn map1<A: Value, D: Value>(regs: &mut Registers, mask: u32, d: Reg, a: Src, f: impl Fn(A) -> D) {
    let a = A::read(regs, a);
    D::write(regs, d, mask, std::array::from_fn(|lane| f(a[lane])));
}

/// As [`map1`], of two operands.
#[inline(always)]
pub(super) fn map2<A: Value, B: Value, D: Value>(
    regs: &mut Registers,
    mask: u32,
    d: Reg,
    (a, b): (Src, Src),
    f: impl Fn(A, B) -> D,
) {
    let (a, b) = (A::read(regs, a), B::read(regs, b));
    D::write(regs, d, mask, std::array::from_fn(|lane| f(a[lane], b[lane])));
}

/// As [`map1`], of three operands.
#[inline(always)]
pub(super) fn map3<A: Value, B: Value, C: Value, D: Value>(
    regs: &mut Registers,
    mask: u32,
    d: Reg,
    (a, b, c): (Src, Src, Src),
    f: impl Fn(A, B, C) -> D,
) {
    let (a, b, c) = (A::read(regs, a), B::read(regs, b), C::read(regs, c));
    D::write(
        regs,
        d,
        mask,
        std::array::from_fn(|lane| f(a[lane], b[lane], c[lane])),
    );
}

/// The lanes of a mask, from the lowest.
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..WARP).filter(move |lane| mask >> lane & 1 != 0)
}
