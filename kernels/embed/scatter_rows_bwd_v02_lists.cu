// Idea: the block of the first row with an index lists all rows with it, a warp those of a stretch, and adds them up.
// Against: v01_first, where every thread reads the index of every row one after the other.
// Bound: memory; rows * width * sizeof(act) + distinct * width * 2 * sizeof(Y) bytes; the index again per row, cached.
// Needs: any sm_80+; width a multiple of 4; grid rows, block 256; Y is bf16 if Y_BF16.
// Source: own. Rows are added in their order.
#include "values.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)
#define STRETCH 512  // rows that a warp looks through at a time
#define BATCH 4      // rows under way together

struct Lists {
    u16 rows[WARPS][STRETCH];  // beside the first row of all stretches
    int counts[WARPS];
};

// Lists the rows from `first` on, of those before `rows`, that have this index.
DEVICE void list_rows(Lists& lists, const u32* index, u32 wanted, int first, int rows) {
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int count = 0;
    __syncthreads();  // those before were read
#pragma unroll 8
    for (int i = 0; i < STRETCH; i += 32) {
        const int place = warp * STRETCH + i + lane;
        const bool found = first + place < rows && index[first + place] == wanted;
        const u32 all = __ballot_sync(0xffffffffu, found);
        if (found) lists.rows[warp][count + __popc(all & ((1u << lane) - 1))] = (u16)place;
        count += __popc(all);
    }
    if (lane == 0) lists.counts[warp] = count;
    __syncthreads();
}

KERNEL BOUNDS(THREADS, 4) scatter_rows_bwd(Y* __restrict__ y_acc, const act* __restrict__ dy,
                                           const u32* __restrict__ index, int rows, int width) {
    __shared__ Lists lists;
    __shared__ int earlier;
    const int r = blockIdx.x;
    const u32 mine = index[r];
    if (threadIdx.x == 0) earlier = 0;
    __syncthreads();
    bool found = false;
#pragma unroll 8
    for (int s = threadIdx.x; s < r; s += THREADS) found |= index[s] == mine;
    if (found) earlier = 1;
    __syncthreads();
    if (earlier) return;

    for (int start = 0; start < width; start += 4 * THREADS) {
        const int column = start + 4 * (int)threadIdx.x;
        const bool taken = column < width;
        Y* y = y_acc + (size_t)mine * width + column;
        float sum[4] = {};
        if (taken) load_values(sum, y);
        for (int first = r; first < rows; first += WARPS * STRETCH) {
            list_rows(lists, index, mine, first, rows);
            for (int warp = 0; taken && warp < WARPS; warp++) {
                const int count = lists.counts[warp];
                for (int i = 0; i < count; i += BATCH) {
                    float x[BATCH][4] = {};
#pragma unroll
                    for (int b = 0; b < BATCH; b++) {
                        if (i + b >= count) continue;
                        load_values(x[b], dy + (size_t)(first + lists.rows[warp][i + b]) * width + column);
                    }
#pragma unroll
                    for (int b = 0; b < BATCH; b++) {
#pragma unroll
                        for (int j = 0; j < 4; j++) sum[j] += x[b][j];
                    }
                }
            }
        }
        if (taken) store_values(y, sum);
    }
}
