// Candidates of sampled rows, from this rank's slice of the logits: only they leave the device.
//
// What they are is defined by the engine's `sampling::candidates` and `sampling::noise`. A token goes by its number among
// the rank's own, whose order is that of the vocabulary; `tiles` says which tiles of the vocabulary they are.

#define TILE 128
#define TOP 64
#define SEGMENT 2048
#define NOTHING 0xffffffffu

// A logit and its token as one number whose order is the candidates': larger logit first, then lower token. NaN comes
// first of all, to be noticed.
__device__ __forceinline__ u64 key_of(float logit, u32 token) {
    u32 bits = __float_as_uint(logit + 0.0f);
    u32 ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    if (logit != logit) ordered = 0xffffffffu;
    return (u64)ordered << 32 | (u32)~token;
}

// Largest first.
__device__ __forceinline__ void sort_keys(u64* keys, u32 count) {
    for (u32 size = 2; size <= count; size *= 2)
        for (u32 distance = size / 2; distance > 0; distance /= 2) {
            for (u32 i = threadIdx.x; i < count / 2; i += blockDim.x) {
                u32 low = i / distance * distance * 2 + i % distance, high = low + distance;
                bool descending = (low & size) == 0;
                u64 a = keys[low], b = keys[high];
                if ((a < b) == descending) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            // Distances up to a warp's width stay inside the 64 keys that a warp takes at a time.
            u32 next = distance > 1 ? distance / 2 : size;
            if (distance > WARP || next > WARP)
                __syncthreads();
            else
                __syncwarp();
        }
}

// The best 64 of each segment of 2,048 tokens. keys: [m][segments][64]; 0 where there is no token.
extern "C" __global__ void __launch_bounds__(256) top_of_segment(const float* logits, u64* keys, u32 vocab) {
    __shared__ u64 mine[SEGMENT];
    wait_for_previous();
    const u32 start = blockIdx.x * SEGMENT;
    const float* row = logits + (u64)blockIdx.y * vocab;
    for (u32 i = threadIdx.x; i < SEGMENT; i += blockDim.x)
        mine[i] = start + i < vocab ? key_of(row[start + i], start + i) : 0;
    __syncthreads();
    sort_keys(mine, SEGMENT);
    for (u32 i = threadIdx.x; i < TOP; i += blockDim.x)
        keys[((u64)blockIdx.y * gridDim.x + blockIdx.x) * TOP + i] = mine[i];
}

// The best 64 of all segments. top: [m][64], pairs of (token, bits of its logit); a token of NOTHING where there are no more.
extern "C" __global__ void __launch_bounds__(256) top_of_row(const u64* keys, const float* logits, Bytes8* top, u32 segments, u32 vocab) {
    __shared__ u64 mine[SEGMENT];
    wait_for_previous();
    const u64* row = keys + (u64)blockIdx.x * segments * TOP;
    // The best so far stay in front; each round brings the next ones behind them.
    for (u32 i = threadIdx.x; i < TOP; i += blockDim.x) mine[i] = 0;
    for (u32 next = 0; next < segments * TOP; next += SEGMENT - TOP) {
        for (u32 i = threadIdx.x; i < SEGMENT - TOP; i += blockDim.x)
            mine[TOP + i] = next + i < segments * TOP ? row[next + i] : 0;
        __syncthreads();
        sort_keys(mine, SEGMENT);
    }
    for (u32 i = threadIdx.x; i < TOP; i += blockDim.x) {
        u32 token = mine[i] ? ~(u32)mine[i] : NOTHING;
        u32 bits = token == NOTHING ? 0 : __float_as_uint(logits[(u64)blockIdx.x * vocab + token]);
        top[blockIdx.x * TOP + i] = {token, bits};
    }
}

// ln Σ exp(logit / temperature) of each tile of 128 tokens; temperature 0 leaves the logits as they are.
extern "C" __global__ void __launch_bounds__(TILE) tile_lse(const float* logits, const float* temperatures, float* lse, u32 vocab) {
    __shared__ float parts[TILE / WARP];
    wait_for_previous();
    const u32 token = blockIdx.x * TILE + threadIdx.x, warp = threadIdx.x / WARP;
    const float temperature = temperatures[blockIdx.y];
    float x = token < vocab ? logits[(u64)blockIdx.y * vocab + token] : -INFINITY_F;
    if (temperature > 0.0f) x = x / temperature;
    float top = warp_max(x);
    if (threadIdx.x % WARP == 0) parts[warp] = top;
    __syncthreads();
    top = fmaxf(fmaxf(parts[0], parts[1]), fmaxf(parts[2], parts[3]));
    __syncthreads();
    // A tile whose tokens are all masked has no mass; one that holds NaN has NaN.
    float mass = block_sum(top != -INFINITY_F ? expf(x - top) : x == x ? 0.0f : x, parts);
    if (threadIdx.x == 0)
        lse[(u64)blockIdx.y * gridDim.x + blockIdx.x] = top == -INFINITY_F && mass == mass ? top : top + logf(mass);
}

__device__ __forceinline__ u64 mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// `-ln(-ln u)` of the token's 24 uniform bits, in doubles.
__device__ __forceinline__ float gumbel(u64 key, u32 token) {
    u32 bits = (u32)(mix(key + ((u64)token + 1) * 0x9e3779b97f4a7c15ull) >> 32);
    double uniform = ((double)(bits >> 8) + 0.5) / 16777216.0;
    return (float)-log(-log(uniform));
}

// The token with the largest logit / temperature + noise in each segment. positions: of the tokens to be sampled.
// best: [m][segments] of {key, low and high; bits of the logit}; a key of 0 where there is no noise.
extern "C" __global__ void __launch_bounds__(256) best_perturbed(
    const float* logits, const float* temperatures, const u64* seeds, const u32* positions, const u32* tiles, Bytes16* best, u32 vocab) {
    const u64 golden = 0x9e3779b97f4a7c15ull;
    __shared__ u64 parts[8];
    wait_for_previous();
    const u32 start = blockIdx.x * SEGMENT;
    const float temperature = temperatures[blockIdx.y];
    const u64 noise = mix(mix(seeds[blockIdx.y] + golden) ^ (u64)positions[blockIdx.y] * golden);
    const float* row = logits + (u64)blockIdx.y * vocab;
    u64 mine = 0;
    if (temperature > 0.0f)
        for (u32 i = start + threadIdx.x; i < start + SEGMENT && i < vocab; i += blockDim.x) {
            u32 token = tiles[i / TILE] * TILE + i % TILE;
            u64 key = key_of(row[i] / temperature + gumbel(noise, token), i);
            mine = key > mine ? key : mine;
        }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        u64 other = __shfl_xor_sync(ALL, mine, distance);
        mine = other > mine ? other : mine;
    }
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 warp = 1; warp < 8; warp++) mine = parts[warp] > mine ? parts[warp] : mine;
        u32 bits = mine ? __float_as_uint(row[~(u32)mine]) : 0;
        best[(u64)blockIdx.y * gridDim.x + blockIdx.x] = {(u32)mine, (u32)(mine >> 32), bits, 0};
    }
}

// Change logits: entries of {row, token, bits of the bias, bits of the repetition penalty or 0}, each row and token once.
extern "C" __global__ void __launch_bounds__(256) add_biases(float* logits, const Bytes16* entries, u32 count, u32 vocab) {
    wait_for_previous();
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const Bytes16 entry = entries[i];
    float* logit = logits + (u64)entry.x * vocab + entry.y;
    float x = *logit, penalty = __uint_as_float(entry.w);
    if (entry.w) x = x > 0 ? x / penalty : x * penalty;
    *logit = x + __uint_as_float(entry.z);
}

// What a mask does not allow becomes -infinity. masks: [masked row][tiles of the rank][4 words], a bit for each token.
extern "C" __global__ void __launch_bounds__(256) apply_masks(float* logits, const u32* rows, const u32* masks, u32 vocab) {
    wait_for_previous();
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x, words = (vocab + TILE - 1) / TILE * (TILE / 32);
    if (i >= vocab) return;
    u32 word = masks[(u64)blockIdx.y * words + i / 32];
    if (!(word >> i % 32 & 1)) logits[(u64)rows[blockIdx.y] * vocab + i] = -INFINITY_F;
}

// values[m] = the logit of token tokens[m]; 0 for NOTHING.
extern "C" __global__ void __launch_bounds__(64) pick(const float* logits, const u32* tokens, float* values, u32 rows, u32 vocab) {
    wait_for_previous();
    const u32 m = threadIdx.x;
    if (m < rows) values[m] = tokens[m] == NOTHING ? 0.0f : logits[(u64)m * vocab + tokens[m]];
}
