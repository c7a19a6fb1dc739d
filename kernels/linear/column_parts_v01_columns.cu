// Idea: a thread per column sums a part of its rows; column_sums adds up the parts.
// Against: column_sums alone, whose blocks are too few where rows are many.
// Bound: memory; rows * width * (sizeof(act) + 2 for a copy) + 4 * rows / PART_ROWS * width bytes, rows * width * 2 FLOPs.
// Needs: any sm_80+; grid (ceil(width / 256), ceil(rows / PART_ROWS)), block 256; weights of the rows, or null: all are 1;
// where the matrix is copied to, or null.
// Source: own.
#include "act.cuh"

KERNEL BOUNDS(256, 4) column_parts(float* __restrict__ y, bf16* copy, const act* x, const float* weights, int rows,
                                   int width) {
    let_next_begin();
    wait_for_previous();
    const int column = blockIdx.x * 256 + threadIdx.x, first = blockIdx.y * PART_ROWS;
    const int end = first + PART_ROWS < rows ? first + PART_ROWS : rows;
    if (column >= width) return;
    float sum = 0.0f;
#pragma unroll 16
    for (int r = first; r < end; r++) {
        const float value = to_float(x[(size_t)r * width + column]);
        if (copy) copy[(size_t)r * width + column] = to_bf16(value);
        sum = fmaf(weights ? weights[r] : 1.0f, value, sum);
    }
    y[(size_t)blockIdx.y * width + column] = sum;
}
