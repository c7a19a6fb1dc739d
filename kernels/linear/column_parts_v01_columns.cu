// Idea: a thread per column sums a part of its rows; column_sums adds up the parts.
// Against: column_sums alone, whose blocks are too few where rows are many.
// Bound: memory; rows * width * sizeof(act) + 4 * rows / PART_ROWS * width bytes, rows * width * 2 FLOPs.
// Needs: any sm_80+; grid (ceil(width / 256), ceil(rows / PART_ROWS)), block 256; weights of the rows, or null: all are 1.
// Source: own.
#include "act.cuh"

KERNEL BOUNDS(256, 4) column_parts(float* __restrict__ y, const act* __restrict__ x,
                                   const float* __restrict__ weights, int rows, int width) {
    const int column = blockIdx.x * 256 + threadIdx.x, first = blockIdx.y * PART_ROWS;
    const int end = first + PART_ROWS < rows ? first + PART_ROWS : rows;
    if (column >= width) return;
    float sum = 0.0f;
    if (weights) {
#pragma unroll 16
        for (int r = first; r < end; r++) sum = fmaf(weights[r], to_float(x[(size_t)r * width + column]), sum);
    } else {
#pragma unroll 16
        for (int r = first; r < end; r++) sum += to_float(x[(size_t)r * width + column]);
    }
    y[(size_t)blockIdx.y * width + column] = sum;
}
