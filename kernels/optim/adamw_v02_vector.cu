// Idea: a thread per four parameters, 16 bytes a read.
// Against: v01_flat: a quarter of the instructions to load and store.
// Bound: memory; len * 32 bytes, len * 15 FLOPs.
// Needs: any sm_80+; len a multiple of 4; grid ceil(len / 1024), block 256; keep = 1 - lr decay, rest = 1 - beta.
// Source: Loshchilov and Hutter 2019; step_size = lr / (1 - beta1^t), root_correction = 1 / sqrt(1 - beta2^t).
#include "device.cuh"

KERNEL BOUNDS(256, 4) adamw(float* __restrict__ p, float* __restrict__ m, float* __restrict__ v,
                            float* __restrict__ gradient, float keep, float beta1, float beta2, float rest1,
                            float rest2, float step_size, float root_correction, float epsilon, float factor, int len) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len / 4) return;
    const float4 gradients = ((float4*)gradient)[i], means = ((const float4*)m)[i];
    const float4 squares = ((const float4*)v)[i], values = ((const float4*)p)[i];
    const float g4[4] = {gradients.x, gradients.y, gradients.z, gradients.w};
    float m4[4] = {means.x, means.y, means.z, means.w}, v4[4] = {squares.x, squares.y, squares.z, squares.w};
    float p4[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float g = factor * g4[j];
        m4[j] = beta1 * m4[j] + rest1 * g;
        v4[j] = beta2 * v4[j] + rest2 * g * g;
        p4[j] = keep * p4[j] - step_size * m4[j] / (sqrtf(v4[j]) * root_correction + epsilon);
    }
    ((float4*)gradient)[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    ((float4*)m)[i] = make_float4(m4[0], m4[1], m4[2], m4[3]);
    ((float4*)v)[i] = make_float4(v4[0], v4[1], v4[2], v4[3]);
    ((float4*)p)[i] = make_float4(p4[0], p4[1], p4[2], p4[3]);
}
