//! The driver through the real bindings, running what the real compiler made.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Gpu, launch};
use cudarc::driver::{CudaContext, PushKernelArg, result, sys};
use llamero_gpu_emulator::emulated;
use llamero_gpu_emulator::harness::ORDERS;

const SUM: &str = r#"
extern "C" __global__ void sum(const float* x, float* out, int n) {
    __shared__ float parts[8];
    float v = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) v += x[i];
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x == 0) {
        float s = 0.0f;
        for (int i = 0; i < blockDim.x / 32; i++) s += parts[i];
        out[blockIdx.x] = s;
    }
}"#;

emulated! {
    fn sums_in_any_order() on ORDERS, {
        let gpu = Gpu::new(SUM, "sum");
        let x: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let (x, mut out) = (gpu.stream.clone_htod(&x).unwrap(), gpu.stream.alloc_zeros::<f32>(3).unwrap());
        launch(&gpu, 3, 256, 0, |args| { args.arg(&x).arg(&mut out).arg(&1000i32); }).unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&out).unwrap(), [499_500.0; 3]);
    }

    fn work_is_deferred_until_somebody_waits() on ["streams=deferred"], {
        let gpu = Gpu::new(SUM, "sum");
        // SAFETY: all of it is written before it is read.
        let mut x = unsafe { gpu.context.alloc_pinned::<f32>(64) }.unwrap();
        x.as_mut_slice().unwrap().fill(1.0);
        let mut on_device = gpu.stream.alloc_zeros::<f32>(64).unwrap();
        let mut out = gpu.stream.alloc_zeros::<f32>(1).unwrap();
        gpu.stream.synchronize().unwrap();
        let address = x.as_mut_ptr().unwrap();
        gpu.stream.memcpy_htod(&x, &mut on_device).unwrap();
        // The copy has not been made: pinned memory that changes now changes what arrives.
        // SAFETY: the address is that of pinned memory, which lives; nothing is being copied from it yet.
        unsafe { address.write(100.0) };
        launch(&gpu, 1, 32, 0, |args| { args.arg(&on_device).arg(&mut out).arg(&64i32); }).unwrap();
        let event = gpu.stream.record_event(None).unwrap();
        assert!(!event.is_complete());
        event.synchronize().unwrap();
        assert!(event.is_complete());
        assert_eq!(gpu.stream.clone_dtoh(&out).unwrap(), [163.0]);
    }

    fn a_graph_repeats_its_capture() on ["streams=eager", "streams=deferred"], {
        let gpu = Gpu::new(SUM, "sum");
        let mut x = gpu.stream.clone_htod(&[1.0f32; 64]).unwrap();
        let mut out = gpu.stream.alloc_zeros::<f32>(1).unwrap();
        gpu.stream.synchronize().unwrap();
        gpu.stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
        launch(&gpu, 1, 32, 0, |args| { args.arg(&x).arg(&mut out).arg(&64i32); }).unwrap();
        let flags = sys::CUgraphInstantiate_flags(0);
        let graph = gpu.stream.end_capture(flags).unwrap().unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&out).unwrap(), [0.0], "a capture does nothing");
        for value in [2.0f32, 3.0] {
            gpu.stream.memcpy_htod(&[value; 64], &mut x).unwrap();
            graph.launch().unwrap();
            assert_eq!(gpu.stream.clone_dtoh(&out).unwrap(), [64.0 * value]);
        }
    }

    fn waiting_during_a_capture_spoils_it() on ["streams=eager"], {
        let gpu = Gpu::new(SUM, "sum");
        gpu.stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
        let error = gpu.stream.synchronize().unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        let flags = sys::CUgraphInstantiate_flags(0);
        let error = gpu.stream.end_capture(flags).err().unwrap();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }

    fn a_fault_sticks_to_its_context() on ["streams=eager"], {
        let gpu = Gpu::new(SUM, "sum");
        let x = gpu.stream.alloc_zeros::<f32>(63).unwrap();
        let mut out = gpu.stream.alloc_zeros::<f32>(1).unwrap();
        let error = launch(&gpu, 1, 32, 0, |args| { args.arg(&x).arg(&mut out).arg(&64i32); }).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        let error = gpu.stream.alloc_zeros::<f32>(1).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    }

    fn launches_are_checked_before_they_run() on ["cc=9.0,sms=2"], {
        let gpu = Gpu::new(SUM, "sum");
        let x = gpu.stream.alloc_zeros::<f32>(64).unwrap();
        let mut out = gpu.stream.alloc_zeros::<f32>(64).unwrap();
        let mut code = |blocks, threads, shared| {
            launch(&gpu, blocks, threads, shared, |args| { args.arg(&x).arg(&mut out).arg(&64i32); }).map_err(|e| e.0)
        };
        assert_eq!(code(0, 32, 0), Err(sys::CUresult::CUDA_ERROR_INVALID_VALUE));
        assert_eq!(code(1, 1056, 0), Err(sys::CUresult::CUDA_ERROR_INVALID_VALUE));
        assert_eq!(code(1, 32, 49 << 10), Err(sys::CUresult::CUDA_ERROR_INVALID_VALUE));
        assert_eq!(code(64, 32, 0), Ok(()));
        let mut args = gpu.stream.launch_builder(&gpu.function);
        args.arg(&x).arg(&mut out).arg(&64i32);
        // Two multiprocessors hold 2 × 1 blocks of 1024 threads with 64 registers each.
        // SAFETY: the arguments are the kernel's; `x` and `out` hold what it reads and writes.
        let error = unsafe { args.launch_cooperative(common::shape(3, 1024, 0)) }.unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    }

    fn memory_runs_out() on ["memory=1MiB"], {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let half = stream.alloc_zeros::<u8>(1 << 19).unwrap();
        assert_eq!(context.mem_get_info().unwrap(), (1 << 19, 1 << 20));
        let error = stream.alloc_zeros::<u8>((1 << 19) + 1).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        drop(half);
        stream.synchronize().unwrap();
        stream.alloc_zeros::<u8>(1 << 20).unwrap();
    }

    fn faults_come_on_demand() on ["fault=oom@2,fault=ecc@2"], {
        let gpu = Gpu::new(SUM, "sum");
        let x = gpu.stream.alloc_zeros::<f32>(64).unwrap();
        assert_eq!(gpu.stream.alloc_zeros::<f32>(1).unwrap_err().0, sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        let mut out = gpu.stream.alloc_zeros::<f32>(1).unwrap();
        let mut run = || launch(&gpu, 1, 32, 0, |args| { args.arg(&x).arg(&mut out).arg(&64i32); }).map_err(|e| e.0);
        assert_eq!(run(), Ok(()));
        assert_eq!(run(), Err(sys::CUresult::CUDA_ERROR_ECC_UNCORRECTABLE));
        assert_eq!(run(), Err(sys::CUresult::CUDA_ERROR_ECC_UNCORRECTABLE), "it stays");
    }

    fn a_fault_comes_when_a_file_appears() on ["fault=hang@{folder}/hang,timeout=4"], {
        let gpu = Gpu::new(SUM, "sum");
        let x = gpu.stream.alloc_zeros::<f32>(64).unwrap();
        let mut out = gpu.stream.alloc_zeros::<f32>(1).unwrap();
        let mut run = || launch(&gpu, 1, 32, 0, |args| { args.arg(&x).arg(&mut out).arg(&64i32); }).map_err(|e| e.0);
        assert_eq!(run(), Ok(()));
        let machine = std::env::var("LLAMERO_GPU_EMULATOR").unwrap();
        let path = machine.split(',').next().unwrap().split_once('@').unwrap().1;
        std::fs::write(path, "").unwrap();
        let started = std::time::Instant::now();
        assert_eq!(run(), Err(sys::CUresult::CUDA_ERROR_LAUNCH_TIMEOUT));
        assert!(started.elapsed().as_millis() >= 4000, "it hung");
    }

    fn streams_wait_for_themselves_and_for_each_other() on ["streams=eager", "streams=deferred"], {
        let gpu = Gpu::new(SUM, "sum");
        let other = gpu.context.new_stream().unwrap();
        let x = gpu.stream.clone_htod(&[1.0f32; 64]).unwrap();
        let mut out = gpu.stream.alloc_zeros::<f32>(1).unwrap();
        let first = gpu.stream.record_event(None).unwrap();
        gpu.stream.wait(&first).unwrap();
        other.wait(&first).unwrap();
        let second = other.record_event(None).unwrap();
        gpu.stream.wait(&second).unwrap();
        launch(&gpu, 1, 32, 0, |args| { args.arg(&x).arg(&mut out).arg(&64i32); }).unwrap();
        other.wait(&gpu.stream.record_event(None).unwrap()).unwrap();
        other.synchronize().unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&out).unwrap(), [64.0]);
    }

    fn a_launch_that_never_ends_is_given_up() on ["timeout=1"], {
        let gpu = Gpu::new("extern \"C\" __global__ void spin(volatile int* flag) { while (*flag == 0) {} }", "spin");
        let flag = gpu.stream.alloc_zeros::<i32>(1).unwrap();
        let error = launch(&gpu, 1, 32, 0, |args| { args.arg(&flag); }).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_LAUNCH_TIMEOUT);
    }

    fn devices_have_names_capabilities_and_memory() on ["devices=2,cc=8.9,memory=24GiB"], {
        assert_eq!(CudaContext::device_count().unwrap(), 2);
        let contexts = [CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap()];
        assert_eq!(contexts[1].compute_capability().unwrap(), (8, 9));
        assert_eq!(contexts[1].total_mem().unwrap(), 24 << 30);
        assert_ne!(contexts[0].uuid().unwrap().bytes, contexts[1].uuid().unwrap().bytes);
        assert!(CudaContext::new(2).is_err());
        let error = result::device::get(2).unwrap_err();
        assert_eq!(error.error_name().unwrap().to_str().unwrap(), "CUDA_ERROR_INVALID_DEVICE");
    }

    fn a_kernel_reaches_another_device_only_as_a_peer() on ["devices=2"], {
        let gpu = Gpu::new(SUM, "sum");
        let other = CudaContext::new(1).unwrap();
        let x = other.default_stream().clone_htod(&[1.0f32; 64]).unwrap();
        gpu.context.bind_to_thread().unwrap();
        // SAFETY: both contexts live; this one is the thread's.
        unsafe { sys::cuCtxEnablePeerAccess(other.cu_ctx(), 0).result() }.unwrap();
        let mut out = gpu.stream.alloc_zeros::<f32>(1).unwrap();
        launch(&gpu, 1, 32, 0, |args| { args.arg(&x).arg(&mut out).arg(&64i32); }).unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&out).unwrap(), [64.0]);
        let third = Gpu::on(1, SUM, "sum");
        let mine = gpu.stream.clone_htod(&[1.0f32; 64]).unwrap();
        let mut out = third.stream.alloc_zeros::<f32>(1).unwrap();
        let error = launch(&third, 1, 32, 0, |args| { args.arg(&mine).arg(&mut out).arg(&64i32); }).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, "device 1 enabled nothing");
    }
}
