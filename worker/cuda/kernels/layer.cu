// What a layer computes between its products. Rows do not touch each other's bits.

// x plus one output of a product, scaled where there are scales. Rounded apart, as if the product had scaled it.
__device__ __forceinline__ float add_scaled(float x, float sum, const float* scales, u32 output) {
    return __fadd_rn(x, scales ? __fmul_rn(sum, scales[output]) : sum);
}

// hidden[m][width] = table[tokens[m]], bf16 to f32.
extern "C" __global__ void __launch_bounds__(256) embed(const u16* table, const u32* tokens, float* hidden, u32 width) {
    wait_for_previous();
    const u16* from = table + (u64)tokens[blockIdx.x] * width;
    float* to = hidden + (u64)blockIdx.x * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) to[i] = of_bf16(from[i]);
}

// hidden[i] += the roots of a product over all ranks, `root_count` of `n` values each, joined left to right as a tree's program
// says and then scaled. `joins`: pairs of roots, `to += from`. `scales`, where it is not null: one for each of `width` outputs.
// `exchanges`, where it is not null: the roots lie in the slot of the last of so many exchanges, one of two that are `slot`
// values apart. One thread a value: a row of a large model is joined by the whole device, and not by the block that norms it.
extern "C" __global__ void __launch_bounds__(128) join_roots(
    float* hidden, const float* roots, const u8* joins, u32 join_count, u32 root_count, const float* scales,
    const u32* exchanges, u64 slot, u32 n, u32 width) {
    wait_for_previous();
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    if (exchanges) roots += (*exchanges - 1 & 1) * slot;
    float values[MOST_ROOTS];
    for (u32 root = 0; root < root_count; root++) values[root] = roots[(u64)root * n + i];
    hidden[i] = add_scaled(hidden[i], join_values(values, joins, join_count), scales, i % width);
}

// hidden += what a product gave, scaled; then y = norm(hidden) × weight as bf16, padded leaf by leaf for the next product.
// `added` null: nothing is added. `scales`, where it is not null: one for each output of the product.
// `layers`, where it is not null, counts the calls on the device, and `seen`, in memory of the host, shows the count.
extern "C" __global__ void __launch_bounds__(256) add_norm(
    float* hidden, const float* added, const float* scales, const float* weight, u16* y, u32 width, u32 leaf_width,
    float epsilon, u32* layers, volatile u32* seen) {
    __shared__ float parts[8];
    extern __shared__ float row[];
    wait_for_previous();
    if (layers && blockIdx.x == 0 && threadIdx.x == 0) *seen = ++*layers;
    const u64 first = (u64)blockIdx.x * width;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float x = hidden[first + i];
        if (added) hidden[first + i] = x = add_scaled(x, added[first + i], scales, i);
        row[i] = x;
        squares = fmaf(x, x, squares);
    }
    float mean = block_sum(squares, parts) / (float)width;
    // Division and root are correctly rounded, so that every device gives the same bits.
    float factor = 1.0f / sqrtf(mean + epsilon);
    u32 leaves = width / leaf_width, padded = (leaf_width + 63) / 64 * 64;
    u16* out = y + (u64)blockIdx.x * leaves * padded;
    for (u32 i = threadIdx.x; i < leaves * padded; i += blockDim.x) {
        u32 in_leaf = i % padded, k = i / padded * leaf_width + in_leaf;
        out[i] = in_leaf < leaf_width ? to_bf16(row[k] * factor * weight[k]) : 0;
    }
}

// Rotate q and k of one row, give q as f32 and write k and v into the cache as bf16.
// qkv: [m][(q_heads + 2 kv_heads) × dim]; cos, sin: [position][dim / 2]; slots: [m], rows of tables; cache: [block][kv
// head][token][dim].
extern "C" __global__ void __launch_bounds__(256) rope_kv(
    const float* qkv, const float* cos, const float* sin, const u32* positions, const u32* slots, const u32* tables,
    u32 table_stride, float* q, u16* keys, u16* values, u32 q_heads, u32 kv_heads, u32 dim, u32 block_tokens) {
    wait_for_previous();
    const u32 m = blockIdx.x, half = dim / 2, position = positions[m];
    const float* row = qkv + (u64)m * (q_heads + 2 * kv_heads) * dim;
    const u32 block = tables[(u64)slots[m] * table_stride + position / block_tokens];
    for (u32 i = threadIdx.x; i < (q_heads + kv_heads) * half; i += blockDim.x) {
        u32 head = i / half, at = i % half;
        float c = cos[(u64)position * half + at], s = sin[(u64)position * half + at];
        float a = row[head * dim + at], b = row[head * dim + half + at];
        float x = a * c - b * s, y = b * c + a * s;
        if (head < q_heads) {
            float* out = q + ((u64)m * q_heads + head) * dim;
            out[at] = x;
            out[half + at] = y;
        } else {
            u16* out = keys + (((u64)block * kv_heads + head - q_heads) * block_tokens + position % block_tokens) * dim;
            out[at] = to_bf16(x);
            out[half + at] = to_bf16(y);
        }
    }
    for (u32 i = threadIdx.x; i < kv_heads * dim; i += blockDim.x) {
        u64 place = ((u64)block * kv_heads + i / dim) * block_tokens + position % block_tokens;
        values[place * dim + i % dim] = to_bf16(row[(q_heads + kv_heads) * dim + i]);
    }
}

// y = silu(gate) × up as bf16, padded leaf by leaf. gate_up: [m][2 width], all gates first.
extern "C" __global__ void __launch_bounds__(256) silu_mul(const float* gate_up, u16* y, u32 width, u32 leaf_width) {
    wait_for_previous();
    const float* row = gate_up + (u64)blockIdx.y * 2 * width;
    u32 leaves = width / leaf_width, padded = (leaf_width + 63) / 64 * 64, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= leaves * padded) return;
    u32 in_leaf = i % padded, k = i / padded * leaf_width + in_leaf;
    u16 value = 0;
    if (in_leaf < leaf_width) {
        float gate = row[k];
        value = to_bf16(gate / (1.0f + expf(-gate)) * row[width + k]);
    }
    y[(u64)blockIdx.y * leaves * padded + i] = value;
}

// Change block tables: entries of (slot, index, block).
extern "C" __global__ void __launch_bounds__(256) update_tables(const u32* entries, u32 count, u32* tables, u32 table_stride) {
    wait_for_previous();
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) tables[(u64)entries[3 * i] * table_stride + entries[3 * i + 1]] = entries[3 * i + 2];
}

// to[i] = from[rows[i]]: rows of `width` numbers of 16 bits, an even number of them.
extern "C" __global__ void __launch_bounds__(256) gather_rows(const u32* from, const u32* rows, u32* to, u32 width) {
    wait_for_previous();
    const u32 pairs = width / 2;
    const u32* row = from + (u64)rows[blockIdx.x] * pairs;
    for (u32 i = threadIdx.x; i < pairs; i += blockDim.x) to[(u64)blockIdx.x * pairs + i] = row[i];
}
