// Idea: a block sums 32 columns; 8 threads share the rows of a column.
// Against: -
// Bound: memory; rows * width * sizeof(act) + 8 * width bytes, rows * width FLOPs.
// Needs: any sm_80+; grid ceil(width / 32), block 256.
// Source: own.
#include "act.cuh"
#include "reduce.cuh"

KERNEL BOUNDS(256, 1) column_sums(float* y_acc, const act* x, int rows, int width) {
    let_next_begin();
    wait_for_previous();
    __shared__ float shared[COLUMN_LANES][32];
    const ColumnThread at = column_thread();
    float sum = 0.0f;
    if (at.column < width) {
#pragma unroll 8
        for (int r = at.lane; r < rows; r += COLUMN_LANES) sum += to_float(x[(size_t)r * width + at.column]);
    }
    sum = column_sum(sum, shared);
    if (at.lane == 0 && at.column < width) y_acc[at.column] += sum;
}
