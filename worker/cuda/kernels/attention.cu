// Attention of single query rows over the paged cache, for decode.
//
// A block takes one row, one kv head and one chunk of 256 absolute positions, and gives for each query head of the group
// the largest score, the mass below it and the weighted values. `attention_merge` joins chunks in order. Where a chunk
// starts depends on positions alone, so batch mates and the length of the prompt's pieces change no bit.

#define CHUNK 256
#define WARPS 8
#define MAX_GROUP 16

struct Attention {
    const float* q;      // [m][q heads][dim]
    const u16* keys;     // [block][kv head][token][dim]
    const u16* values;
    const u32* positions; // [m]: the row sees this position and all before
    const u32* slots;    // [m]: rows of tables
    const u32* tables;   // [slot][table stride]
    float* parts;        // [m][q heads][chunks][dim + 2]: weighted values, largest score, mass
    u32 table_stride, q_heads, kv_heads, block_tokens, chunks;
    u32 group, skipped;  // query heads of a kv head; those of the first one that are not this rank's
    float scale;
};

// Scores of the chunk's positions: half a warp (or a quarter, for 64 dimensions) takes one position at a time.
template <int DIM>
__device__ __forceinline__ void scores(const Attention& p, const float* q, float (*out)[CHUNK], u32 group, u32 kv_head, u32 first, u32 seen) {
    const u32 lanes = DIM / 8, lane = threadIdx.x % lanes;
    const u32 *table = p.tables + (u64)p.slots[blockIdx.z] * p.table_stride;
    for (u32 round = 0; round < CHUNK; round += blockDim.x / lanes) {
        u32 at = round + threadIdx.x / lanes;
        Bytes16 k = {0, 0, 0, 0};
        if (at < seen) {
            u32 position = first + at;
            u64 place = ((u64)table[position / p.block_tokens] * p.kv_heads + kv_head) * p.block_tokens + position % p.block_tokens;
            k = *(const Bytes16*)(p.keys + place * DIM + lane * 8);
        }
        const u32 words[4] = {k.x, k.y, k.z, k.w};
        for (u32 head = 0; head < group; head++) {
            const float* mine = q + head * DIM + lane * 8;
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sum = fmaf(of_bf16(words[i] & 0xffff), mine[2 * i], sum);
                sum = fmaf(__uint_as_float(words[i] & 0xffff0000u), mine[2 * i + 1], sum);
            }
#pragma unroll
            for (int distance = lanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(ALL, sum, distance);
            if (lane == 0) out[head][at] = at < seen ? sum * p.scale : -INFINITY_F;
        }
    }
}

// exp(score - largest) in place; gives the largest and the mass. A warp takes a head.
__device__ __forceinline__ void soften(float (*s)[CHUNK], float* largest, float* mass, u32 group) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (u32 head = warp; head < group; head += WARPS) {
        float top = -INFINITY_F, sum = 0.0f;
        for (u32 i = lane; i < CHUNK; i += WARP) top = fmaxf(top, s[head][i]);
        top = warp_max(top);
        for (u32 i = lane; i < CHUNK; i += WARP) {
            float weight = expf(s[head][i] - top);
            s[head][i] = weight;
            sum += weight;
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            largest[head] = top;
            mass[head] = sum;
        }
    }
}

// Weighted values of up to HEADS heads: each value is read once, whatever the group.
template <int DIM, int HEADS>
__device__ __forceinline__ void weighted(const Attention& p, float (*s)[CHUNK], float* sums, u32 group, u32 kv_head, u32 first, u32 seen) {
    // A warp takes 32 positions, a lane DIM / 32 dimensions; warps are added in order.
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int EACH = DIM / WARP;
    const u32* table = p.tables + (u64)p.slots[blockIdx.z] * p.table_stride;
    float mine[HEADS][EACH] = {};
    for (u32 i = 0; i < WARP; i++) {
        u32 at = warp * WARP + i;
        if (at >= seen) break;
        u32 position = first + at;
        u64 place = ((u64)table[position / p.block_tokens] * p.kv_heads + kv_head) * p.block_tokens + position % p.block_tokens;
        const u16* v = p.values + place * DIM + lane * EACH;
        float value[EACH];
#pragma unroll
        for (int j = 0; j < EACH; j += 2) {
            u32 pair = *(const u32*)(v + j);
            value[j] = of_bf16(pair & 0xffff);
            value[j + 1] = __uint_as_float(pair & 0xffff0000u);
        }
#pragma unroll
        for (int head = 0; head < HEADS; head++)
#pragma unroll
            for (int j = 0; j < EACH; j++)
                if (head < group) mine[head][j] = fmaf(s[head][at], value[j], mine[head][j]);
    }
    for (u32 turn = 0; turn < WARPS; turn++) {
        if (turn == warp)
#pragma unroll
            for (int head = 0; head < HEADS; head++)
#pragma unroll
                for (int j = 0; j < EACH; j++)
                    if (head < group) {
                        float* sum = &sums[head * DIM + lane * EACH + j];
                        *sum = turn == 0 ? mine[head][j] : *sum + mine[head][j];
                    }
        __syncthreads();
    }
}

template <int DIM>
__device__ __forceinline__ void attention(const Attention& p) {
    __shared__ float s[MAX_GROUP][CHUNK];
    __shared__ float q[MAX_GROUP * DIM], sums[MAX_GROUP * DIM];
    __shared__ float largest[MAX_GROUP], mass[MAX_GROUP];
    wait_for_previous();
    const u32 chunk = blockIdx.x, kv_head = blockIdx.y, m = blockIdx.z;
    // The rank's query heads of this kv head: the first and the last one may have less than a whole group.
    const u32 start = kv_head * p.group > p.skipped ? kv_head * p.group - p.skipped : 0;
    const u32 stop = (kv_head + 1) * p.group - p.skipped, group = (stop < p.q_heads ? stop : p.q_heads) - start;
    const u32 first = chunk * CHUNK, length = p.positions[m] + 1;
    if (first >= length) return;
    const u32 seen = length - first < CHUNK ? length - first : CHUNK;
    const u64 row = (u64)m * p.q_heads + start;
    for (u32 i = threadIdx.x; i < group * DIM; i += blockDim.x) q[i] = p.q[row * DIM + i];
    __syncthreads();
    scores<DIM>(p, q, s, group, kv_head, first, seen);
    __syncthreads();
    soften(s, largest, mass, group);
    __syncthreads();
    if (group <= 4) weighted<DIM, 4>(p, s, sums, group, kv_head, first, seen);
    else if (group <= 8) weighted<DIM, 8>(p, s, sums, group, kv_head, first, seen);
    else weighted<DIM, MAX_GROUP>(p, s, sums, group, kv_head, first, seen);
    for (u32 i = threadIdx.x; i < group * (DIM + 2); i += blockDim.x) {
        u32 head = i / (DIM + 2), at = i % (DIM + 2);
        float value = at < DIM ? sums[head * DIM + at] : at == DIM ? largest[head] : mass[head];
        p.parts[((row + head) * p.chunks + chunk) * (DIM + 2) + at] = value;
    }
}

extern "C" __global__ void __launch_bounds__(256) attention_64(const __grid_constant__ Attention p) { attention<64>(p); }
extern "C" __global__ void __launch_bounds__(256) attention_128(const __grid_constant__ Attention p) { attention<128>(p); }

// Join the chunks of one head of one row in order (Milakov and Gimelshein, 2018); bf16, padded leaf by leaf.
extern "C" __global__ void __launch_bounds__(128) attention_merge(
    const float* parts, const u32* positions, u16* y, u32 q_heads, u32 dim, u32 chunks, u32 leaf_width) {
    wait_for_previous();
    const u32 head = blockIdx.x, m = blockIdx.y, at = threadIdx.x;
    const u32 used = positions[m] / CHUNK + 1, width = q_heads * dim;
    const float* mine = parts + ((u64)m * q_heads + head) * chunks * (dim + 2);
    float top = mine[dim], mass = mine[dim + 1], sum = at < dim ? mine[at] : 0.0f;
    for (u32 chunk = 1; chunk < used; chunk++) {
        const float* next = mine + chunk * (dim + 2);
        float higher = fmaxf(top, next[dim]);
        float keep = expf(top - higher), add = expf(next[dim] - higher);
        mass = mass * keep + next[dim + 1] * add;
        sum = sum * keep + (at < dim ? next[at] : 0.0f) * add;
        top = higher;
    }
    u32 leaves = width / leaf_width, padded = (leaf_width + 63) / 64 * 64;
    u16* out = y + (u64)m * leaves * padded;
    if (at < dim) out[padded_place(head * dim + at, leaf_width)] = to_bf16(sum / mass);
    // The first head clears what lies between leaves.
    if (head == 0)
        for (u32 i = at; i < leaves * padded; i += blockDim.x)
            if (i % padded >= leaf_width) out[i] = 0;
}
