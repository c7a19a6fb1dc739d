// Idea: a thread per four parameters, 16 bytes a read.
// Against: v01_flat: a quarter of the instructions to load and store.
// Bound: memory; len * 32 bytes, len * 15 FLOPs.
// Needs: any sm_80+; len a multiple of 4; grid ceil(len / 1024), block 256.
// Source: adamw.cuh.
#include "adamw.cuh"
#include "values.cuh"

KERNEL BOUNDS(256, 4) adamw(float* __restrict__ p, float* __restrict__ m, float* __restrict__ v,
                            float* __restrict__ gradient, float keep, float beta1, float beta2, float rest1,
                            float rest2, float step_size, float root_correction, float epsilon, float factor, int len) {
    const int i = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= len) return;
    const AdamW step = {beta1, beta2, rest1, rest2, step_size, root_correction, epsilon, factor};
    float p4[4], m4[4], v4[4], g4[4];
    load_values(g4, gradient + i), load_values(m4, m + i), load_values(v4, v + i), load_values(p4, p + i);
#pragma unroll
    for (int j = 0; j < 4; j++) step_value(step, keep, p4[j], m4[j], v4[j], g4[j]);
    store_values(gradient + i, g4), store_values(m + i, m4), store_values(v + i, v4), store_values(p + i, p4);
}
