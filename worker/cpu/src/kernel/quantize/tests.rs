use super::*;
use crate::kernel::{Kernel, Level};

fn kernels() -> Vec<Kernel> {
    let all = [Level::Portable, Level::Avx2, Level::Avx512];
    all.into_iter()
        .filter_map(|level| Kernel::new(level).ok())
        .collect()
}

/// The rule in f64, by search: the smallest power of two that does, and the nearest code, ties to the even one.
fn plain(values: &[f32]) -> (f64, Vec<f64>) {
    let most = values.iter().fold(0.0f64, |most, value| most.max(f64::from(value.abs())));
    let scale = (-126..=127)
        .map(|exponent| 2.0f64.powi(exponent))
        .find(|scale| most <= 448.0 * scale)
        .unwrap();
    let nearest = |value: f64| -> f64 {
        let codes = (0..0x7fu8).map(|code| (code, f64::from(e4m3::decode(code))));
        let distance = |decoded: f64| (value.abs() - decoded).abs();
        let best = codes.min_by(|a, b| {
            let by_parity = (a.0 % 2).cmp(&(b.0 % 2));
            distance(a.1).total_cmp(&distance(b.1)).then(by_parity)
        });
        best.unwrap().1.copysign(value)
    };
    let codes = values.iter().map(|value| nearest(f64::from(*value) / scale));
    (scale, codes.collect())
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
    for edge in [448.0f32, 447.9, 448.1, 464.0, 1.75, 1.7500001, 1.0 / 1024.0, 3.0 / 1024.0] {
        rows.push(vec![edge, -edge / 2.0, 0.0, -0.0, edge / 448.0 * 17.0, 1.0 / 1024.0]);
    }
    rows.push(vec![f32::MAX, f32::MIN, 1.0]);
    rows.push(vec![f32::MIN_POSITIVE, f32::from_bits(1), -f32::MIN_POSITIVE]);
    rows
}

#[test]
fn every_kernel_gives_the_codes_of_the_plain_rule() {
    for values in rows() {
        let (want_scale, want) = plain(&values);
        for kernel in kernels() {
            let mut codes = vec![0xaa; values.len()];
            let scale = scale(quantize(kernel, &values, &mut codes));
            assert_eq!(f64::from(scale), want_scale, "{kernel:?} {values:?}");
            let got: Vec<f64> = codes
                .iter()
                .map(|code| f64::from(e4m3::decode(*code)))
                .collect();
            let bits = |codes: &[f64]| -> Vec<u64> { codes.iter().map(|code| code.to_bits()).collect() };
            assert_eq!(bits(&got), bits(&want), "{kernel:?} {values:?}");
        }
    }
}

/// The error of an element is at most half a step of its own magnitude, or of the smallest code.
#[test]
fn an_element_is_off_by_a_sixteenth_at_most() {
    for values in rows() {
        let mut codes = vec![0; values.len()];
        let scale = f64::from(scale(quantize(Kernel::detect(), &values, &mut codes)));
        for (value, code) in values.iter().zip(&codes) {
            let value = f64::from(*value);
            let error = (f64::from(e4m3::decode(*code)) * scale - value).abs();
            assert!(error <= (value.abs() / 16.0).max(scale / 1024.0), "{value} of {values:?}");
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for kernel in kernels() {
        let mut codes = [9; 32];
        let byte = quantize(kernel, &[0.0; 32], &mut codes);
        assert_eq!(codes, [0; 32]);
        assert!(scale(byte) > 0.0 && scale(byte).is_finite());
    }
    assert_eq!(scale(0), 0.0);
}

#[test]
fn a_row_with_a_nan_or_an_infinity_is_nan() {
    for kernel in kernels() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [1.0; 64];
            values[37] = bad;
            let mut codes = [9; 64];
            assert!(scale(quantize(kernel, &values, &mut codes)).is_nan());
            assert_eq!(codes, [0; 64]);
        }
    }
}
