// y = W x for 1 to 64 rows of x, weight-only: one pass over the weights, every product in bf16 with f32 accumulation.
//
// The order of summation belongs to the model. K is cut into leaves; a leaf is one chain of m16n8k16 products; leaves
// join in the tree that the host's program says (pairs of slots, `to += from`). A row's result depends neither on the
// other rows of the batch, nor on its column of the tile, nor on how many column tiles a variant has.
//
// A block computes 16 output rows for one tile of columns; the grid has several tiles where the slots of all columns would not fit a
// block's shared memory. Its warps take leaves in turn. In a chunk of 64 inputs (FP8) or 32 (bf16) each lane
// loads the 16 bytes of weight rows `lane / 4` and `lane / 4 + 8` that its quarter of the chunk has, and uses them as
// its part of the A fragments; the B fragments take the same inputs, so that K is merely visited in another order, the
// same one everywhere.

#define ROWS 16
#define STAGES 4

// K elements that a lane takes from one 16-byte load, and the width of a chunk over the four lanes of a row.
template <bool FP8> struct Format {
    static const int ELEMENTS = FP8 ? 16 : 8;
    static const int CHUNK = 4 * ELEMENTS;
    static const int BYTES = FP8 ? 1 : 2;
};

struct Product {
    const u8* weights;   // [n][leaves × padded width], E4M3 or bf16
    const float* scales; // [n], or null: 1
    const u16* x;        // [m][leaves × padded width], bf16
    float* y;            // [roots][m][n]
    const u8* program;   // `joins` pairs of leaf slots, then the slots of `roots` roots
    u32 n, m, leaves, padded, joins, roots;
};

// The first column of this block's tile. The widest one has them all.
template <int TILES>
__device__ __forceinline__ u32 left() { return TILES == 8 ? 0 : blockIdx.y * 8 * TILES; }

// Start loading chunk `chunk` of a leaf for the two rows of this lane.
template <bool FP8>
__device__ __forceinline__ void fetch(Bytes16* stage, const u8* row0, const u8* row1, u32 chunk) {
    u32 at = (chunk * 4 + threadIdx.x % 4) * 16;
    copy16_async(&stage[0], row0 + at);
    copy16_async(&stage[1], row1 + at);
}

// The four products (FP8) or two (bf16) of one chunk.
template <bool FP8, int TILES>
__device__ __forceinline__ void multiply(float sums[TILES][4], const Bytes16* stage, const u16* x, u32 stride, u32 m) {
    const Bytes16 row0 = stage[0], row1 = stage[1];
    const u32 w0[4] = {row0.x, row0.y, row0.z, row0.w}, w1[4] = {row1.x, row1.y, row1.z, row1.w};
    const u32 column = left<TILES>() + threadIdx.x % WARP / 4;
#pragma unroll
    for (int step = 0; step < Format<FP8>::ELEMENTS / 4; step++) {
        u32 a[4];
        if (FP8) {
            widen_e4m3(w0[step], a[0], a[2]);
            widen_e4m3(w1[step], a[1], a[3]);
        } else {
            a[0] = w0[2 * step];
            a[2] = w0[2 * step + 1];
            a[1] = w1[2 * step];
            a[3] = w1[2 * step + 1];
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            u32 row = tile * 8 + column;
            Bytes8 b = {0, 0};
            if (row < m) b = *(const Bytes8*)(x + (u64)row * stride + step * 4);
            mma(sums[tile], a, b.x, b.y);
        }
    }
}

// All chunks of one leaf into `sums`.
template <bool FP8, int TILES>
__device__ __forceinline__ void leaf(float sums[TILES][4], Bytes16* ring, const Product& p, const u8* row0, const u8* row1, u32 index, bool started) {
    const u32 chunks = p.padded / Format<FP8>::CHUNK, stride = p.leaves * p.padded;
    const u8 *w0 = row0 + (u64)index * p.padded * Format<FP8>::BYTES, *w1 = row1 + (u64)index * p.padded * Format<FP8>::BYTES;
    const u16* x = p.x + index * p.padded + threadIdx.x % 4 * Format<FP8>::ELEMENTS;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[tile][i] = 0.0f;
    if (!started)
        for (u32 chunk = 0; chunk < STAGES - 1; chunk++) {
            if (chunk < chunks) fetch<FP8>(&ring[2 * chunk], w0, w1, chunk);
            commit_copies();
        }
    for (u32 chunk = 0; chunk < chunks; chunk++) {
        u32 ahead = chunk + STAGES - 1;
        if (ahead < chunks) fetch<FP8>(&ring[2 * (ahead % STAGES)], w0, w1, ahead);
        commit_copies();
        wait_copies<STAGES - 1>();
        multiply<FP8, TILES>(sums, &ring[2 * (chunk % STAGES)], x + chunk * Format<FP8>::CHUNK, stride, p.m);
    }
}

// Join the leaves in the program's order and write the roots.
template <int TILES>
__device__ __forceinline__ void join(float* slots, const Product& p, u32 first) {
    const u32 size = ROWS * 8 * TILES;
    for (u32 place = threadIdx.x; place < size; place += blockDim.x) {
        u32 row = first + place / (8 * TILES), column = left<TILES>() + place % (8 * TILES);
        for (u32 i = 0; i < p.joins; i++) {
            u32 to = p.program[2 * i], from = p.program[2 * i + 1];
            slots[to * size + place] += slots[from * size + place];
        }
        if (row >= p.n || column >= p.m) continue;
        float scale = p.scales ? p.scales[row] : 1.0f;
        for (u32 root = 0; root < p.roots; root++) {
            u32 slot = p.program[2 * p.joins + root];
            p.y[((u64)root * p.m + column) * p.n + row] = slots[slot * size + place] * scale;
        }
    }
}

template <bool FP8, int TILES>
__device__ __forceinline__ void product(const Product& p) {
    extern __shared__ Bytes16 shared[];
    const u32 warp = threadIdx.x / WARP, warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    Bytes16* ring = shared + threadIdx.x * STAGES * 2;
    float* slots = (float*)(shared + blockDim.x * STAGES * 2);
    const u32 first = blockIdx.x * ROWS, row = first + lane / 4;
    const u64 stride = (u64)p.leaves * p.padded * Format<FP8>::BYTES;
    // Rows beyond the last one repeat it; their results are not written.
    const u8* row0 = p.weights + stride * (row < p.n ? row : p.n - 1);
    const u8* row1 = p.weights + stride * (row + 8 < p.n ? row + 8 : p.n - 1);
    let_next_start();
    bool started = false;
    if (warp < p.leaves) {
        const u32 chunks = p.padded / Format<FP8>::CHUNK;
        const u64 at = (u64)warp * p.padded * Format<FP8>::BYTES;
        for (u32 chunk = 0; chunk < STAGES - 1; chunk++) {
            if (chunk < chunks) fetch<FP8>(&ring[2 * chunk], row0 + at, row1 + at, chunk);
            commit_copies();
        }
        started = true;
    }
    wait_for_previous();
    for (u32 index = warp; index < p.leaves; index += warps) {
        float sums[TILES][4];
        leaf<FP8, TILES>(sums, ring, p, row0, row1, index, started);
        started = false;
        float* slot = slots + index * (ROWS * 8 * TILES);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                slot[(lane / 4 + 8 * (i / 2)) * (8 * TILES) + tile * 8 + lane % 4 * 2 + i % 2] = sums[tile][i];
    }
    __syncthreads();
    join<TILES>(slots, p, first);
}

#define VARIANT(NAME, FP8, TILES) \
    extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ Product p) { product<FP8, TILES>(p); }

VARIANT(product_fp8_8, true, 1)
VARIANT(product_fp8_16, true, 2)
VARIANT(product_fp8_32, true, 4)
VARIANT(product_fp8_64, true, 8)
VARIANT(product_bf16_8, false, 1)
VARIANT(product_bf16_16, false, 2)
VARIANT(product_bf16_32, false, 4)
VARIANT(product_bf16_64, false, 8)
