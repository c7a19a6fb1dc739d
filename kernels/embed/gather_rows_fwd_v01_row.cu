// Idea: a block per row copies it.
// Against: -
// Bound: memory; rows * width * (2 * sizeof(act)) + 4 * rows bytes, no FLOPs.
// Needs: any sm_80+; grid rows, block 256.
// Source: own.
#include "act.cuh"

KERNEL BOUNDS(256, 1) gather_rows_fwd(act* __restrict__ y, const act* x, const u32* __restrict__ index,
                                      int rows, int width) {
    let_next_begin();
    wait_for_previous();
    const int r = blockIdx.x;
    if (r >= rows) return;
    const act* from = x + (size_t)index[r] * width;
    for (int c = threadIdx.x; c < width; c += blockDim.x) y[(size_t)r * width + c] = from[c];
}
