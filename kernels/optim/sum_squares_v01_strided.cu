// Idea: a fixed number of threads strides over the values, each with a sum in double; one partial sum per block.
// Against: -
// Bound: memory; len * 4 + 8 * blocks bytes, len * 2 FLOPs in double.
// Needs: any sm_80+; grid 256, block 256: the order of the sum is that of the grid.
// Source: own.
#include "reduce.cuh"

KERNEL BOUNDS(256, 1) sum_squares(double* __restrict__ partial, const float* __restrict__ x, int len) {
    __shared__ double shared[8];
    const size_t step = (size_t)gridDim.x * blockDim.x;
    double sum = 0.0;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (size_t)len; i += step) {
        const double value = x[i];
        sum += value * value;
    }
    sum = block_sum<8>(sum, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
