//! What is missing is a sentence.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use llamero_cuda::compile::{KernelError, ptx};
use llamero_cuda::device::{DeviceError, devices, find};
use llamero_cuda::probe::{self, Absent};
use llamero_cuda::source::Source;
use llamero_gpu_emulator::emulated;

/// Asks a process of this test to look for libraries where there are none.
const BARE: &str = "LLAMERO_CUDA_TEST_BARE";

#[test]
fn without_libraries_there_is_a_sentence() {
    if std::env::var_os(BARE).is_some() {
        assert_eq!(probe::driver().unwrap_err(), Absent::Driver);
        assert!(probe::driver().unwrap_err().to_string().contains("libcuda.so.1"));
        let error = ptx(Source::Layer, "compute_80", None).unwrap_err();
        assert!(matches!(error, KernelError::Absent(Absent::Compiler)), "{error}");
        return;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["without_libraries_there_is_a_sentence", "--exact"])
        .env_remove("LD_LIBRARY_PATH")
        .env(BARE, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

emulated! {
    fn devices_are_found_by_their_uuid() on ["devices=3,cc=8.9,memory=24GiB"], {
        let driver = probe::driver().unwrap();
        let all = devices(driver).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!((all[0].capability, all[0].memory), ((8, 9), 24 << 30));
        let found = find(driver, all[2].uuid).unwrap();
        assert_eq!(found.context.ordinal(), 2);
        let missing = "GPU-00000000-0000-0000-0000-000000000000".parse().unwrap();
        let error = find(driver, missing).unwrap_err().to_string();
        assert!(error.contains(&all[1].uuid.to_string()), "{error}");
    }

    fn devices_that_a_compute_mode_keeps_are_named_with_the_way_out() on ["mode=taken", "mode=prohibited"], {
        let error = devices(probe::driver().unwrap()).unwrap_err();
        match std::env::var("LLAMERO_GPU_EMULATOR").unwrap().as_str() {
            "mode=taken" => assert!(matches!(error, DeviceError::Taken { .. }), "{error}"),
            _ => assert!(matches!(error, DeviceError::Prohibited { .. }), "{error}"),
        }
        assert!(error.to_string().contains("--compute-mode=DEFAULT"), "{error}");
    }

    fn old_devices_are_refused() on ["cc=7.5"], {
        let error = devices(probe::driver().unwrap()).unwrap_err().to_string();
        assert!(error.contains("7.5") && error.contains("8.0"), "{error}");
    }
}
