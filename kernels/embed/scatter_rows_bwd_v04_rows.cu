// Idea: a block has the indices of a residue class, and all columns where classes are many: it sorts the class's rows by
// index, its warps add up those of each, 128 columns at a time, and those of an index that has many are shared by all its
// warps. All blocks are on the device together.
// Against: v01_first, where the block of each row reads all indices, and one block adds up all rows with an index; blocks
// of 128 columns each, of which six sort the same rows, in three rounds.
// Bound: memory; rows * width * sizeof(act) + distinct * width * 2 * sizeof(Y) bytes; the index again per block, cached.
// Needs: any sm_80+; width a multiple of 4; indices below gridDim.x << 19; grid (classes, a power of two, at most
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
#define RANKED 4              // keys of a thread, if they are sorted by counting

// A class's rows in order of their indices: `keys` are an index without its class, and the row.
struct Sorted {
    u32 keys[ROWS];
    int count;
    u16 many[ROWS / FEW];  // where indices with many rows begin
    int many_count;
};

// Whether two keys have the same index.
DEVICE bool same(u32 a, u32 b) { return (a ^ b) >> ROW_BITS == 0; }

// Puts the rows of this block's class among the first `rows` into `sorted`.
DEVICE void find_rows(Sorted& sorted, const u32* index, int rows, int class_bits) {
    const int thread = threadIdx.x;
    if (thread == 0) sorted.count = sorted.many_count = 0;  // of the rows before, all threads are past the last barrier
    __syncthreads();
    const u32 others = gridDim.x - 1;
    for (int start = thread; start < rows; start += LOOKS * THREADS) {
        u32 looked[LOOKS], mine = 0;
#pragma unroll
        for (int i = 0; i < LOOKS; i++) looked[i] = index[min(start + i * THREADS, rows - 1)];
#pragma unroll
        for (int i = 0; i < LOOKS; i++) {
            mine |= (u32)(start + i * THREADS < rows && (looked[i] & others) == blockIdx.x) << i;
        }
        for (; mine != 0; mine &= mine - 1) {
            const int row = start + (__ffs(mine) - 1) * THREADS;
            sorted.keys[atomicAdd(&sorted.count, 1)] = index[row] >> class_bits << ROW_BITS | (u32)row;
        }
    }
    __syncthreads();
}

// Sorts few keys: the place of each is the number of those that are less.
DEVICE void sort_few(Sorted& sorted) {
    const int thread = threadIdx.x, count = sorted.count;
    u32 mine[RANKED], rank[RANKED] = {};
#pragma unroll
    for (int i = 0; i < RANKED; i++) {
        if (thread + i * THREADS >= count) break;
        mine[i] = sorted.keys[thread + i * THREADS];
#pragma unroll 8
        for (int j = 0; j < count; j++) rank[i] += sorted.keys[j] < mine[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < RANKED; i++) {
        if (thread + i * THREADS < count) sorted.keys[rank[i]] = mine[i];
    }
    __syncthreads();
}

// Sorts many by a bitonic network whose comparisons all put the lesser first, so that places beyond the count need no values.
DEVICE void sort_many(Sorted& sorted) {
    const int count = sorted.count;
    for (int size = 2; size / 2 < count; size *= 2) {
        for (int apart = size / 2; apart > 0; apart /= 2) {
            for (int a = threadIdx.x; a < count; a += THREADS) {
                const int b = a ^ (apart == size / 2 ? size - 1 : apart);
                if (b < a || b >= count) continue;
                const u32 key_a = sorted.keys[a], key_b = sorted.keys[b];
                if (key_a > key_b) sorted.keys[a] = key_b, sorted.keys[b] = key_a;
            }
            __syncthreads();
        }
    }
}

DEVICE void add(float (&sum)[4], const float (&x)[4]) {
#pragma unroll
    for (int j = 0; j < 4; j++) sum[j] += x[j];
}

KERNEL BOUNDS(THREADS, 4) scatter_rows_bwd(Y* y_acc, const act* dy, const u32* __restrict__ index, int rows, int width) {
    let_next_begin();
    __shared__ Sorted sorted;
    __shared__ __align__(16) float parts[WARPS][128];
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, class_bits = 31 - __clz(gridDim.x);
    const int strips = ((width + 127) / 128 - (int)blockIdx.y + (int)gridDim.y - 1) / (int)gridDim.y;  // of this block
    auto column_of = [&](int strip) { return (int)((blockIdx.y + strip * gridDim.y) * 128 + 4 * lane); };
    auto row_of = [&](u32 key, int column) { return dy + (size_t)(key & (ROWS - 1)) * width + column; };
    auto sum_of = [&](u32 key, int column) {
        return y_acc + (size_t)(key >> ROW_BITS << class_bits | blockIdx.x) * width + column;
    };

    for (int first = 0; first < rows; first += ROWS) {
        find_rows(sorted, index + first, min(rows - first, ROWS), class_bits);
        const int count = sorted.count;
        if (count <= RANKED * THREADS) {
            if (count > 1) sort_few(sorted);
        } else {
            sort_many(sorted);
        }
        if (first == 0) wait_for_previous();

        // a warp adds up, in a strip, the rows of those indices that begin among BATCH places
        const int batches = (count + BATCH - 1) / BATCH;
        for (int part = warp; part < batches * strips; part += WARPS) {
            const int strip = part % strips, start = part / strips * BATCH, column = column_of(strip);
            const bool taken = column < width;
            const int at = start + lane, among = min(BATCH, count - start);
            const bool is_first = at == 0 || at >= count || !same(sorted.keys[at - 1], sorted.keys[at]);
            const u32 begins = __ballot_sync(0xffffffffu, is_first);
            const u32 mine = begins & ((1u << among) - 1), after = begins >> among;
            if (mine == 0) continue;
            const int begin = start + __ffs(mine) - 1, last = start + 31 - __clz(mine);
            int end = start + among + __ffs(after) - 1;
            if (after == 0 || end - last > FEW) {
                if (lane == 0 && strip == 0) sorted.many[atomicAdd(&sorted.many_count, 1)] = (u16)last;
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
                    if (taken && i + b < end) load_values(x[b], row_of(keys[b], column));
                    if (taken && is_last[b]) load_values(y[b], sum_of(keys[b], column));
                }
#pragma unroll
                for (int b = 0; b < BATCH; b++) {
                    add(sum, x[b]);
                    if (!is_last[b]) continue;
                    add(y[b], sum);
                    if (taken) store_values(sum_of(keys[b], column), y[b]);
#pragma unroll
                    for (int j = 0; j < 4; j++) sum[j] = 0.0f;
                }
            }
        }
        __syncthreads();

        // all warps add up the rows of one index
        for (int part = 0; part < sorted.many_count * strips; part++) {
            const int begin = sorted.many[part / strips], column = column_of(part % strips);
            const bool taken = column < width;
            const u32 wanted = sorted.keys[begin];
            float sum[4] = {}, y[4] = {};
            if (taken && warp == 0) load_values(y, sum_of(wanted, column));
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
                    if (taken && same(keys[b], wanted)) load_values(x[b], row_of(keys[b], column));
                }
#pragma unroll
                for (int b = 0; b < SHARED_BATCH; b++) add(sum, x[b]);
            }
            __syncthreads();  // the parts before were read
            store_values(parts[warp] + 4 * lane, sum);
            __syncthreads();
            if (!taken || warp != 0) continue;
            for (int w = 1; w < WARPS; w++) {
                float of_warp[4];
                load_values(of_warp, parts[w] + 4 * lane);
                add(sum, of_warp);
            }
            add(y, sum);
            store_values(sum_of(wanted, column), y);
        }
        dy += (size_t)ROWS * width;
    }
}
