//! The dot-product tile with AVX-512: `VDPBF16PS` for the sums, `VPERMI2B` (VBMI) to widen E4M3 to bf16 exactly.
//!
//! A bf16 has the sign, eight exponent and seven mantissa bits; for an E4M3 magnitude (seven bits) both of its bytes come
//! from a table of 128 entries held in two registers each, and the sign is put in by one ternary-logic instruction.

use std::arch::x86_64::{
    __m512bh, __m512i, _mm256_loadu_si256, _mm512_castsi256_si512, _mm512_dpbf16_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_permutex2var_epi8, _mm512_permutex2var_epi64, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_setr_epi64, _mm512_storeu_ps, _mm512_ternarylogic_epi32, _mm512_unpackhi_epi8,
    _mm512_unpacklo_epi8,
};
use std::mem::transmute;

use super::pack::{Element, LANES};
use super::portable::e4m3;
use super::tile::Tile;

/// Whether the CPU (and the operating system) has what [`run`] uses.
pub(super) fn is_supported() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
}

/// Byte 0 (low) or 1 (high) of the bf16 of every E4M3 magnitude.
const fn table(byte: u32) -> [u8; 128] {
    let mut bytes = [0; 128];
    let mut code = 0;
    while code < 128 {
        bytes[code] = (e4m3(code as u8).to_bits() >> (16 + 8 * byte)) as u8;
        code += 1;
    }
    bytes
}

/// What is multiplied, and where it lies.
const BF16: u8 = 0;
const E4M3: u8 = 1;
/// E4M3 whose lanes 16 to 31 lie elsewhere.
const E4M3_APART: u8 = 2;

static LOW: [u8; 128] = table(0);
static HIGH: [u8; 128] = table(1);

/// See [`Tile`]. `blocks` must be 1, 2 or 4 and `blocks * rows` at most 8, as [`super::tile::blocks_at_once`] says.
///
/// # Safety
/// [`is_supported`], and the lengths of the slices must cover the shape.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
pub(super) unsafe fn run(tile: Tile<'_>, sums: &mut [f32]) {
    let kind = match (tile.element, tile.upper) {
        (Element::Bf16, _) => BF16,
        (Element::E4m3, None) => E4M3,
        (Element::E4m3, Some(_)) => E4M3_APART,
    };
    macro_rules! choose {
        ($(($rows:literal, $blocks:literal)),*) => {
            match (tile.rows, tile.blocks, kind) {
                $(
                    // SAFETY: the caller's promises are passed on.
                    ($rows, $blocks, BF16) => unsafe { chains::<$rows, $blocks, BF16>(tile, sums) },
                    // SAFETY: as above.
                    ($rows, $blocks, E4M3) => unsafe { chains::<$rows, $blocks, E4M3>(tile, sums) },
                    // SAFETY: as above.
                    ($rows, $blocks, E4M3_APART) => unsafe { chains::<$rows, $blocks, E4M3_APART>(tile, sums) },
                )*
                _ => unreachable!("no tile of {} rows and {} blocks", tile.rows, tile.blocks),
            }
        };
    }
    choose!(
        (1, 1),
        (1, 2),
        (1, 4),
        (2, 1),
        (2, 2),
        (2, 4),
        (3, 1),
        (3, 2),
        (4, 1),
        (4, 2),
        (5, 1),
        (6, 1),
        (7, 1),
        (8, 1)
    );
}

/// `ROWS` rows of `BLOCKS` blocks, weights of one kind.
///
/// # Safety
/// As for [`run`], with `ROWS`, `BLOCKS` and `KIND` those of the tile; `sums` are `[BLOCKS][ROWS][32]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
#[allow(
    clippy::needless_range_loop,
    reason = "indices also compute addresses; loops of constant length unroll"
)]
unsafe fn chains<const ROWS: usize, const BLOCKS: usize, const KIND: u8>(tile: Tile<'_>, sums: &mut [f32]) {
    let step_bytes = tile.step_bytes();
    let sums = sums.as_mut_ptr();
    // Lanes 16 to 31; E4M3 that lies together is unpacked from one register.
    let upper = match tile.upper {
        Some(upper) => upper,
        None => &tile.weights[step_bytes / 2..],
    }
    .as_ptr();
    // SAFETY: all reads and writes lie inside the slices: rows, blocks and steps are within the shape whose lengths the
    // caller checked; unaligned loads are used throughout; the tables are 128 bytes.
    unsafe {
        let low = [
            _mm512_loadu_si512(LOW.as_ptr().cast()),
            _mm512_loadu_si512(LOW.as_ptr().add(64).cast()),
        ];
        let high = [
            _mm512_loadu_si512(HIGH.as_ptr().cast()),
            _mm512_loadu_si512(HIGH.as_ptr().add(64).cast()),
        ];
        let sign = _mm512_set1_epi8(i8::MIN);
        // Four lanes of the lower half, then four of the upper one: see `Element::index`.
        let together = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
        let mut acc = [[[_mm512_loadu_ps(sums); 2]; ROWS]; BLOCKS];
        for b in 0..BLOCKS {
            for r in 0..ROWS {
                let at = sums.add((b * ROWS + r) * LANES);
                acc[b][r] = [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))];
            }
        }
        for step in 0..tile.steps {
            let inputs = tile.inputs.as_ptr().add(step);
            for b in 0..BLOCKS {
                let at = b * tile.block_stride + step * step_bytes;
                let first = tile.weights.as_ptr().add(at);
                let first = if KIND == E4M3_APART {
                    let half = |from: *const u8| _mm512_castsi256_si512(_mm256_loadu_si256(from.cast()));
                    _mm512_permutex2var_epi64(half(first), together, half(upper.add(at)))
                } else {
                    _mm512_loadu_si512(first.cast())
                };
                let weights: [__m512i; 2] = if KIND != BF16 {
                    let lows = _mm512_permutex2var_epi8(low[0], first, low[1]);
                    let highs = _mm512_permutex2var_epi8(high[0], first, high[1]);
                    // highs | (first & sign)
                    let highs = _mm512_ternarylogic_epi32::<0xf8>(highs, first, sign);
                    [
                        _mm512_unpacklo_epi8(lows, highs),
                        _mm512_unpackhi_epi8(lows, highs),
                    ]
                } else {
                    [first, _mm512_loadu_si512(upper.add(at).cast())]
                };
                for r in 0..ROWS {
                    let input = _mm512_set1_epi32(inputs.add(r * tile.input_stride).read() as i32);
                    for half in 0..2 {
                        acc[b][r][half] = _mm512_dpbf16_ps(
                            acc[b][r][half],
                            transmute::<__m512i, __m512bh>(input),
                            transmute::<__m512i, __m512bh>(weights[half]),
                        );
                    }
                }
            }
        }
        for b in 0..BLOCKS {
            for r in 0..ROWS {
                let at = sums.add((b * ROWS + r) * LANES);
                _mm512_storeu_ps(at, acc[b][r][0]);
                _mm512_storeu_ps(at.add(16), acc[b][r][1]);
            }
        }
    }
}
