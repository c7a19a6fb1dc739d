// Idea: as v01, but a block has 128 columns, four a lane, of which each warp adds up every eighth token.
// Against: v01_slot: a thread adds up all tokens of a column, an element a read.
// Bound: memory; as v01.
// Needs: any sm_80+; width a multiple of 8; grid (ceil(width / 128), rows), block 256; slots may repeat.
// Source: own.
#include "values.cuh"

#define WARPS 8
#define TURNS 8  // tokens of a warp that are under way together

KERNEL BOUNDS(32 * WARPS, 4) fuse_bwd(float* de_acc, const act* dh, const u32* __restrict__ slots,
                                      const u32* __restrict__ bounds, int rows, int width) {
    let_next_begin();
    __shared__ int earlier;
    __shared__ __align__(16) float sums[WARPS][128];
    const int thread = threadIdx.x, warp = thread / 32, place = thread % 32 * 4, row = blockIdx.y;
    const int column = blockIdx.x * 128 + place;
    const u32 mine = slots[row];
    if (thread == 0) earlier = 0;
    __syncthreads();
    for (int other = thread; other < row; other += 32 * WARPS) {
        if (slots[other] == mine) earlier = 1;
    }
    __syncthreads();
    if (earlier) return;  // the whole block
    wait_for_previous();

    float sum[4] = {};
    for (int other = row; other < rows; other++) {
        if (slots[other] != mine || column >= width) continue;
        const int start = bounds[2 * other], end = bounds[2 * other + 1];
        for (int first = start + warp; first < end; first += TURNS * WARPS) {
            float x[TURNS][4] = {};
#pragma unroll
            for (int i = 0; i < TURNS; i++) {
                const int n = first + i * WARPS;
                if (n < end) load_values(x[i], dh + (size_t)n * width + column);
            }
#pragma unroll
            for (int i = 0; i < TURNS; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) sum[j] += x[i][j];
            }
        }
    }
    store_values(sums[warp] + place, sum);
    __syncthreads();
    const int c = blockIdx.x * 128 + thread;
    if (thread >= 128 || c >= width) return;
    float all = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) all += sums[w][thread];
    de_acc[(size_t)mine * width + c] += all;
}
