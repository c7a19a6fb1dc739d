// Idea: a thread per element.
// Against: -
// Bound: memory; len * 12 bytes, len FLOPs.
// Needs: any sm_80+; grid ceil(len / 256), block 256; y may be x.
// Source: own.
#include "device.cuh"

KERNEL BOUNDS(256, 1) mask_fwd(float* y, const float* x, const float* mask, int len) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) y[i] = x[i] * mask[i];
}
