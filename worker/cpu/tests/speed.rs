//! Speed of SmolLM2 in FP8 beside the machine's bounds.

use std::path::Path;

use llamero_cpu::bench::{self, BenchOptions};
use llamero_cpu::{CpuBackend, CpuOptions, Kernel, Level};
use llamero_engine::{Backend, Unwatched};

/// On one thread, decode must reach half of what the read bandwidth allows. Other work on the machine disturbs both
/// measurements, so the best of three runs counts.
#[test]
#[ignore = "long: a measurement, run by make test-long on a machine that does nothing else"]
fn decode_reaches_half_of_the_bandwidth_bound() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.local/models/SmolLM2-135M-Instruct-FP8");
    assert!(
        folder.join("config.json").exists(),
        "{} is not there: run `make model` first",
        folder.display()
    );
    let kernel = Kernel::detect();
    if kernel.level() != Level::Avx512 {
        println!("note: this CPU has no AVX-512 with BF16; speed is not tested here");
        return;
    }
    let options = CpuOptions::alone(1, kernel);
    let mut backend = CpuBackend::new(&folder, options).unwrap();
    backend.load(&Unwatched).unwrap();
    let best = (0..3)
        .map(|_| {
            let report = bench::run(&mut backend, BenchOptions::default()).unwrap();
            println!("{report}");
            report.decode_ratio()
        })
        .fold(0.0, f64::max);
    assert!(best >= 0.5, "decode reaches {best} of the bound by bandwidth");
}
