// Idea: a thread per parameter.
// Against: -
// Bound: memory; len * 32 bytes, len * 15 FLOPs.
// Needs: any sm_80+; grid ceil(len / 256), block 256.
// Source: adamw.cuh.
#include "adamw.cuh"

KERNEL BOUNDS(256, 1) adamw(float* __restrict__ p, float* __restrict__ m, float* __restrict__ v,
                            float* __restrict__ gradient, float keep, float beta1, float beta2, float rest1,
                            float rest2, float step_size, float root_correction, float epsilon, float factor, int len) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    const AdamW step = {beta1, beta2, rest1, rest2, step_size, root_correction, epsilon, factor};
    step_value(step, keep, p[i], m[i], v[i], gradient[i]);
}
