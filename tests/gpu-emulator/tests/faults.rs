//! What a wrong kernel does: faults that name it, and wrong results where hardware may give them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Gpu, compile, launch};
use cudarc::driver::{PushKernelArg, sys};
use cudarc::nvrtc::Ptx;
use llamero_gpu_emulator::emulated;
use llamero_gpu_emulator::harness::log;

/// Run `kernel` with one buffer of `words` words; the code of its fault, and the fault's text.
fn fault(source: &str, words: usize, threads: u32) -> (sys::CUresult, String) {
    let gpu = Gpu::new(source, "k");
    let mut out = gpu.stream.alloc_zeros::<u32>(words).unwrap();
    let error = launch(&gpu, 1, threads, 0, |args| {
        args.arg(&mut out);
    })
    .unwrap_err();
    (error.0, log().last().unwrap().clone())
}

const REVERSED: &str = r#"
extern "C" __global__ void k(int* out) {
    __shared__ int s[256];
    s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = s[255 - threadIdx.x];
}"#;

const COPIED: &str = r#"
extern "C" __global__ void k(const int* from, int* out) {
    __shared__ int s[32][4];
    unsigned to = (unsigned)__cvta_generic_to_shared(&s[threadIdx.x][0]);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(from + 4 * threadIdx.x) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    for (int i = 0; i < 4; i++) out[4 * threadIdx.x + i] = s[threadIdx.x][i];
}"#;

/// Without the lines that hold `what`, of which there is at least one.
fn without(source: &str, what: &str) -> Ptx {
    let ptx = compile(source).to_src();
    let (dropped, kept): (Vec<&str>, Vec<&str>) = ptx.lines().partition(|line| line.contains(what));
    assert!(!dropped.is_empty(), "{ptx}");
    Ptx::from_src(kept.join("\n"))
}

fn reversed(ptx: Ptx) -> bool {
    let gpu = Gpu::load(0, ptx, "k");
    let mut out = gpu.stream.alloc_zeros::<i32>(256).unwrap();
    launch(&gpu, 1, 256, 0, |args| {
        args.arg(&mut out);
    })
    .unwrap();
    gpu.stream
        .clone_dtoh(&out)
        .unwrap()
        .into_iter()
        .eq((0..256).rev())
}

fn copied(ptx: Ptx) -> bool {
    let gpu = Gpu::load(0, ptx, "k");
    let from: Vec<i32> = (0..128).collect();
    let on_device = gpu.stream.clone_htod(&from).unwrap();
    let mut out = gpu.stream.alloc_zeros::<i32>(128).unwrap();
    launch(&gpu, 1, 32, 0, |args| {
        args.arg(&on_device).arg(&mut out);
    })
    .unwrap();
    gpu.stream.clone_dtoh(&out).unwrap() == from
}

emulated! {
    fn an_access_out_of_bounds_names_kernel_line_and_lane() on ["log={folder}/log"], {
        let source = "extern \"C\" __global__ void k(int* out) { if (threadIdx.x > 40) out[threadIdx.x] = 1; }";
        let ptx = compile(source).to_src();
        let line = 1 + ptx.lines().position(|line| line.contains("st.global")).unwrap();
        let (code, text) = fault(source, 50, 64);
        assert_eq!(code, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        for part in ["kernel `k`", &format!("PTX line {line},"), "thread 50 (lane 18)", "write of 4 bytes", "4 bytes behind the end"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    fn a_misaligned_access_is_a_fault() on ["log={folder}/log"], {
        let source = "extern \"C\" __global__ void k(char* out) { *(int*)(out + threadIdx.x) = 1; }";
        let (code, text) = fault(source, 50, 2);
        assert_eq!(code, sys::CUresult::CUDA_ERROR_MISALIGNED_ADDRESS);
        assert!(text.contains("(lane 1)") && text.contains("misaligned"), "{text}");
    }

    fn shared_memory_has_bounds_too() on ["log={folder}/log"], {
        let source = "extern \"C\" __global__ void k(int* out) {
            __shared__ int s[8]; s[threadIdx.x + *out] = 1; __syncthreads(); out[1] = s[0]; }";
        let (code, text) = fault(source, 2, 9);
        assert_eq!(code, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert!(text.contains("shared") && text.contains("(lane 8)") && text.contains("has 32 bytes"), "{text}");
    }

    fn a_null_pointer_is_a_fault() on ["log={folder}/log"], {
        let (code, text) = fault("extern \"C\" __global__ void k(int** out) { **out = 1; }", 2, 1);
        assert_eq!(code, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert!(text.contains("nothing is allocated there"), "{text}");
    }

    fn a_barrier_that_others_never_reach_is_a_fault() on ["log={folder}/log"], {
        let source = "extern \"C\" __global__ void k(int* out) {
            if (threadIdx.x < 32) asm volatile(\"bar.sync 1, 64;\"); else asm volatile(\"bar.sync 2, 64;\"); }";
        let (code, text) = fault(source, 1, 64);
        assert_eq!(code, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
        assert!(text.contains("barrier 1 has 32 of 64 threads"), "{text}");
    }

    fn lanes_that_never_come_are_a_fault() on ["log={folder}/log"], {
        // The other half waits at a barrier that needs this half.
        let source = "extern \"C\" __global__ void k(int* out) {
            if (threadIdx.x < 16) { out[0] = __shfl_sync(~0u, threadIdx.x, 0); __syncthreads(); } else { __syncthreads(); } }";
        let (code, _) = fault(source, 1, 32);
        assert_eq!(code, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
    }

    fn trap_is_a_fault() on ["log={folder}/log"], {
        let (code, text) = fault("extern \"C\" __global__ void k(int* out) { if (threadIdx.x == 3) __trap(); }", 1, 32);
        assert_eq!(code, sys::CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION);
        assert!(text.contains("(lane 3)"), "{text}");
    }

    fn a_missing_barrier_shows_in_another_order() on ["order=forward", "order=reverse", "order=seed:3"], {
        assert!(reversed(compile(REVERSED)));
        // Warps that each run as far as they get: the last one needs what the first wrote, and the first what none has
        // written yet.
        assert!(!reversed(without(REVERSED, "bar.sync")));
    }

    fn a_missing_wait_reads_what_was_there_before() on ["order=forward"], {
        assert!(copied(compile(COPIED)));
        assert!(!copied(without(COPIED, "cp.async.wait_group")));
    }

    fn unknown_forms_are_refused_when_loaded() on ["cc=9.0"], {
        let ptx = compile(REVERSED).to_src().replace("bar.sync", "wgmma.fence.sync.aligned; bar.sync");
        let context = cudarc::driver::CudaContext::new(0).unwrap();
        let error = context.load_module(Ptx::from_src(ptx)).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_INVALID_PTX);
    }

    fn later_targets_are_refused() on ["cc=8.0"], {
        let ptx = compile(REVERSED).to_src().replace("sm_80", "sm_90a");
        let context = cudarc::driver::CudaContext::new(0).unwrap();
        let error = context.load_module(Ptx::from_src(ptx)).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    }

    fn bytes_are_counted_by_buffer() on ["log={folder}/log"], {
        let gpu = Gpu::new("extern \"C\" __global__ void k(const float4* x, float* out) {
            float4 v = x[threadIdx.x]; out[threadIdx.x] = v.x + v.w + ((const float*)x)[0]; }", "k");
        let x = gpu.stream.alloc_zeros::<f32>(4 * 64).unwrap();
        let mut out = gpu.stream.alloc_zeros::<f32>(64).unwrap();
        launch(&gpu, 1, 64, 0, |args| { args.arg(&x).arg(&mut out); }).unwrap();
        let line = log().pop().unwrap();
        // One word that all lanes of a warp read counts once for each warp.
        assert!(line.contains(&format!(",1024,{},0]", 1024 + 2 * 4)), "{line}");
        assert!(line.contains(",256,0,256]"), "{line}");
    }
}
