// What all kernels share. Put in front of each of them: NVRTC sees one text and needs no header.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define WARP 32
#define ALL 0xffffffffu
#define INFINITY_F __int_as_float(0x7f800000)

struct alignas(16) Bytes16 { u32 x, y, z, w; };
struct alignas(8) Bytes8 { u32 x, y; };

__device__ __forceinline__ float of_bf16(u32 bits) { return __uint_as_float(bits << 16); }

// Round to nearest, ties to even.
__device__ __forceinline__ u16 to_bf16(float x) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// Four E4M3 codes to four bf16, exactly. Sign and the seven lower bits are put where bf16 has them, which gives the value
// times 2^-120 (subnormal codes become subnormal bf16), and one product by 2^120 mends the exponent. A NaN code becomes
// 480: checkpoints with NaN are refused when they are read.
__device__ __forceinline__ void widen_e4m3(u32 codes, u32& low, u32& high) {
    const u32 scale = 0x7b807b80u, minus_zero = 0x80008000u;
    u32 a = __byte_perm(codes, 0, 0x1404), b = __byte_perm(codes, 0, 0x3424);
    a = (a & 0x80008000u) | ((a & 0x7f007f00u) >> 4);
    b = (b & 0x80008000u) | ((b & 0x7f007f00u) >> 4);
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(low) : "r"(a), "r"(scale), "r"(minus_zero));
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(high) : "r"(b), "r"(scale), "r"(minus_zero));
}

// d += a × b of one 16×16 by 16×8 tile, f32 accumulation.
__device__ __forceinline__ void mma(float d[4], const u32 a[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void copy16_async(void* to, const void* from) {
    u32 at = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int UNDER_WAY>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(UNDER_WAY) : "memory");
}

// The kernel before this one in the stream has finished and its writes are seen. What comes before may only touch what
// no kernel writes: weights.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The kernel after this one may start to fetch its weights.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Sum over a warp, the same in every lane, in a fixed tree.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL, x, distance);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, distance));
    return x;
}

// Sum over a block of full warps, the same in every thread: warps in order. `parts` has a place for each warp
// and may be written again only behind another barrier.
__device__ __forceinline__ float block_sum(float x, float* parts) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int warp = 0; warp < blockDim.x / WARP; warp++) sum += parts[warp];
    return sum;
}

// Inputs of a product lie leaf by leaf, each leaf padded with zeros to a multiple of 64. `width` is a leaf's own width.
__device__ __forceinline__ u32 padded_place(u32 k, u32 width) {
    u32 padded = (width + 63) / 64 * 64;
    return k / width * padded + k % width;
}

// Most roots of a product over all ranks: every leaf is one at worst.
#define MOST_ROOTS 32

// Join the roots of a product in the order of a tree's program: pairs of places, `to += from`. `values` is spoilt.
__device__ __forceinline__ float join_values(float* values, const u8* joins, u32 count) {
    for (u32 i = 0; i < count; i++) values[joins[2 * i]] += values[joins[2 * i + 1]];
    return values[0];
}
