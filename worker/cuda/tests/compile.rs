//! Kernels compile for every architecture, without spills where it matters.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::{CString, c_char};

use cudarc::nvrtc::result;
use llamero_cuda::compile::{arch, ptx};
use llamero_cuda::ops::WAITED_FOR;
use llamero_cuda::source::Source;
use llamero_gpu_emulator::emulated;

fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars
        .iter()
        .map(|byte| byte.cast_unsigned())
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8(bytes).unwrap()
}

/// What the assembler says about each kernel of a file.
fn assembler_log(source: Source, arch: &str) -> String {
    let program = result::create_program(&CString::new(source.text()).unwrap(), None).unwrap();
    let options = [
        format!("--gpu-architecture={arch}"),
        "--ptxas-options=-v".to_owned(),
    ];
    // SAFETY: the program was made above and is destroyed last.
    unsafe {
        result::compile_program(program, &options).unwrap();
        let log = text(&result::get_program_log(program).unwrap());
        result::destroy_program(program).unwrap();
        log
    }
}

emulated! {
    fn every_architecture_has_its_kernels() on ["order=forward"], {
        for capability in [(8, 0), (8, 9), (9, 0), (10, 0)] {
            for source in Source::ALL {
                let arch = arch(capability);
                let target = arch.replace("compute", "sm");
                assert!(ptx(source, &arch, None).unwrap().contains(&format!(".target {target}")), "{source:?} {arch}");
            }
        }
    }

    fn no_kernel_spills_registers_on_hopper() on ["order=forward"], {
        for source in Source::ALL {
            let log = assembler_log(source, "sm_90a");
            let kernels = log.matches("Compiling entry function").count();
            assert_eq!(kernels, source.text().matches("extern \"C\" __global__").count().max(8 * usize::from(source == Source::Product)));
            assert_eq!(log.matches("0 bytes spill stores, 0 bytes spill loads").count(), kernels, "{log}");
        }
    }

    /// Each is started before the one before it has ended, and must touch nothing of it until then: products fetch weights, which no kernel writes.
    fn kernels_wait_for_the_one_before_them_before_they_touch_memory() on ["order=forward"], {
        let mut seen = 0;
        for source in Source::ALL {
            let text = ptx(source, "compute_90a", None).unwrap();
            for kernel in text.split(".visible .entry ").skip(1) {
                let name = kernel.split('(').next().unwrap();
                seen += 1;
                let Some((before, _)) = kernel.split_once("griddepcontrol.wait") else {
                    assert!(WAITED_FOR.contains(&name), "{name} does not wait");
                    continue;
                };
                assert!(!WAITED_FOR.contains(&name), "{name} waits");
                for touch in ["ld.global", "st.global", "atom.global", "\tred.global", "ld.volatile", "ld.acquire", "st.release"] {
                    assert!(!before.contains(touch), "{name} has {touch} before it waits");
                }
                assert_eq!(before.contains("cp.async"), name.starts_with("product_"), "{name}");
            }
        }
        assert!(seen >= 30, "{seen} kernels");
    }

    fn ptx_is_kept_by_its_content() on ["order=forward"], {
        let folder = tempfile::tempdir().unwrap();
        let made = ptx(Source::Layer, "compute_80", Some(folder.path())).unwrap();
        let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        std::fs::write(&files[0], "kept").unwrap();
        assert_eq!(ptx(Source::Layer, "compute_80", Some(folder.path())).unwrap(), "kept");
        assert_ne!(ptx(Source::Layer, "compute_90a", Some(folder.path())).unwrap(), made);
        let missing = folder.path().join("missing");
        let error = ptx(Source::Layer, "compute_80", Some(&missing)).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
