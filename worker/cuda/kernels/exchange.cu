// Exchanges between the ranks of a tensor group, over memory of their GPUs that all of them map.
//
// Every rank has an area into which the others write: a flag for each rank, and two slots, which exchanges use in turn.
// An exchange has the number of those before it. Each rank writes to every slot of that number, its own included, then
// raises its flag in every area to the number + 1, and ends when all flags in its own area are that high. What reads the
// slot comes behind it in the stream, and before this rank's next but one exchange; nobody begins that one before this
// rank has raised its flag for the next, so two slots suffice.
//
// A wait ends also when the host says so, or when it lasts too long: then the rank's exchanges have failed, later ones
// write and wait no more, and the host is told whom the rank waited for.

#define MOST_RANKS 16
#define NOTHING 0xffffffffu
// Bytes between flags, and in front of the slots.
#define APART 128
#define FLAGS (MOST_RANKS * APART)
// Looks at a flag without looking at anything else.
#define LOOKS 64

// Words of `state`, on the device: exchanges so far, blocks of this one that have written, whether one has failed.
enum { NUMBER, WRITTEN, FAILED };
// Words of `control`, in memory of the host: it writes whether to end, and how many milliseconds a wait may last; the
// device writes what has ended a wait, and the index of the rank that was waited for.
enum { ABORT, LIMIT, ENDED, AWAITED };
// What `ENDED` says.
enum { BY_HOST = 1, TOO_LATE };

struct Exchange {
    u8* areas[MOST_RANKS]; // by index of the rank, as this rank maps them
    u32* state;
    volatile u32* control;
    u64 slot_bytes;
    u32 world, index;
};

__device__ __forceinline__ bool has_failed(const Exchange& e) { return *(volatile u32*)&e.state[FAILED]; }

// The slot of an exchange in the area of a rank.
__device__ __forceinline__ u8* slot(const Exchange& e, u32 rank, u32 number) {
    return e.areas[rank] + FLAGS + (number & 1) * e.slot_bytes;
}

__device__ __forceinline__ u32* flag(const Exchange& e, u32 area, u32 of) { return (u32*)(e.areas[area] + of * APART); }

// Ranks write to each other beginning with themselves, so that they do not all write to the same one.
__device__ __forceinline__ u32 behind(const Exchange& e, u32 rank) { return rank + 1 < e.world ? rank + 1 : 0; }

__device__ __forceinline__ u64 nanoseconds() {
    u64 now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// What this thread has seen written is seen by every processor before what it writes from here on.
__device__ __forceinline__ void fence_system() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

__device__ __forceinline__ u32 load_acquire(const u32* from) {
    u32 value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

__device__ __forceinline__ void store_release(u32* to, u32 value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

// The first wait that fails tells the host.
__device__ __forceinline__ void fail(const Exchange& e, u32 rank, u32 why) {
    if (atomicExch(&e.state[FAILED], 1)) return;
    e.control[AWAITED] = rank;
    fence_system();
    e.control[ENDED] = why;
}

// Until the flag of a rank in this rank's area is as high as `number`.
__device__ __forceinline__ void await(const Exchange& e, u32 rank, u32 number) {
    const u32* from = flag(e, e.index, rank);
    const u64 started = nanoseconds();
    bool is_late = false;
    for (u32 looks = 1;; looks++) {
        // Numbers go round.
        if ((int)(load_acquire(from) - number) >= 0) return;
        if (looks % LOOKS) continue;
        if (has_failed(e)) return;
        if (e.control[ABORT]) return fail(e, rank, BY_HOST);
        // The clock may go back, and a GPU that other processes use may not have run since the last look at the flag: it is
        // late when the flag is not up some looks after the time was over.
        if ((long long)(nanoseconds() - started) > (long long)e.control[LIMIT] * 1000000) {
            if (is_late) return fail(e, rank, TOO_LATE);
            is_late = true;
        }
        asm volatile("nanosleep.u32 %0;" ::"r"(500));
    }
}

// Behind the writes of every block. The last one raises the flags and waits for those of the others.
__device__ __forceinline__ void finish(const Exchange& e) {
    __shared__ bool is_last;
    __syncthreads();
    if (threadIdx.x == 0) {
        fence_system();
        is_last = atomicAdd(&e.state[WRITTEN], 1) == gridDim.x - 1;
        fence_system();
    }
    __syncthreads();
    if (!is_last) return;
    const u32 number = e.state[NUMBER] + 1, rank = threadIdx.x;
    if (rank < e.world && rank != e.index && !has_failed(e)) {
        store_release(flag(e, rank, e.index), number);
        await(e, rank, number);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        e.state[NUMBER] = number;
        e.state[WRITTEN] = 0;
    }
}

// Words of the pattern that each rank writes for each. Never 0.
#define TRIED 64
__device__ __forceinline__ u32 pattern(u32 from, u32 to, u32 word) {
    return 0x9e3779b9u * (1 + word + TRIED * (from + MOST_RANKS * to));
}

// Write a pattern to every rank's first slot, before anybody relies on such writes: an IOMMU or a PCIe switch may drop them
// without a word. One block a rank.
extern "C" __global__ void __launch_bounds__(TRIED) try_writes(const __grid_constant__ Exchange e) {
    const u32 rank = blockIdx.x, word = threadIdx.x;
    ((u32*)slot(e, rank, 0))[e.index * TRIED + word] = pattern(e.index, rank, word);
    fence_system();
}

// Give everybody this rank's roots, `mine` of them with `n` values each; root i is number places[i] of all. With no
// roots it is a meeting: it shows that everybody is there.
extern "C" __global__ void __launch_bounds__(256) push_roots(
    const __grid_constant__ Exchange e, const float* roots, const u8* places, u32 mine, u64 n) {
    wait_for_previous();
    const u32 number = e.state[NUMBER];
    if (!has_failed(e))
        for (u64 i = 4 * ((u64)blockIdx.x * blockDim.x + threadIdx.x); i < n; i += 4 * (u64)gridDim.x * blockDim.x)
            for (u32 root = 0; root < mine; root++) {
                const Bytes16 values = *(const Bytes16*)(roots + root * n + i);
                for (u32 to = 0, rank = e.index; to < e.world; to++, rank = behind(e, rank))
                    *(Bytes16*)((float*)slot(e, rank, number) + places[root] * n + i) = values;
            }
    finish(e);
}

// Give each rank its part of this rank's roots: `part` values of each, the last ranks less. Each begins with its own.
extern "C" __global__ void __launch_bounds__(256) push_parts(
    const __grid_constant__ Exchange e, const float* roots, const u8* places, u32 mine, u64 n, u64 part) {
    wait_for_previous();
    const u32 number = e.state[NUMBER];
    const u64 all = part * e.world;
    if (!has_failed(e))
        for (u64 at = 4 * ((u64)blockIdx.x * blockDim.x + threadIdx.x); at < all; at += 4 * (u64)gridDim.x * blockDim.x) {
            const u64 i = (at + e.index * part) % all;
            if (i >= n) continue;
            float* to = (float*)slot(e, i / part, number) + i % part;
            for (u32 root = 0; root < mine; root++)
                *(Bytes16*)(to + places[root] * part) = *(const Bytes16*)(roots + root * n + i);
        }
    finish(e);
}

// Join this rank's part of all roots, and give everybody the sums.
extern "C" __global__ void __launch_bounds__(256) join_parts(
    const __grid_constant__ Exchange e, const u8* joins, u32 join_count, u32 roots, u64 n, u64 part) {
    wait_for_previous();
    const u32 number = e.state[NUMBER];
    const float* from = (const float*)slot(e, e.index, number - 1);
    const u64 first = e.index * part, end = first + part < n ? part : n - first;
    if (!has_failed(e) && first < n)
        for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < end; i += (u64)gridDim.x * blockDim.x) {
            float values[MOST_ROOTS];
            for (u32 root = 0; root < roots; root++) values[root] = from[root * part + i];
            const float sum = join_values(values, joins, join_count);
            for (u32 to = 0, rank = e.index; to < e.world; to++, rank = behind(e, rank))
                ((float*)slot(e, rank, number))[first + i] = sum;
        }
    finish(e);
}

// Give everybody the rows of the embedding that this rank has: bf16 [row][width]. One block a row; a token of NOTHING is
// another rank's.
extern "C" __global__ void __launch_bounds__(256) push_rows(
    const __grid_constant__ Exchange e, const u16* table, const u32* tokens, u32 width) {
    wait_for_previous();
    const u32 number = e.state[NUMBER], token = tokens[blockIdx.x];
    if (token != NOTHING && !has_failed(e))
        for (u32 i = 8 * threadIdx.x; i < width; i += 8 * blockDim.x) {
            const Bytes16 values = *(const Bytes16*)(table + (u64)token * width + i);
            for (u32 to = 0, rank = e.index; to < e.world; to++, rank = behind(e, rank))
                *(Bytes16*)((u16*)slot(e, rank, number) + (u64)blockIdx.x * width + i) = values;
        }
    finish(e);
}

// hidden[row][width] from the rows that the exchange before this one has brought.
extern "C" __global__ void __launch_bounds__(256) take_rows(const __grid_constant__ Exchange e, float* hidden, u32 width) {
    wait_for_previous();
    const u16* from = (const u16*)slot(e, e.index, e.state[NUMBER] - 1) + (u64)blockIdx.x * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) hidden[(u64)blockIdx.x * width + i] = of_bf16(from[i]);
}
