// Idea: a block has 128 columns and the indices of a residue class: it sorts the class's rows by index, its warps add up
// those of each, and those of an index that has many are shared by all its warps.
// Against: v01_first, where the block of each row reads all indices, and one block adds up all rows with an index.
// Bound: memory; rows * width * sizeof(act) + distinct * width * 2 * sizeof(Y) bytes; the index again per block, cached.
// Needs: any sm_80+; width a multiple of 4; indices below gridDim.x << 19; grid (classes, a power of two,
// ceil(width / 128)), block 256; Y is bf16 if Y_BF16.
// Source: own. Of ROWS rows at a time, those of an index are added in their order, or of more than FEW every eighth by
// a warp and then the warps' sums: an order that does not depend on the rows of other indices.
#include "values.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)
#define ROW_BITS 13
#define ROWS (1 << ROW_BITS)  // that are looked through at a time
#define LOOKS 16              // of a thread that are under way together
#define BATCH 4               // rows of different indices that a warp has under way
#define FEW 16                // rows of an index that one warp adds up
#define SHARED_BATCH 8        // rows of one with more that each warp has under way

// A class's rows in order of their indices: `keys` are an index without its class, and the row.
struct Sorted {
    u32 keys[ROWS];
    int count;
    u16 many[ROWS / FEW];  // where indices with many rows begin
    int many_count;
};

// Whether two keys have the same index.
DEVICE bool same(u32 a, u32 b) { return (a ^ b) >> ROW_BITS == 0; }

// Sorts the first `rows` of this block's class.
DEVICE void sort_rows(Sorted& sorted, const u32* index, int rows, int class_bits) {
    const int thread = threadIdx.x;
    if (thread == 0) sorted.count = sorted.many_count = 0;  // of the rows before, all threads are past the last barrier
    __syncthreads();
    for (int start = thread; start < rows; start += LOOKS * THREADS) {
        u32 looked[LOOKS];
#pragma unroll
        for (int i = 0; i < LOOKS; i++) {
            const int row = start + i * THREADS;
            looked[i] = index[row < rows ? row : 0];
        }
#pragma unroll
        for (int i = 0; i < LOOKS; i++) {
            const int row = start + i * THREADS;
            if (row >= rows || (looked[i] & (gridDim.x - 1)) != blockIdx.x) continue;
            sorted.keys[atomicAdd(&sorted.count, 1)] = looked[i] >> class_bits << ROW_BITS | (u32)row;
        }
    }
    __syncthreads();
    // a bitonic network whose comparisons all put the lesser first, so that places beyond the count need no values
    const int count = sorted.count;
    for (int size = 2; size / 2 < count; size *= 2) {
        for (int apart = size / 2; apart > 0; apart /= 2) {
            for (int a = thread; a < count; a += THREADS) {
                const int b = a ^ (apart == size / 2 ? size - 1 : apart);
                if (b < a || b >= count) continue;
                const u32 key_a = sorted.keys[a], key_b = sorted.keys[b];
                if (key_a > key_b) sorted.keys[a] = key_b, sorted.keys[b] = key_a;
            }
            __syncthreads();
        }
    }
}

KERNEL BOUNDS(THREADS, 4) scatter_rows_bwd(Y* __restrict__ y_acc, const act* __restrict__ dy,
                                           const u32* __restrict__ index, int rows, int width) {
    __shared__ Sorted sorted;
    __shared__ __align__(16) float parts[WARPS][128];
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, class_bits = 31 - __clz(gridDim.x);
    const int column = blockIdx.y * 128 + 4 * lane;
    const bool taken = column < width;
    dy += column;
    y_acc += column;
    auto row_of = [&](u32 key) { return dy + (size_t)(key & (ROWS - 1)) * width; };
    auto sum_of = [&](u32 key) { return y_acc + (size_t)(key >> ROW_BITS << class_bits | blockIdx.x) * width; };
    auto add = [](float (&sum)[4], const float (&x)[4]) {
#pragma unroll
        for (int j = 0; j < 4; j++) sum[j] += x[j];
    };

    for (int first = 0; first < rows; first += ROWS) {
        sort_rows(sorted, index + first, min(rows - first, ROWS), class_bits);
        const int count = sorted.count;

        // a warp adds up the rows of those indices that begin among BATCH places
        for (int start = BATCH * warp; start < count; start += BATCH * WARPS) {
            const int at = start + lane, among = min(BATCH, count - start);
            const bool is_first = at == 0 || at >= count || !same(sorted.keys[at - 1], sorted.keys[at]);
            const u32 begins = __ballot_sync(0xffffffffu, is_first);
            const u32 mine = begins & ((1u << among) - 1), after = begins >> among;
            if (mine == 0) continue;
            const int begin = start + __ffs(mine) - 1, last = start + 31 - __clz(mine);
            int end = start + among + __ffs(after) - 1;
            if (after == 0 || end - last > FEW) {
                if (lane == 0) sorted.many[atomicAdd(&sorted.many_count, 1)] = (u16)last;
                end = last;
            }
            float sum[4] = {};
            for (int i = begin; i < end; i += BATCH) {
                float x[BATCH][4] = {}, y[BATCH][4] = {};
                u32 keys[BATCH];
                bool is_last[BATCH];
#pragma unroll
                for (int b = 0; b < BATCH; b++) {
                    keys[b] = sorted.keys[min(i + b, end - 1)];
                    is_last[b] = i + b < end && begins >> (i + b + 1 - start) & 1;
                    if (taken && i + b < end) load_values(x[b], row_of(keys[b]));
                    if (taken && is_last[b]) load_values(y[b], sum_of(keys[b]));
                }
#pragma unroll
                for (int b = 0; b < BATCH; b++) {
                    add(sum, x[b]);
                    if (!is_last[b]) continue;
                    add(y[b], sum);
                    if (taken) store_values(sum_of(keys[b]), y[b]);
#pragma unroll
                    for (int j = 0; j < 4; j++) sum[j] = 0.0f;
                }
            }
        }
        __syncthreads();

        // all warps add up the rows of one index
        for (int i = 0; i < sorted.many_count; i++) {
            const int begin = sorted.many[i];
            const u32 wanted = sorted.keys[begin];
            float sum[4] = {}, y[4] = {};
            if (taken && warp == 0) load_values(y, sum_of(wanted));
            for (int at = begin + warp; at < count && same(sorted.keys[at], wanted); at += SHARED_BATCH * WARPS) {
                float x[SHARED_BATCH][4] = {};
                u32 keys[SHARED_BATCH];
#pragma unroll
                for (int b = 0; b < SHARED_BATCH; b++) {
                    const int place = at + b * WARPS;
                    keys[b] = place < count ? sorted.keys[place] : ~wanted;
                }
#pragma unroll
                for (int b = 0; b < SHARED_BATCH; b++) {
                    if (taken && same(keys[b], wanted)) load_values(x[b], row_of(keys[b]));
                }
#pragma unroll
                for (int b = 0; b < SHARED_BATCH; b++) add(sum, x[b]);
            }
            __syncthreads();  // the parts before were read
            store_values(parts[warp] + 4 * lane, sum);
            __syncthreads();
            if (!taken || warp != 0) continue;
            for (int w = 1; w < WARPS; w++) {
                float part[4];
                load_values(part, parts[w] + 4 * lane);
                add(sum, part);
            }
            add(y, sum);
            store_values(sum_of(wanted), y);
        }
        dy += (size_t)ROWS * width;
    }
}
