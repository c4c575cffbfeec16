//! Instructions whose lanes work together, and arithmetic at its edges, against plain Rust.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Gpu, launch, shape};
use cudarc::driver::PushKernelArg;
use llamero_gpu_emulator::emulated;
use llamero_gpu_emulator::harness::ORDERS;

/// `out[thread]` of a kernel that takes one buffer.
fn words(source: &str, threads: u32, count: usize) -> Vec<u32> {
    let gpu = Gpu::new(source, "k");
    let mut out = gpu.stream.alloc_zeros::<u32>(count).unwrap();
    launch(&gpu, 1, threads, 0, |args| {
        args.arg(&mut out);
    })
    .unwrap();
    gpu.stream.clone_dtoh(&out).unwrap()
}

emulated! {
    fn lanes_that_parted_meet_again() on ORDERS, {
        // Each lane loops another number of times, leaves from another place, and all meet in the shuffle.
        let out = words(r#"extern "C" __global__ void k(unsigned* out) {
            unsigned t = threadIdx.x, sum = 0;
            for (unsigned i = 0; ; i++) { if (i > t) break; if (i == 20) { sum += 1000; break; } sum += i; }
            if (t % 3 == 0) sum += 5; else if (t % 3 == 1) sum += 7;
            out[t] = __shfl_sync(~0u, sum, 31 - t);
        }"#, 32, 32);
        let sum = |t: u32| {
            let looped: u32 = (0..=t.min(19)).sum::<u32>() + if t >= 20 { 1000 } else { 0 };
            looped + [5, 7, 0][t as usize % 3]
        };
        assert!(out.into_iter().eq((0..32).map(|t| sum(31 - t))));
    }

    fn shuffles_votes_and_reductions() on ORDERS, {
        let out = words(r#"extern "C" __global__ void k(unsigned* out) {
            unsigned t = threadIdx.x, *o = out + 8 * t;
            o[0] = __shfl_up_sync(~0u, t, 3); o[1] = __shfl_down_sync(~0u, t, 3, 8); o[2] = __shfl_xor_sync(~0u, t, 5);
            o[3] = __ballot_sync(~0u, t % 3 == 0); o[4] = __any_sync(~0u, t == 9) + 2 * __all_sync(~0u, t < 31);
            o[5] = __reduce_add_sync(~0u, t); o[6] = __reduce_max_sync(~0u, (int)t - 40);
            o[7] = t < 16 ? __activemask() : 0;
        }"#, 32, 256);
        for t in 0..32u32 {
            let ballot = (0..32).filter(|t| t % 3 == 0).fold(0, |all, t| all | 1 << t);
            let down = if t % 8 + 3 < 8 { t + 3 } else { t };
            let wanted = [t.saturating_sub(3).max(if t < 3 { t } else { 0 }), down, t ^ 5, ballot, 1, 496, (31i32 - 40) as u32,
                if t < 16 { 0xffff } else { 0 }];
            assert_eq!(out[8 * t as usize..][..8], wanted, "lane {t}");
        }
    }

    fn integers_at_their_edges() on ["order=forward"], {
        let out = words(r#"extern "C" __global__ void k(unsigned* out) {
            int a = -2147483647 - (int)out[50], b = -7 + (int)out[50]; unsigned u = 0xdeadbeefu + out[50];
            out[0] = b / 2; out[1] = b % 2; out[2] = u / 10; out[3] = u % 10; out[4] = __popc(u); out[5] = __clz(u >> 5);
            out[6] = __ffs(u << 4); out[7] = __brev(u); out[8] = a >> 31; out[9] = u << 31; out[10] = abs(b);
            out[11] = __umulhi(u, u); out[12] = __mulhi(b, 5); out[13] = __byte_perm(u, 0x01234567, 0x7140);
            out[14] = __funnelshift_l(u, 0x12345678, 8); out[15] = min(b, 3); out[16] = max(u, 3u);
            long long w = (long long)b * 0x100000001ll; out[17] = (unsigned)(w >> 32); out[18] = (unsigned)(w % 1000);
            unsigned field; asm("bfe.u32 %0, %1, 4, 8;" : "=r"(field) : "r"(u)); out[19] = field;
            asm("bfe.s32 %0, %1, 28, 8;" : "=r"(field) : "r"(u)); out[20] = field;
            asm("bfi.b32 %0, %1, %2, 8, 4;" : "=r"(field) : "r"(5), "r"(u)); out[21] = field;
        }"#, 1, 64);
        let u = 0xdead_beefu32;
        let wide = -7i64 * 0x1_0000_0001;
        let wanted = [-3i32 as u32, -1i32 as u32, u / 10, u % 10, u.count_ones(), (u >> 5).leading_zeros(), 5, u.reverse_bits(),
            u32::MAX, u << 31, 7, ((u64::from(u) * u64::from(u)) >> 32) as u32, u32::MAX, 0x01be_67ef, 0x3456_78de, -7i32 as u32, u,
            (wide >> 32) as u32, (wide % 1000) as u32, 0xee, -3i32 as u32, 0xdead_b5ef];
        for (i, wanted) in wanted.iter().enumerate() {
            assert_eq!(out[i], *wanted, "out[{i}]");
        }
    }

    fn floats_at_their_edges() on ["order=forward"], {
        let out = words(r#"extern "C" __global__ void k(unsigned* out) {
            float z = __uint_as_float(out[50]), one = 1.0f + z, tiny = __uint_as_float(1u + out[50]), nan = z / z;
            float r[12] = { fmaf(one + 0x1p-12f, one + 0x1p-12f, -1.0f), __fadd_rd(one, tiny), __fadd_ru(one, tiny),
                __fmul_rz(1.1f + z, 1.1f), fminf(nan, one), fmaxf(-z, z), floorf(-1.5f + z), rintf(2.5f + z),
                fabsf(-tiny), __frcp_rn(3.0f + z), __fsqrt_rn(2.0f + z), copysignf(3.0f + z, -1.0f) };
            for (int i = 0; i < 12; i++) out[i] = __float_as_uint(r[i]);
            out[12] = (unsigned)(int)(3e9f + z); out[13] = (unsigned)(int)nan; out[14] = (unsigned)(-1.0f - z);
            out[15] = __float2int_rn(2.5f + z); out[16] = nan != nan; out[17] = nan < one; out[18] = !(nan >= one);
            double d = (double)one / 3.0; out[19] = (unsigned)__double_as_longlong(d); out[20] = __float_as_uint((float)d);
            out[21] = __float_as_uint((float)log((double)(0.1f + z))); out[22] = __float_as_uint(expf(1.5f + z));
        }"#, 1, 64);
        let third = 1.0f64 / 3.0;
        let step = 1.0 + 2f32.powi(-12);
        let wanted = [step.mul_add(step, -1.0).to_bits(), 1.0f32.to_bits(), 1.0f32.next_up().to_bits(),
            ((f64::from(1.1f32) * f64::from(1.1f32)) as f32).to_bits(), 1.0f32.to_bits(), 0, (-2.0f32).to_bits(), 2.0f32.to_bits(), 1,
            (1.0f32 / 3.0).to_bits(), 2.0f32.sqrt().to_bits(), (-3.0f32).to_bits(), i32::MAX as u32, 0, 0, 2, 1, 0, 1,
            third.to_bits() as u32, (third as f32).to_bits(), (f64::from(0.1f32).ln() as f32).to_bits()];
        for (i, wanted) in wanted.iter().enumerate() {
            // The product above may round up; towards zero it does not.
            let same = out[i] == *wanted || (i == 3 && out[i] + 1 == *wanted);
            assert!(same, "out[{i}] is {:#x}, not {wanted:#x}", out[i]);
        }
        assert!((f32::from_bits(out[22]) - 1.5f32.exp()).abs() < 1e-6);
    }

    fn matrices_are_loaded_and_multiplied() on ORDERS, {
        let gpu = Gpu::new(r#"extern "C" __global__ void k(const unsigned short* a, const unsigned short* b, float* c) {
            __shared__ __align__(16) unsigned short sa[16][16], sb[16][8];
            unsigned t = threadIdx.x;
            for (int i = t; i < 256; i += 32) sa[i / 16][i % 16] = a[i];
            for (int i = t; i < 128; i += 32) sb[i / 8][i % 8] = b[i];
            __syncwarp();
            unsigned x[4], y[2]; float d[4] = {0, 0, 0, 0};
            unsigned at = (unsigned)__cvta_generic_to_shared(&sa[t % 16][t / 16 * 8]);
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at));
            at = (unsigned)__cvta_generic_to_shared(&sb[t % 16][0]);
            asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(y[0]), "=r"(y[1]) : "r"(at));
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
            for (int i = 0; i < 4; i++) c[(t / 4 + i / 2 * 8) * 8 + t % 4 * 2 + i % 2] = d[i];
        }"#, "k");
        let bits = |value: f32| (value.to_bits() >> 16) as u16;
        let a: Vec<f32> = (0..256).map(|i| (i % 13) as f32 - 6.0).collect();
        let b: Vec<f32> = (0..128).map(|i| (i % 7) as f32 - 3.0).collect();
        let [x, y] = [&a, &b].map(|values| gpu.stream.clone_htod(&values.iter().map(|v| bits(*v)).collect::<Vec<_>>()).unwrap());
        let mut c = gpu.stream.alloc_zeros::<f32>(128).unwrap();
        launch(&gpu, 1, 32, 0, |args| { args.arg(&x).arg(&y).arg(&mut c); }).unwrap();
        let element = |i: usize| (0..16).map(|k| a[i / 8 * 16 + k] * b[k * 8 + i % 8]).sum::<f32>();
        assert!(gpu.stream.clone_dtoh(&c).unwrap().into_iter().eq((0..128).map(element)));
    }

    fn atomics_of_many_blocks() on ORDERS, {
        let gpu = Gpu::new(r#"extern "C" __global__ void k(unsigned* out) {
            unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
            atomicAdd(&out[0], 1u); atomicMax(&out[1], i); atomicAdd((float*)&out[2], 1.0f); atomicOr(&out[3], 1u << i % 32);
            atomicExch(&out[4], 77u); while (atomicCAS(&out[5], i, i + 1) != i && i == 0) {} atomicInc(&out[6], 9u);
        }"#, "k");
        let mut out = gpu.stream.alloc_zeros::<u32>(7).unwrap();
        launch(&gpu, 10, 64, 0, |args| { args.arg(&mut out); }).unwrap();
        let out = gpu.stream.clone_dtoh(&out).unwrap();
        assert_eq!(out[..5], [640, 639, 640.0f32.to_bits(), u32::MAX, 77]);
        assert_eq!(out[6], 0);
    }

    fn blocks_of_a_cooperative_launch_wait_for_each_other() on ["order=forward,threads=1", "order=reverse", "order=seed:2"], {
        let gpu = Gpu::new(r#"extern "C" __global__ void k(volatile unsigned* flags, unsigned* out) {
            if (threadIdx.x == 0) {
                flags[blockIdx.x] = blockIdx.x + 1;
                __threadfence();
                unsigned next = (blockIdx.x + 1) % gridDim.x;
                while (flags[next] == 0) {}
                out[blockIdx.x] = flags[next];
            }
        }"#, "k");
        let (flags, mut out) = (gpu.stream.alloc_zeros::<u32>(8).unwrap(), gpu.stream.alloc_zeros::<u32>(8).unwrap());
        let mut args = gpu.stream.launch_builder(&gpu.function);
        args.arg(&flags).arg(&mut out);
        // SAFETY: the arguments are the kernel's; both buffers have a number for each of the 8 blocks.
        unsafe { args.launch_cooperative(shape(8, 64, 0)) }.unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&out).unwrap(), [2, 3, 4, 5, 6, 7, 8, 1]);
    }

    fn local_arrays_constants_and_module_variables() on ["order=forward"], {
        let out = words(r#"__constant__ int table[4] = {10, 20, 30, 40}; __device__ int counter = 5;
        extern "C" __global__ void k(unsigned* out) {
            int mine[8]; for (int i = 0; i < 8; i++) mine[i] = i * (threadIdx.x + 1);
            int sum = 0; for (int i = 0; i < 8; i++) sum += mine[(i * 3 + out[0]) & 7] * (i + 1);
            out[threadIdx.x + 1] = sum + table[threadIdx.x & 3] + counter;
        }"#, 4, 8);
        for t in 0..4u32 {
            let sum: u32 = (0..8).map(|i| ((i * 3) & 7) * (t + 1) * (i + 1)).sum();
            assert_eq!(out[t as usize + 1], sum + 10 * (t + 1) + 5);
        }
    }
}
