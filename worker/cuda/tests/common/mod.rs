//! Kernels on the first device, and numbers to feed them.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::{Path, PathBuf};

use half::bf16;
use llamero_cuda::compile::Modules;
use llamero_cuda::device::devices;
use llamero_cuda::ops::Ops;
use llamero_cuda::probe;

/// Kernels, compiled once for all tests.
pub(crate) fn ops() -> Ops {
    let device = devices(probe::driver().unwrap()).unwrap().remove(0);
    Ops::new(Modules::new(device, Some(kernels()))).unwrap()
}

/// Where compiled kernels are kept. The check on a real GPU runs elsewhere, and says where they are.
pub(crate) fn kernels() -> PathBuf {
    match std::env::var_os("LLAMERO_GPU_CHECK_KERNELS") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned(),
    }
}

/// Numbers between -1 and 1, the same for the same seed.
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

pub(crate) fn to_bf16(values: &[f32]) -> Vec<u16> {
    values
        .iter()
        .map(|value| bf16::from_f32(*value).to_bits())
        .collect()
}

pub(crate) fn of_bf16(bits: u16) -> f64 {
    f64::from(bf16::from_bits(bits).to_f32())
}

/// The relative L2 distance is at most `bound`.
pub(crate) fn close(found: impl IntoIterator<Item = f64>, wanted: &[f64], bound: f64) {
    let found: Vec<f64> = found.into_iter().collect();
    assert_eq!(found.len(), wanted.len());
    let size: f64 = wanted.iter().map(|x| x * x).sum();
    let distance: f64 = found.iter().zip(wanted).map(|(a, b)| (a - b) * (a - b)).sum();
    let relative = (distance / size.max(f64::MIN_POSITIVE)).sqrt();
    assert!(
        relative <= bound,
        "relative L2 distance {relative:e}, at most {bound:e} is allowed"
    );
}

/// Put leaves of `width` elements behind each other with zeros between them.
pub(crate) fn padded<T: Copy + Default>(row: &[T], width: usize) -> Vec<T> {
    let mut out = Vec::new();
    for leaf in row.chunks(width) {
        out.extend_from_slice(leaf);
        out.resize(out.len().next_multiple_of(64), T::default());
    }
    out
}
