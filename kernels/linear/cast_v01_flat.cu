// Idea: a thread per element of the result, whose rows may be longer: zeros fill them.
// Against: -
// Bound: memory; rows * (columns * sizeof(X) + stride * sizeof(Y)) bytes, no FLOPs.
// Needs: any sm_80+; grid rows * ceil(stride / 256), block 256; X_BF16, Y_BF16; y (rows, stride), x (rows, columns).
// Source: own.
#include "act.cuh"

KERNEL BOUNDS(256, 1) cast(Y* __restrict__ y, const X* __restrict__ x, int columns, int stride) {
    const int blocks = (stride + 255) / 256, row = blockIdx.x / blocks;
    const int column = blockIdx.x % blocks * 256 + threadIdx.x;
    if (column >= stride) return;
    const float value = column < columns ? to_float(x[(size_t)row * columns + column]) : 0.0f;
    y[(size_t)row * stride + column] = convert<Y>(value);
}
