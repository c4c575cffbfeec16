//! Tiny models on both backends.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::{Path, PathBuf};

use llamero_cpu::{CpuBackend, CpuOptions, Kernel};
use llamero_cuda::{CudaBackend, CudaOptions};
use llamero_engine::{FormLimits, FormSpec, KvDtype};
use llamero_gpu_check::drive::{self, ERA, Leader};
use llamero_gpu_check::model::Model;
use tempfile::TempDir;

/// What tiny groups agree on.
pub(crate) const TINY_SPEC: FormSpec = FormSpec {
    era: ERA,
    limits: TINY_LIMITS,
    kv_bytes: 64 << 20,
};

pub(crate) const TINY_LIMITS: FormLimits = FormLimits {
    max_sequences: 48,
    max_batched_tokens: 320,
    max_context: 400,
    block_size: 16,
    steps_in_flight: 2,
    kv_dtype: KvDtype::Bf16,
    max_adapters: 0,
    max_adapter_rank: 0,
};

pub(crate) fn checkpoint(model: &Model) -> TempDir {
    let folder = TempDir::new().unwrap();
    model.write(folder.path(), 7).unwrap();
    folder
}

/// Where compiled kernels are kept. The check on a real GPU runs elsewhere, and says where they are.
pub(crate) fn kernels() -> PathBuf {
    match std::env::var_os("LLAMERO_GPU_CHECK_KERNELS") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned(),
    }
}

pub(crate) fn options() -> CudaOptions {
    CudaOptions {
        kernels: Some(kernels()),
        ..CudaOptions::alone()
    }
}

pub(crate) fn backend(folder: &Path) -> CudaBackend {
    CudaBackend::new(folder, options()).unwrap()
}

pub(crate) fn cpu(folder: &Path) -> CpuBackend {
    CpuBackend::new(folder, CpuOptions::alone(1, Kernel::detect())).unwrap()
}

/// A formed backend, a leader for it, and the model's folder.
pub(crate) fn formed(model: &Model) -> (CudaBackend, Leader, TempDir) {
    let folder = checkpoint(model);
    let mut gpu = backend(folder.path());
    let blocks = drive::form(&mut gpu, &TINY_SPEC).unwrap();
    (gpu, leader(blocks), folder)
}

pub(crate) fn leader(blocks: u32) -> Leader {
    Leader::new(&TINY_SPEC, blocks)
}

pub(crate) fn prompt(len: u32) -> Vec<u32> {
    (0..len).map(|i| (i * i * 31 + i * 7 + 3) % 1000).collect()
}
