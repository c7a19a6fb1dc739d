// Idea: a thread per parameter.
// Against: -
// Bound: memory; len * 32 bytes, len * 15 FLOPs.
// Needs: any sm_80+; grid ceil(len / 256), block 256; keep = 1 - lr decay, rest = 1 - beta, rounded once.
// Source: Loshchilov and Hutter 2019; step_size = lr / (1 - beta1^t), root_correction = 1 / sqrt(1 - beta2^t).
#include "device.cuh"

KERNEL BOUNDS(256, 1) adamw(float* __restrict__ p, float* __restrict__ m, float* __restrict__ v,
                            float* __restrict__ gradient, float keep, float beta1, float beta2, float rest1,
                            float rest2, float step_size, float root_correction, float epsilon, float factor, int len) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    const float g = factor * gradient[i];
    const float mean = beta1 * m[i] + rest1 * g;
    const float square = beta2 * v[i] + rest2 * g * g;
    m[i] = mean;
    v[i] = square;
    gradient[i] = 0.0f;
    p[i] = keep * p[i] - step_size * mean / (sqrtf(square) * root_correction + epsilon);
}
