//! The dot-product tile with AVX2 and FMA, for CPUs without `VDPBF16PS`: two fused multiply-adds to f32 in its order.
//!
//! What the instruction does to subnormals the status register does here: "denormals are zeros" and "flush to zero"
//! (MXCSR, Intel SDM volume 1, §10.2.3). Rust lets no code of its own run while that register is changed, so the loop over
//! the steps is one block of assembly that changes it and puts it back. (Flushing is decided by the result as rounded
//! without a bound to its exponent: sums within 2⁻¹⁵⁰ below 2⁻¹²⁶ become zero here, and 2⁻¹²⁶ in plain code.)
//!
//! A unit is 16 outputs of one row and step: two registers of eight sums each. Eight registers hold sums, so a block of
//! assembly computes up to four units: one row of four, two rows of two, or up to four rows of one.

use std::arch::asm;
use std::arch::x86_64::{__m256, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps};

use super::pack::{Element, LANES};
use super::portable::e4m3;
use super::tile::Tile;

/// Whether the CPU has what [`run`] uses.
pub(super) fn is_supported() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Both flush bits, and all exceptions masked.
const FLUSH: u32 = 1 << 15 | 1 << 6 | 0x1f80;

/// Constants of the assembly, a register each; [`constant`] names their places.
#[repr(align(32))]
struct Constants([[u8; 32]; 9]);

static CONSTANTS: Constants = Constants([
    words(0xffff_0000),
    [0x7f; 32],
    // Turns magnitudes of subnormals, and only these, into indices that `VPSHUFB` looks up: 8 to 15.
    [0x78; 32],
    [0x0f; 32],
    [0xf0; 32],
    [0x80; 32],
    exponents(),
    subnormals(1),
    subnormals(0),
]);

macro_rules! constant {
    (odd) => {
        "[{constants}]"
    };
    (magnitude) => {
        "[{constants}+32]"
    };
    (index) => {
        "[{constants}+64]"
    };
    (low_nibble) => {
        "[{constants}+96]"
    };
    (high_nibble) => {
        "[{constants}+128]"
    };
    (sign) => {
        "[{constants}+160]"
    };
    (exponents) => {
        "[{constants}+192]"
    };
    (subnormal_high) => {
        "[{constants}+224]"
    };
    (subnormal_low) => {
        "[{constants}+256]"
    };
}

const fn words(word: u32) -> [u8; 32] {
    let mut bytes = [0; 32];
    let mut i = 0;
    while i < 32 {
        bytes[i] = word.to_le_bytes()[i % 4];
        i += 1;
    }
    bytes
}

/// High byte of the bf16 of a positive normal E4M3 with each exponent field; that of 0 comes from [`subnormals`].
const fn exponents() -> [u8; 32] {
    let mut bytes = [0; 32];
    let mut i = 0;
    while i < 32 {
        let field = (i % 16) as u8;
        if field > 0 {
            bytes[i] = (e4m3(field << 3).to_bits() >> 24) as u8;
        }
        i += 1;
    }
    bytes
}

/// Byte 0 (low) or 1 (high) of the bf16 of each positive subnormal E4M3, at its code plus 8. The low one without the
/// mantissa in its place, which is there already: see [`widen`].
const fn subnormals(byte: u32) -> [u8; 32] {
    let mut bytes = [0; 32];
    let mut i = 0;
    while i < 32 {
        let code = (i % 16) as u8;
        if code > 8 {
            let value = (e4m3(code - 8).to_bits() >> (16 + 8 * byte)) as u8;
            bytes[i] = if byte == 0 { value ^ (code - 8) << 4 } else { value };
        }
        i += 1;
    }
    bytes
}

/// Where the 16 weights of unit `$unit` lie, by kind.
macro_rules! address {
    (bf16, 0) => {
        "{lower}"
    };
    (bf16, 1) => {
        "{upper}"
    };
    (bf16, 2) => {
        "{lower}+{block}"
    };
    (bf16, 3) => {
        "{upper}+{block}"
    };
    (e4m3, 0) => {
        "{lower}"
    };
    (e4m3, 1) => {
        "{lower}+32"
    };
    (e4m3, 2) => {
        "{lower}+{block}"
    };
    (e4m3, 3) => {
        "{lower}+{block}+32"
    };
    (upper, 0) => {
        "{upper}"
    };
    (upper, 1) => {
        "{upper}+16"
    };
    (upper, 2) => {
        "{upper}+{block}"
    };
    (upper, 3) => {
        "{upper}+{block}+16"
    };
    (lower, 1) => {
        "{lower}+16"
    };
    (lower, 3) => {
        "{lower}+{block}+16"
    };
    (lower, $unit:tt) => {
        address!(bf16, $unit)
    };
}

/// The pairs of bf16 of a unit into `w0` and `w1`. A bf16 has the sign, eight exponent and seven mantissa bits; for E4M3 its
/// high byte comes by look-up of the exponent, its low one is the code's low nibble (last bit of the exponent, and mantissa)
/// in place, and for subnormals both are put right by look-ups that give zero for everything else.
macro_rules! widen {
    (bf16, $unit:tt) => {
        concat!(
            "vmovdqu {w0}, [",
            address!(bf16, $unit),
            "]\n",
            "vmovdqu {w1}, [",
            address!(bf16, $unit),
            "+32]\n",
        )
    };
    (e4m3, $unit:tt) => {
        concat!("vmovdqu {w0}, [", address!(e4m3, $unit), "]\n", widen!())
    };
    (apart, $unit:tt) => {
        concat!(
            // Four lanes of the lower half, then four of the upper one: see `Element::index`.
            "vmovdqu {w1:x}, [",
            address!(lower, $unit),
            "]\n",
            "vmovdqu {w2:x}, [",
            address!(upper, $unit),
            "]\n",
            "vpunpcklqdq {w0:x}, {w1:x}, {w2:x}\n",
            "vpunpckhqdq {w1:x}, {w1:x}, {w2:x}\n",
            "vinserti128 {w0}, {w0}, {w1:x}, 1\n",
            widen!()
        )
    };
    () => {
        concat!(
            "vpand {w1}, {w0}, ",
            constant!(magnitude),
            "\n",
            "vpaddb {w2}, {w1}, ",
            constant!(index),
            "\n",
            "vpsrlw {w1}, {w1}, 3\n",
            "vpand {w1}, {w1}, ",
            constant!(low_nibble),
            "\n",
            "vmovdqa {w3}, ",
            constant!(exponents),
            "\n",
            "vpshufb {w1}, {w3}, {w1}\n",
            "vmovdqa {w3}, ",
            constant!(subnormal_high),
            "\n",
            "vpshufb {w3}, {w3}, {w2}\n",
            "vpor {w1}, {w1}, {w3}\n",
            "vpand {w3}, {w0}, ",
            constant!(sign),
            "\n",
            "vpor {w1}, {w1}, {w3}\n",
            "vmovdqa {w3}, ",
            constant!(subnormal_low),
            "\n",
            "vpshufb {w2}, {w3}, {w2}\n",
            "vpsllw {w0}, {w0}, 4\n",
            "vpand {w0}, {w0}, ",
            constant!(high_nibble),
            "\n",
            "vpxor {w2}, {w0}, {w2}\n",
            "vpunpcklbw {w0}, {w2}, {w1}\n",
            "vpunpckhbw {w1}, {w2}, {w1}\n",
        )
    };
}

/// The weights of a unit as f32: of the even inputs in `w0` and `w1`, of the odd ones in `w2` and `w3`.
macro_rules! weights {
    ($kind:ident, $unit:tt) => {
        concat!(
            widen!($kind, $unit),
            "vpand {w2}, {w0}, ",
            constant!(odd),
            "\n",
            "vpand {w3}, {w1}, ",
            constant!(odd),
            "\n",
            "vpslld {w0}, {w0}, 16\n",
            "vpslld {w1}, {w1}, 16\n",
        )
    };
}

/// The two inputs of a row at this step, each in every lane.
macro_rules! inputs {
    ($row:literal, $even:literal, $odd:literal) => {
        concat!(
            "vpbroadcastd ",
            $even,
            ", dword ptr [",
            $row,
            "]\n",
            "vpand ",
            $odd,
            ", ",
            $even,
            ", ",
            constant!(odd),
            "\n",
            "vpslld ",
            $even,
            ", ",
            $even,
            ", 16\n",
        )
    };
}

/// Add the odd, then the even products.
macro_rules! add {
    ($first:literal, $second:literal, $even:literal, $odd:literal) => {
        concat!(
            "vfmadd231ps ",
            $first,
            ", {w2}, ",
            $odd,
            "\n",
            "vfmadd231ps ",
            $second,
            ", {w3}, ",
            $odd,
            "\n",
            "vfmadd231ps ",
            $first,
            ", {w0}, ",
            $even,
            "\n",
            "vfmadd231ps ",
            $second,
            ", {w1}, ",
            $even,
            "\n",
        )
    };
}

/// One step of units: `rows x units of a row`.
macro_rules! step {
    ($kind:ident, 1 x 4) => {
        concat!(
            step!($kind, 1 x 2),
            weights!($kind, 2), add!("{s4}", "{s5}", "{e0}", "{o0}"),
            weights!($kind, 3), add!("{s6}", "{s7}", "{e0}", "{o0}"),
        )
    };
    ($kind:ident, 1 x 2) => {
        concat!(
            inputs!("{inputs}", "{e0}", "{o0}"),
            weights!($kind, 0), add!("{s0}", "{s1}", "{e0}", "{o0}"),
            weights!($kind, 1), add!("{s2}", "{s3}", "{e0}", "{o0}"),
        )
    };
    ($kind:ident, 2 x 2) => {
        concat!(
            inputs!("{inputs}", "{e0}", "{o0}"),
            inputs!("{inputs}+{row}", "{e1}", "{o1}"),
            weights!($kind, 0), add!("{s0}", "{s1}", "{e0}", "{o0}"), add!("{s4}", "{s5}", "{e1}", "{o1}"),
            weights!($kind, 1), add!("{s2}", "{s3}", "{e0}", "{o0}"), add!("{s6}", "{s7}", "{e1}", "{o1}"),
        )
    };
    ($kind:ident, 3 x 1) => {
        concat!(
            weights!($kind, 0),
            inputs!("{inputs}", "{e0}", "{o0}"), add!("{s0}", "{s1}", "{e0}", "{o0}"),
            inputs!("{inputs}+{row}", "{e1}", "{o1}"), add!("{s2}", "{s3}", "{e1}", "{o1}"),
            inputs!("{inputs}+2*{row}", "{e0}", "{o0}"), add!("{s4}", "{s5}", "{e0}", "{o0}"),
        )
    };
    ($kind:ident, 4 x 1) => {
        concat!(
            step!($kind, 3 x 1),
            inputs!("{inputs}+{row3}", "{e1}", "{o1}"), add!("{s6}", "{s7}", "{e1}", "{o1}"),
        )
    };
}

/// What one block of assembly works on. Strides are in bytes.
#[derive(Clone, Copy)]
struct Units {
    /// Weights of lanes 0 to 15, or of all lanes, at the first step.
    lower: *const u8,
    /// Weights of lanes 16 to 31.
    upper: *const u8,
    /// From one block of outputs to the next.
    block: usize,
    /// From one step to the next; also how many there are, at least one.
    step: usize,
    steps: usize,
    inputs: *const u32,
    row: usize,
}

type Sums = [__m256; 8];

/// All steps of units of a kind.
///
/// # Safety
/// [`is_supported`], and all that [`Units`] points to can be read.
macro_rules! chain {
    ($units:ident, $sums:ident, $kind:ident, $rows:tt x $each:tt) => {{
        let mut control = [0u32, FLUSH];
        let [s0, s1, s2, s3, s4, s5, s6, s7] = $sums;
        asm!(
            "# {lower} {upper} {block} {row} {row3} {e0} {o0} {e1} {o1} {s0} {s1} {s2} {s3} {s4} {s5} {s6} {s7}",
            "stmxcsr [{control}]",
            "ldmxcsr [{control}+4]",
            "2:",
            step!($kind, $rows x $each),
            "add {lower}, {step}",
            "add {upper}, {step}",
            "add {inputs}, 4",
            "dec {steps}",
            "jnz 2b",
            "ldmxcsr [{control}]",
            lower = inout(reg) $units.lower => _,
            upper = inout(reg) $units.upper => _,
            block = in(reg) $units.block,
            step = in(reg) $units.step,
            steps = inout(reg) $units.steps => _,
            inputs = inout(reg) $units.inputs => _,
            row = in(reg) $units.row,
            row3 = in(reg) 3 * $units.row,
            control = in(reg) control.as_mut_ptr(),
            constants = in(reg) CONSTANTS.0.as_ptr(),
            s0 = inout(ymm_reg) *s0,
            s1 = inout(ymm_reg) *s1,
            s2 = inout(ymm_reg) *s2,
            s3 = inout(ymm_reg) *s3,
            s4 = inout(ymm_reg) *s4,
            s5 = inout(ymm_reg) *s5,
            s6 = inout(ymm_reg) *s6,
            s7 = inout(ymm_reg) *s7,
            w0 = out(ymm_reg) _,
            w1 = out(ymm_reg) _,
            w2 = out(ymm_reg) _,
            w3 = out(ymm_reg) _,
            e0 = out(ymm_reg) _,
            o0 = out(ymm_reg) _,
            e1 = out(ymm_reg) _,
            o1 = out(ymm_reg) _,
            options(nostack),
        );
    }};
}

/// How weights lie.
#[derive(Clone, Copy)]
enum Kind {
    Bf16,
    E4m3,
    /// E4M3 whose lanes 16 to 31 lie elsewhere.
    Apart,
}

impl Kind {
    /// Bytes from one unit of a block to the next, where both lie together.
    fn unit_bytes(self) -> usize {
        match self {
            Self::Bf16 => 0,
            Self::E4m3 => 32,
            Self::Apart => 16,
        }
    }

    /// Lanes of the two registers of unit 0 or 1 of a block; see `Element::index`.
    fn lanes(self, unit: usize) -> [usize; 2] {
        match self {
            Self::Bf16 => [16 * unit, 16 * unit + 8],
            Self::E4m3 | Self::Apart => [8 * unit, 16 + 8 * unit],
        }
    }
}

/// See [`Tile`].
///
/// # Safety
/// [`is_supported`], and the lengths of the slices must cover the shape, with at least one block, row and step.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run(tile: Tile<'_>, sums: &mut [f32]) {
    let kind = match (tile.element, tile.upper) {
        (Element::Bf16, _) => Kind::Bf16,
        (Element::E4m3, None) => Kind::E4m3,
        (Element::E4m3, Some(_)) => Kind::Apart,
    };
    let step = tile.step_bytes();
    // Lanes 16 to 31 of bf16.
    let upper = match tile.upper {
        Some(upper) => upper,
        None => &tile.weights[step / 2..],
    };
    // Parts of about the same height: five rows are three and two.
    let parts = tile.rows.div_ceil(4);
    let mut block = 0;
    while block < tile.blocks {
        let blocks = if tile.rows == 1 {
            2.min(tile.blocks - block)
        } else {
            1
        };
        let mut first = 0;
        for part in 0..parts {
            let rows = (tile.rows - first).div_ceil(parts - part);
            // SAFETY: blocks and rows lie within the shape, whose lengths the caller checked.
            unsafe {
                let units = Units {
                    lower: tile.weights.as_ptr().add(block * tile.block_stride),
                    upper: upper.as_ptr().add(block * tile.block_stride),
                    block: tile.block_stride,
                    step,
                    steps: tile.steps,
                    inputs: tile.inputs.as_ptr().add(first * tile.input_stride),
                    row: 4 * tile.input_stride,
                };
                let sums = sums.as_mut_ptr().add((block * tile.rows + first) * LANES);
                rows_of_blocks(kind, units, rows, blocks, sums);
            }
            first += rows;
        }
        block += blocks;
    }
}

/// One to four rows of a block, or one row of two blocks.
///
/// # Safety
/// As for [`run`]; `sums` are `[blocks][rows][32]`.
#[target_feature(enable = "avx2,fma")]
unsafe fn rows_of_blocks(kind: Kind, units: Units, rows: usize, blocks: usize, sums: *mut f32) {
    // SAFETY: the caller's promises are passed on.
    unsafe {
        if rows <= 2 {
            // Both units of a row at once.
            let place = |at: usize| (at / 2, kind.lanes(at % 2));
            chains(kind, units, (rows, 2 * blocks), place, sums);
        } else {
            for unit in 0..2 {
                let mut units = units;
                units.lower = units.lower.add(unit * kind.unit_bytes());
                units.upper = units.upper.add(unit * kind.unit_bytes());
                if unit == 1 && matches!(kind, Kind::Bf16) {
                    units.lower = units.upper;
                }
                chains(kind, units, (rows, 1), |at| (at, kind.lanes(unit)), sums);
            }
        }
    }
}

/// `(rows, units of each)`, whose sums `place` puts into a line of 32 and two lanes of it.
///
/// # Safety
/// As for [`run`].
#[target_feature(enable = "avx2,fma")]
unsafe fn chains(
    kind: Kind,
    units: Units,
    (rows, each): (usize, usize),
    place: impl Fn(usize) -> (usize, [usize; 2]),
    sums: *mut f32,
) {
    let mut acc: Sums = [_mm256_setzero_ps(); 8];
    // SAFETY: the caller's promises; the places are within the block's sums.
    unsafe {
        let at = |i: usize| {
            let (line, lanes) = place(i / 2);
            sums.add(line * LANES + lanes[i % 2])
        };
        let used = 2 * rows * each;
        for (i, acc) in acc.iter_mut().enumerate().take(used) {
            *acc = _mm256_loadu_ps(at(i));
        }
        let acc_of = &mut acc;
        macro_rules! choose {
            ($($kind:ident = $name:ident),*) => {
                match (kind, rows, each) {
                    $(
                        (Kind::$kind, 1, 4) => chain!(units, acc_of, $name, 1 x 4),
                        (Kind::$kind, 1, 2) => chain!(units, acc_of, $name, 1 x 2),
                        (Kind::$kind, 2, 2) => chain!(units, acc_of, $name, 2 x 2),
                        (Kind::$kind, 3, 1) => chain!(units, acc_of, $name, 3 x 1),
                        (Kind::$kind, 4, 1) => chain!(units, acc_of, $name, 4 x 1),
                    )*
                    _ => unreachable!("no chains of {rows} rows and {each} units each"),
                }
            };
        }
        choose!(Bf16 = bf16, E4m3 = e4m3, Apart = apart);
        for (i, acc) in acc.iter().enumerate().take(used) {
            _mm256_storeu_ps(at(i), *acc);
        }
    }
}
