// Idea: a thread per element of a block of columns, taken from one matrix to another.
// Against: -
// Bound: memory; rows * width * 8 bytes, or 12 and one FLOP with `accumulate`.
// Needs: any sm_80+; grid ceil(rows * width / 256), block 256.
// Source: own.
#include "device.cuh"

KERNEL BOUNDS(256, 1) copy_columns(float* __restrict__ y, const float* __restrict__ x, int rows, int width,
                                   int y_stride, int y_offset, int x_stride, int x_offset, int accumulate) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = i / width, column = i % width;
    if (row >= rows) return;
    const size_t to = (size_t)row * y_stride + y_offset + column;
    const float value = x[(size_t)row * x_stride + x_offset + column];
    y[to] = accumulate ? y[to] + value : value;
}
