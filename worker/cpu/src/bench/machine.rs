//! What the machine can do: read bandwidth and the peak of dot products.

use std::hint::black_box;
use std::time::Duration;

use super::stopwatch::Stopwatch;
use crate::kernel::Kernel;
use crate::kernel::multiversion;
use crate::kernel::pack::{Element, LANES};
use crate::kernel::tile::{MAX_ROWS, Tile};
use crate::pool::Pool;

/// Far more than any cache holds.
const BUFFER: usize = 256 << 20;
const REPEATS: usize = 5;
const PART: usize = 1 << 20;
/// The machine is measured alone, so helpers may look for work.
const SPIN: Duration = Duration::from_micros(30);

multiversion! {
    /// Read all of it.
    fn sum(words: &[u64]) -> u64 {
        words.iter().fold(0, |sum, word| sum ^ word)
    }
}

/// Read bandwidth in bytes a second with that many threads: the best of five passes over 256 MiB; 0 when there is no
/// memory or no thread for it.
#[must_use]
pub fn bandwidth(threads: usize) -> f64 {
    let (Ok(mut pool), Ok(mut region)) = (Pool::new(threads, SPIN), crate::region::Region::anonymous(BUFFER))
    else {
        return 0.0;
    };
    region = region.prefer_large_pages();
    region.bytes_mut().fill(1);
    let kernel = Kernel::detect();
    let words: &[u64] = bytemuck::cast_slice(region.bytes());
    let parts: Vec<&[u64]> = words.chunks(PART / size_of::<u64>()).collect();
    let best = best_of(threads, || {
        pool.run(parts.len(), &|part| {
            black_box(sum(kernel, parts[part]));
        });
    });
    BUFFER as f64 / best.as_secs_f64()
}

/// Operations a second (a multiply-add counts two) of the kernel's bf16 dot products on data in the first-level cache.
#[must_use]
pub fn flops(kernel: Kernel, threads: usize) -> f64 {
    const STEPS: usize = 64;
    const ROUNDS: usize = 4000;
    let Ok(mut pool) = Pool::new(threads, SPIN) else {
        return 0.0;
    };
    let weights = vec![0u8; STEPS * Element::Bf16.step_bytes()];
    let inputs = vec![0u32; MAX_ROWS * STEPS];
    let tile = Tile {
        element: Element::Bf16,
        weights: &weights,
        upper: None,
        block_stride: 0,
        blocks: 1,
        steps: STEPS,
        inputs: &inputs,
        input_stride: STEPS,
        rows: MAX_ROWS,
    };
    let best = best_of(threads, || {
        pool.run(threads, &|_| {
            let mut sums = [0.0; MAX_ROWS * LANES];
            for _ in 0..ROUNDS {
                black_box(tile).run(kernel, black_box(&mut sums));
            }
        });
    });
    (threads * ROUNDS * STEPS * MAX_ROWS * LANES * 4) as f64 / best.as_secs_f64()
}

fn best_of(threads: usize, mut work: impl FnMut()) -> Duration {
    let time = |work: &mut dyn FnMut()| {
        let start = Stopwatch::start(threads);
        work();
        start.elapsed()
    };
    (0..REPEATS).map(|_| time(&mut work)).min().unwrap_or_default()
}
