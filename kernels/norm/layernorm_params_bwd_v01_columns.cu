// Idea: a block adds up the parts of 32 columns, first those of dgain, then those of dbias; 8 threads share a column's.
// Against: -
// Bound: memory; 8 * count * width + 16 * width bytes, 2 * count * width FLOPs.
// Needs: any sm_80+; grid ceil(2 * width / 32), block 256; the parts of layernorm_bwd, which for many rows are in L2.
// Source: own.
#include "reduce.cuh"

KERNEL BOUNDS(256, 1) layernorm_params_bwd(float* dgain_acc, float* dbias_acc, const float* parts, int count,
                                           int width) {
    let_next_begin();
    wait_for_previous();
    __shared__ float shared[COLUMN_LANES][32];
    const ColumnThread at = column_thread();
    float sum = 0.0f;
    if (at.column < 2 * width) {
#pragma unroll 16
        for (int i = at.lane; i < count; i += COLUMN_LANES) sum += parts[(size_t)i * 2 * width + at.column];
    }
    sum = column_sum(sum, shared);
    if (at.lane == 0 && at.column < 2 * width) {
        float* to = at.column < width ? dgain_acc + at.column : dbias_acc + at.column - width;
        *to += sum;
    }
}
