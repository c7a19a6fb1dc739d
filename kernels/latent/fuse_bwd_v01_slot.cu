// Idea: the block of the first row with a slot adds the tokens of all rows with it, in their order; the others return.
// Against: -
// Bound: memory; tokens * width * sizeof(act) + 8 * distinct slots * width bytes, tokens * width FLOPs.
// Needs: any sm_80+; grid (ceil(width / 256), rows), block 256; slots may repeat.
// Source: own.
#include "act.cuh"

KERNEL BOUNDS(256, 1) fuse_bwd(float* __restrict__ de_acc, const act* __restrict__ dh, const u32* __restrict__ slots,
                               const u32* __restrict__ bounds, int rows, int width) {
    __shared__ int earlier;
    const int c = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    const u32 mine = slots[row];
    if (threadIdx.x == 0) earlier = 0;
    __syncthreads();
    for (int other = threadIdx.x; other < row; other += blockDim.x) {
        if (slots[other] == mine) earlier = 1;
    }
    __syncthreads();
    if (earlier || c >= width) return;
    float sum = 0.0f;
    for (int other = row; other < rows; other++) {
        if (slots[other] != mine) continue;
        const int start = bounds[2 * other], end = bounds[2 * other + 1];
        for (int n = start; n < end; n++) sum += to_float(dh[(size_t)n * width + c]);
    }
    de_acc[(size_t)mine * width + c] += sum;
}
