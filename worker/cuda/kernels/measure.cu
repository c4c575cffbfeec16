// What measuring needs beside the kernels that serve.

// Random words, of which `keep` may be set and `set` are.
extern "C" __global__ void __launch_bounds__(256) fill_random(u32* to, u64 words, u32 seed, u32 keep, u32 set) {
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += (u64)gridDim.x * blockDim.x) {
        u32 x = (u32)i * 0x9e3779b9u ^ (u32)(i >> 32) * 0x85ebca6bu ^ seed;
        x = (x ^ (x >> 16)) * 0x7feb352du;
        x = (x ^ (x >> 15)) * 0x846ca68bu;
        to[i] = ((x ^ (x >> 16)) & keep) | set;
    }
}

// Read everything once, four loads of 16 bytes under way in each thread; the sum goes where nobody looks, so that no load
// is left out.
extern "C" __global__ void __launch_bounds__(512) read_all(const Bytes16* from, u64 count, u32* sum) {
    u32 mine = 0;
    const u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += 4 * step) {
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (i + j * step < count) {
                Bytes16 x = from[i + j * step];
                mine ^= x.x ^ x.y ^ x.z ^ x.w;
            }
    }
    if (mine == 0x12345678u) *sum = mine;
}
