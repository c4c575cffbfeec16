//! Operands of one instruction.

use super::PtxError;
use super::ir::{Address, AnyReg, AnySrc, Base, Pred, Reg, Special, Src};
use super::types::Type;

/// A declared register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    /// 2 or 4 bytes, or 8.
    Data(AnyReg),
    Pred(Reg),
}

/// An operand as written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    Register(Register),
    NotPred(Reg),
    /// `d|p`
    Two(Register, Register),
    Int(u64),
    F32(u32),
    F64(u64),
    Special(Special),
    /// A variable's address in its space, plus an offset.
    Symbol(u64),
    Memory(Address),
    Vector(Vec<Operand>),
    Label(String),
    /// `_`
    Sink,
}

/// The operands of one instruction, taken in order.
pub(super) struct Operands {
    items: std::vec::IntoIter<Operand>,
    line: u32,
}

type Result<T> = std::result::Result<T, PtxError>;

impl Operands {
    pub(super) fn new(items: Vec<Operand>, line: u32) -> Self {
        Self {
            items: items.into_iter(),
            line,
        }
    }

    /// An error about the operands of this instruction.
    pub(super) fn wrong(&self, reason: impl Into<String>) -> PtxError {
        PtxError::syntax(self.line, reason)
    }

    fn next(&mut self, wanted: &str) -> Result<Operand> {
        let line = self.line;
        self.items
            .next()
            .ok_or_else(|| PtxError::syntax(line, format!("an operand is missing: {wanted}")))
    }

    /// How many are left.
    pub(super) fn left(&self) -> usize {
        self.items.len()
    }

    /// All operands were taken.
    pub(super) fn end(&self) -> Result<()> {
        match self.left() {
            0 => Ok(()),
            more => Err(self.wrong(format!("{more} operands too many"))),
        }
    }

    pub(super) fn dst(&mut self, ty: Type) -> Result<Reg> {
        match self.next("a destination")? {
            Operand::Register(Register::Data(reg)) if fits(reg, ty) => Ok(reg.reg),
            other => Err(self.wrong(format!("{other:?} is no destination of type {ty:?}"))),
        }
    }

    pub(super) fn any_dst(&mut self) -> Result<AnyReg> {
        match self.next("a destination")? {
            Operand::Register(Register::Data(reg)) => Ok(reg),
            other => Err(self.wrong(format!("{other:?} is no destination"))),
        }
    }

    /// A destination, or `_`.
    pub(super) fn dst_or_sink(&mut self, ty: Type) -> Result<Option<Reg>> {
        match self.next("a destination")? {
            Operand::Sink => Ok(None),
            Operand::Register(Register::Data(reg)) if fits(reg, ty) => Ok(Some(reg.reg)),
            other => Err(self.wrong(format!("{other:?} is no destination of type {ty:?}"))),
        }
    }

    pub(super) fn pred_dst(&mut self) -> Result<Reg> {
        match self.next("a predicate")? {
            Operand::Register(Register::Pred(reg)) => Ok(reg),
            other => Err(self.wrong(format!("{other:?} is no predicate register"))),
        }
    }

    /// `p` or `p|q`.
    pub(super) fn pred_dsts(&mut self) -> Result<(Reg, Option<Reg>)> {
        match self.next("a predicate")? {
            Operand::Register(Register::Pred(reg)) => Ok((reg, None)),
            Operand::Two(Register::Pred(reg), Register::Pred(other)) => Ok((reg, Some(other))),
            other => Err(self.wrong(format!("{other:?} is no predicate register"))),
        }
    }

    /// `d` or `d|p`, or `_|p`.
    pub(super) fn dst_with_pred(&mut self) -> Result<(Reg, Option<Reg>)> {
        match self.next("a destination")? {
            Operand::Register(Register::Data(reg)) => Ok((reg.reg, None)),
            Operand::Two(Register::Data(reg), Register::Pred(pred)) => Ok((reg.reg, Some(pred))),
            other => Err(self.wrong(format!("{other:?} is no destination"))),
        }
    }

    pub(super) fn src(&mut self, ty: Type) -> Result<Src> {
        let operand = self.next("a source")?;
        self.as_src(operand, ty)
    }

    fn as_src(&self, operand: Operand, ty: Type) -> Result<Src> {
        match operand {
            Operand::Register(Register::Data(reg)) if fits(reg, ty) => Ok(Src::Reg(reg.reg)),
            Operand::F32(bits) if matches!(ty, Type::F32 | Type::B32) => Ok(Src::Imm(u64::from(bits))),
            Operand::F64(bits) if matches!(ty, Type::F64 | Type::B64) => Ok(Src::Imm(bits)),
            Operand::Int(value) | Operand::Symbol(value) if !ty.float() => Ok(Src::Imm(value)),
            // PTX 9 writes bf16 and f16 constants as their bits.
            Operand::Int(value) if ty.bytes() == 2 => Ok(Src::Imm(value)),
            other => Err(self.wrong(format!("{other:?} is no source of type {ty:?}"))),
        }
    }

    pub(super) fn any_src(&mut self) -> Result<AnySrc> {
        let operand = self.next("a source")?;
        self.as_any_src(operand)
    }

    fn as_any_src(&self, operand: Operand) -> Result<AnySrc> {
        match operand {
            Operand::Register(Register::Data(reg)) => Ok(AnySrc::Reg(reg)),
            Operand::Int(value) | Operand::Symbol(value) | Operand::F64(value) => Ok(AnySrc::Imm(value)),
            Operand::F32(bits) => Ok(AnySrc::Imm(u64::from(bits))),
            other => Err(self.wrong(format!("{other:?} is no source"))),
        }
    }

    pub(super) fn pred(&mut self) -> Result<Pred> {
        match self.next("a predicate")? {
            Operand::Register(Register::Pred(reg)) => Ok(Pred::Reg { reg, negated: false }),
            Operand::NotPred(reg) => Ok(Pred::Reg { reg, negated: true }),
            Operand::Int(value) => Ok(Pred::Const(value != 0)),
            other => Err(self.wrong(format!("{other:?} is no predicate"))),
        }
    }

    pub(super) fn memory(&mut self) -> Result<Address> {
        match self.next("an address")? {
            Operand::Memory(address) => Ok(address),
            other => Err(self.wrong(format!("{other:?} is no address"))),
        }
    }

    pub(super) fn constant(&mut self) -> Result<u64> {
        match self.next("a constant")? {
            Operand::Int(value) => Ok(value),
            other => Err(self.wrong(format!("{other:?} is no constant"))),
        }
    }

    pub(super) fn label(&mut self) -> Result<String> {
        match self.next("a label")? {
            Operand::Label(name) => Ok(name),
            other => Err(self.wrong(format!("{other:?} is no label"))),
        }
    }

    /// A special register, if that is the next operand.
    pub(super) fn special(&mut self) -> Option<Special> {
        match self.items.as_slice().first() {
            Some(Operand::Special(special)) => {
                let special = *special;
                self.items.next();
                Some(special)
            }
            _ => None,
        }
    }

    /// Whether the next operand is a vector.
    pub(super) fn at_vector(&self) -> bool {
        matches!(self.items.as_slice().first(), Some(Operand::Vector(_)))
    }

    fn vector(&mut self) -> Result<Vec<Operand>> {
        match self.next("a vector")? {
            Operand::Vector(items) => Ok(items),
            other => Ok(vec![other]),
        }
    }

    /// Registers of a vector; `_` for a part that is not wanted.
    pub(super) fn vector_dst(&mut self) -> Result<Vec<Option<AnyReg>>> {
        let items = self.vector()?;
        items
            .into_iter()
            .map(|item| match item {
                Operand::Sink => Ok(None),
                Operand::Register(Register::Data(reg)) => Ok(Some(reg)),
                other => Err(self.wrong(format!("{other:?} is no destination"))),
            })
            .collect()
    }

    pub(super) fn vector_src(&mut self) -> Result<Vec<AnySrc>> {
        let items = self.vector()?;
        items.into_iter().map(|item| self.as_any_src(item)).collect()
    }

    /// `N` registers of 32 bits.
    pub(super) fn dsts<const N: usize>(&mut self) -> Result<[Reg; N]> {
        let regs: Option<Vec<Reg>> = self
            .vector_dst()?
            .into_iter()
            .map(|reg| reg.filter(|reg| reg.bytes == 4).map(|reg| reg.reg))
            .collect();
        regs.and_then(|regs| regs.try_into().ok())
            .ok_or_else(|| self.wrong(format!("{N} registers of 32 bits are needed")))
    }

    /// `N` sources of 32 bits.
    pub(super) fn srcs<const N: usize>(&mut self) -> Result<[Src; N]> {
        let items = self.vector()?;
        let srcs: Result<Vec<Src>> = items
            .into_iter()
            .map(|item| match item {
                Operand::F32(_) => self.as_src(item, Type::F32),
                item => self.as_src(item, Type::B32),
            })
            .collect();
        srcs?
            .try_into()
            .map_err(|_| self.wrong(format!("{N} sources of 32 bits are needed")))
    }
}

fn fits(reg: AnyReg, ty: Type) -> bool {
    // There are no 8-bit registers: PTX keeps such values in 16 or 32 bits.
    usize::from(reg.bytes) == ty.bytes().max(2)
}

/// An address made of a register or of nothing.
pub(super) fn address(base: Option<AnyReg>, offset: i64) -> Option<Address> {
    let base = match base {
        None => Base::Absolute,
        Some(AnyReg { reg, bytes: 4 }) => Base::Reg32(reg),
        Some(AnyReg { reg, bytes: 8 }) => Base::Reg64(reg),
        Some(_) => return None,
    };
    Some(Address { base, offset })
}

/// The special register that PTX writes so.
pub(super) fn special(name: &str) -> Option<Special> {
    let axis = |name: &str| {
        Some(match name {
            "x" => 0,
            "y" => 1,
            "z" => 2,
            _ => return None,
        })
    };
    Some(match name.split_once('.') {
        Some(("%tid", rest)) => Special::Tid(axis(rest)?),
        Some(("%ntid", rest)) => Special::Ntid(axis(rest)?),
        Some(("%ctaid", rest)) => Special::Ctaid(axis(rest)?),
        Some(("%nctaid", rest)) => Special::Nctaid(axis(rest)?),
        _ => match name {
            "%laneid" => Special::LaneId,
            "%warpid" => Special::WarpId,
            "%nwarpid" => Special::NwarpId,
            "%lanemask_eq" => Special::LaneMaskEq,
            "%lanemask_le" => Special::LaneMaskLe,
            "%lanemask_lt" => Special::LaneMaskLt,
            "%lanemask_ge" => Special::LaneMaskGe,
            "%lanemask_gt" => Special::LaneMaskGt,
            "%smid" => Special::SmId,
            "%nsmid" => Special::NsmId,
            "%gridid" => Special::GridId,
            "%clock" => Special::Clock,
            "%clock64" => Special::Clock64,
            "%globaltimer" => Special::GlobalTimer,
            "%dynamic_smem_size" => Special::DynamicSmemSize,
            "%total_smem_size" => Special::TotalSmemSize,
            "%cluster_ctarank" => Special::Zero,
            "%cluster_nctarank" => Special::One,
            _ => return None,
        },
    })
}
