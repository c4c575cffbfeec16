//! Typed instructions: what the parser makes of PTX and what the executor runs.
//!
//! A register is an index into one of three files: 32-bit registers (which hold 8- and 16-bit values too, their upper
//! bits zero), 64-bit registers, and predicates. Which file an operand belongs to follows from the instruction's type.

use super::types::{Space, Type};

/// Index into a register file.
pub(crate) type Reg = u16;

/// A register or a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Src {
    /// Of the file that the instruction's type names.
    Reg(Reg),
    /// The bits, truncated to the type.
    Imm(u64),
}

/// A register with the width it was declared with: loads, stores and conversions take wider ones than their type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnyReg {
    pub(crate) reg: Reg,
    /// 2, 4 or 8.
    pub(crate) bytes: u8,
}

/// A register of any width, or a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnySrc {
    Reg(AnyReg),
    Imm(u64),
}

/// Read-only registers that PTX calls special.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NwarpId,
    LaneMaskEq,
    LaneMaskLe,
    LaneMaskLt,
    LaneMaskGe,
    LaneMaskGt,
    SmId,
    NsmId,
    GridId,
    Clock,
    Clock64,
    GlobalTimer,
    DynamicSmemSize,
    TotalSmemSize,
    /// A register that holds zero here, such as the id of a cluster of one block.
    Zero,
    /// A register that holds one here, such as the number of blocks of a cluster.
    One,
}

/// Where an access starts: the base plus a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) base: Base,
    pub(crate) offset: i64,
}

/// The variable part of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    Reg32(Reg),
    Reg64(Reg),
    /// None: the offset is the whole address.
    Absolute,
}

/// Integer operations of two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Int2 {
    Add,
    Sub,
    MulLo,
    MulHi,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    Shl,
    Shr,
}

/// Integer operations of one operand, with a result of the same width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Int1 {
    Abs,
    Neg,
    Not,
    Cnot,
    Brev,
}

/// Integer operations of one operand, with a 32-bit result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    Popc,
    Clz,
    Bfind,
    BfindShift,
}

/// Operations on a field of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    /// `bfe d, a, position, length`
    Extract,
    /// `bfi d, a, b, position, length`
    Insert,
}

/// Float operations of two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float2 {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
    CopySign,
}

/// Float operations of one operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float1 {
    Abs,
    Neg,
    Rcp,
    /// A first guess for Newton's method: the reciprocal with the lower half of its bits zero.
    RcpGuess,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

/// How a float result is made of the exact one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct FloatMode {
    pub(crate) round: Round,
    /// Subnormal inputs and results become zero.
    pub(crate) ftz: bool,
    /// Clamp to 0 … 1.
    pub(crate) sat: bool,
}

/// Direction of rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Round {
    #[default]
    Nearest,
    Zero,
    Down,
    Up,
}

/// A comparison. The `…u` forms of floats are true when an operand is NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// How `setp` joins its comparison with another predicate, and logic on predicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

/// A predicate operand: a register, perhaps negated, or a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pred {
    Reg { reg: Reg, negated: bool },
    Const(bool),
}

/// Where lanes of a shuffle read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

/// What a vote gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uni,
}

/// Read-modify-write operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atomic {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

/// Reductions over the lanes of a warp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redux {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

/// A conversion `cvt.to.from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Convert {
    pub(crate) to: Type,
    pub(crate) from: Type,
    pub(crate) mode: FloatMode,
    /// Round to an integral value (`rni`, `rzi`, `rmi`, `rpi`).
    pub(crate) integral: bool,
}

/// Elements that a conversion packs two at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pair {
    Bf16,
    F16,
    E4m3,
}

/// An instruction and its guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inst {
    /// Lanes that execute it.
    pub(crate) guard: Pred,
    pub(crate) op: Op,
    /// Line of the PTX text.
    pub(crate) line: u32,
}

/// What an instruction does. Destinations come first, as in PTX.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    Int2 {
        op: Int2,
        ty: Type,
        d: Reg,
        a: Src,
        b: Src,
    },
    Int1 {
        op: Int1,
        ty: Type,
        d: Reg,
        a: Src,
    },
    Count {
        op: Count,
        ty: Type,
        d: Reg,
        a: Src,
    },
    /// `a × b` in twice the width of `ty`, plus `c` where given.
    MulWide {
        ty: Type,
        d: Reg,
        a: Src,
        b: Src,
        c: Option<Src>,
    },
    /// `a × b + c` in the width of `ty`.
    Mad {
        ty: Type,
        high: bool,
        d: Reg,
        a: Src,
        b: Src,
        c: Src,
    },
    Field {
        op: Field,
        ty: Type,
        d: Reg,
        a: Src,
        b: Src,
        position: Src,
        length: Src,
    },
    /// The 32 bits of `high:low` shifted left or right.
    Funnel {
        left: bool,
        wrap: bool,
        d: Reg,
        low: Src,
        high: Src,
        by: Src,
    },
    Prmt {
        d: Reg,
        a: Src,
        b: Src,
        selector: Src,
    },
    Lop3 {
        d: Reg,
        a: Src,
        b: Src,
        c: Src,
        table: u8,
    },
    Float2 {
        op: Float2,
        ty: Type,
        mode: FloatMode,
        d: Reg,
        a: Src,
        b: Src,
    },
    Float1 {
        op: Float1,
        ty: Type,
        mode: FloatMode,
        d: Reg,
        a: Src,
    },
    Fma {
        ty: Type,
        mode: FloatMode,
        d: Reg,
        a: Src,
        b: Src,
        c: Src,
    },
    /// Two bf16 in each operand.
    FmaBf16x2 {
        d: Reg,
        a: Src,
        b: Src,
        c: Src,
    },
    Convert {
        how: Convert,
        d: AnyReg,
        a: AnySrc,
    },
    /// `d = {low, high}`, rounded to nearest.
    PackPair {
        pair: Pair,
        d: Reg,
        high: Src,
        low: Src,
    },
    /// Two e4m3 to two f16.
    UnpackE4m3 {
        d: Reg,
        a: Src,
    },
    Mov {
        ty: Type,
        d: Reg,
        a: Src,
    },
    MovSpecial {
        wide: bool,
        d: Reg,
        from: Special,
    },
    /// `parts` of equal width, the first lowest, into one register of `ty`.
    Pack {
        ty: Type,
        d: Reg,
        parts: Vec<Src>,
    },
    Unpack {
        ty: Type,
        parts: Vec<Option<Reg>>,
        a: Src,
    },
    Setp {
        compare: Compare,
        ty: Type,
        ftz: bool,
        d: Reg,
        inverse: Option<Reg>,
        a: Src,
        b: Src,
        join: Option<(Logic, Pred)>,
    },
    Selp {
        ty: Type,
        d: Reg,
        a: Src,
        b: Src,
        by: Pred,
    },
    PredLogic {
        op: Logic,
        d: Reg,
        a: Pred,
        b: Pred,
    },
    /// Copy, or negate, one predicate.
    PredMov {
        d: Reg,
        a: Pred,
    },
    Load {
        space: Space,
        ty: Type,
        d: Vec<Option<AnyReg>>,
        from: Address,
    },
    Store {
        space: Space,
        ty: Type,
        to: Address,
        values: Vec<AnySrc>,
    },
    Atom {
        space: Space,
        op: Atomic,
        ty: Type,
        d: Option<Reg>,
        at: Address,
        b: Src,
        c: Option<Src>,
    },
    CpAsync {
        bytes: u8,
        to: Address,
        from: Address,
        source_bytes: Option<Src>,
    },
    CpCommit,
    /// Wait until at most so many of a lane's groups are under way.
    CpWait {
        pending: u32,
    },
    /// Also what was never committed.
    CpWaitAll,
    /// Add or subtract the window of a space: generic addresses.
    Cvta {
        space: Space,
        to_space: bool,
        d: Reg,
        a: Src,
    },
    IsSpace {
        space: Space,
        d: Reg,
        a: Src,
    },
    Shfl {
        mode: Shuffle,
        d: Reg,
        valid: Option<Reg>,
        a: Src,
        b: Src,
        c: Src,
        members: Src,
    },
    Vote {
        mode: Vote,
        d: Reg,
        a: Pred,
        members: Src,
    },
    Ballot {
        d: Reg,
        a: Pred,
        members: Src,
    },
    Redux {
        op: Redux,
        ty: Type,
        d: Reg,
        a: Src,
        members: Src,
    },
    ActiveMask {
        d: Reg,
    },
    Elect {
        d: Option<Reg>,
        leader: Reg,
        members: Src,
    },
    BarWarp {
        members: Src,
    },
    /// Barrier `id` of the block, of all its threads or of so many; with `reduce`, joins a predicate over them.
    Bar {
        id: Src,
        threads: Option<Src>,
        reduce: Option<BarReduce>,
    },
    LdMatrix {
        d: Vec<Reg>,
        trans: bool,
        from: Address,
    },
    /// m16n8k16, f32 accumulators.
    Mma {
        half: bool,
        d: [Reg; 4],
        a: [Reg; 4],
        b: [Reg; 2],
        c: [Src; 4],
    },
    Bra {
        target: u32,
    },
    Exit,
    Trap,
    /// About so many nanoseconds, in which others get on.
    Sleep {
        nanoseconds: Src,
    },
    /// Has no effect here: fences, prefetches, waits for an earlier grid.
    Nothing,
}

/// What `bar.red` joins and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BarReduce {
    pub(crate) op: BarOp,
    pub(crate) d: Reg,
    pub(crate) a: Pred,
}

/// How `bar.red` joins predicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarOp {
    And,
    Or,
    Popc,
}
