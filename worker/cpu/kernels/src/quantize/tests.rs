use super::*;
use crate::{Kernel, Level};

fn kernels() -> Vec<Kernel> {
    let all = [Level::Portable, Level::Avx2, Level::Avx512];
    all.into_iter()
        .filter_map(|level| Kernel::new(level).ok())
        .collect()
}

/// The rule as it is written down, one element at a time: the scale, and of the codes near the scaled element the nearest, of two
/// as near the even one.
fn plain(values: &[f32]) -> (f32, Vec<u8>) {
    let most = values
        .iter()
        .fold(2.0f32.powi(-100), |most, value| most.max(value.abs()));
    let nearest = |value: f32| -> u8 {
        let scaled = f64::from(value * (448.0 / most));
        let distance = |code: &u8| (scaled.abs() - f64::from(e4m3::decode(*code))).abs();
        let best = (0..0x7fu8).min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2))));
        best.unwrap() | if value.is_sign_negative() { 0x80 } else { 0 }
    };
    (most / 448.0, values.iter().map(|value| nearest(*value)).collect())
}

fn rows() -> Vec<Vec<f32>> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state
    };
    let mut rows = Vec::new();
    // Rows of every size, whose elements are up to 2^24 apart.
    for exponent in [-120, -30, -9, -1, 0, 3, 8, 9, 60, 119] {
        for len in [32, 64, 96, 128, 256] {
            let value = |bits: u32| {
                let mantissa = f32::from_bits(0x3f80_0000 | bits & 0x007f_ffff);
                let below = (bits >> 23) % 24;
                mantissa * 2.0f32.powi(exponent - below as i32) * if bits >> 31 == 0 { 1.0 } else { -1.0 }
            };
            rows.push((0..len).map(|_| value(next())).collect());
        }
    }
    // Ties, the largest code and what lies around it, the smallest, and alone beside zeros.
    for edge in [
        448.0f32,
        447.9,
        448.1,
        464.0,
        1.75,
        1.7500001,
        1.0 / 1024.0,
        3.0 / 1024.0,
    ] {
        rows.push(vec![
            edge,
            -edge / 2.0,
            0.0,
            -0.0,
            edge / 448.0 * 17.0,
            1.0 / 1024.0,
        ]);
    }
    rows.push(vec![f32::MAX, f32::MIN, 1.0]);
    rows.push(vec![f32::MIN_POSITIVE, f32::from_bits(1), -f32::MIN_POSITIVE]);
    rows.push(vec![2.0f32.powi(-100), 2.0f32.powi(-101), -2.0f32.powi(-110)]);
    rows
}

#[test]
fn every_kernel_gives_the_codes_of_the_plain_rule() {
    for values in rows() {
        let (scale, want) = plain(&values);
        for kernel in kernels() {
            let mut codes = vec![0xaa; values.len()];
            let got = quantize(kernel, &values, &mut codes);
            assert_eq!(got.to_bits(), scale.to_bits(), "{kernel:?} {values:?}");
            assert_eq!(codes, want, "{kernel:?} {values:?}");
        }
    }
}

/// The error of an element is at most half a step of its own magnitude, or of the smallest code; the largest has none.
#[test]
fn an_element_is_off_by_a_sixteenth_at_most() {
    for values in rows() {
        let mut codes = vec![0; values.len()];
        let scale = f64::from(quantize(Kernel::detect(), &values, &mut codes));
        let most = values
            .iter()
            .fold(0.0f64, |most, value| most.max(f64::from(value.abs())));
        for (value, code) in values.iter().zip(&codes) {
            let value = f64::from(*value);
            let error = (f64::from(e4m3::decode(*code)) * scale - value).abs();
            let rounding = value.abs() / f64::from(1 << 22);
            let bound = if value.abs() == most {
                0.0
            } else {
                value.abs() / 16.0
            };
            assert!(
                error <= (bound + rounding).max(scale / 1023.0),
                "{value} of {values:?}"
            );
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for kernel in kernels() {
        let mut codes = [9; 32];
        let scale = quantize(kernel, &[0.0; 32], &mut codes);
        assert_eq!(codes, [0; 32]);
        assert!(scale > 0.0 && scale.is_normal());
    }
}

#[test]
fn a_row_with_a_nan_or_an_infinity_is_nan() {
    for kernel in kernels() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [1.0; 64];
            values[37] = bad;
            let mut codes = [9; 64];
            assert!(quantize(kernel, &values, &mut codes).is_nan());
            assert_eq!(codes, [0; 64]);
        }
    }
}
