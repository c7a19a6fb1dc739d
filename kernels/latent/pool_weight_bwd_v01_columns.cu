// Idea: a block sums 32 columns; 8 threads share the tokens of each span.
// Against: -
// Bound: memory; tokens * width * sizeof(act) + tokens * width / 8 + 8 * width bytes, tokens * width * 2 FLOPs.
// Needs: any sm_80+; grid ceil(width / 32), block 256.
// Source: dw += sum_t g_t x_t; own.
#include "act.cuh"
#include "reduce.cuh"

KERNEL BOUNDS(256, 1) pool_weight_bwd(float* __restrict__ dw_acc, const float* __restrict__ g,
                                      const act* __restrict__ x, const u32* __restrict__ bounds, int rows, int width) {
    __shared__ float shared[COLUMN_LANES][32];
    const ColumnThread at = column_thread();
    float sum = 0.0f;
    if (at.column < width) {
        for (int row = 0; row < rows; row++) {
            const int start = bounds[2 * row], end = bounds[2 * row + 1];
            for (int t = start + at.lane; t < end; t += COLUMN_LANES) {
                sum += g[t] * to_float(x[(size_t)t * width + at.column]);
            }
        }
    }
    sum = column_sum(sum, shared);
    if (at.lane == 0 && at.column < width) dw_acc[at.column] += sum;
}
