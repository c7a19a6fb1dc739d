// Idea: a thread per element.
// Against: -
// Bound: memory; len * (sizeof(X) + sizeof(Y)) bytes, no FLOPs.
// Needs: any sm_80+; grid ceil(len / 256), block 256; X_BF16, Y_BF16.
// Source: own.
#include "act.cuh"

KERNEL BOUNDS(256, 1) cast(Y* __restrict__ y, const X* __restrict__ x, int len) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) y[i] = convert<Y>(to_float(x[i]));
}
