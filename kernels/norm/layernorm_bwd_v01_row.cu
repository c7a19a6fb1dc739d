// Idea: a block per token reads its row twice: for the two means, for the result.
// Against: -
// Bound: memory; tokens * width * (3 * sizeof(X) + sizeof(Y)) + 8 * tokens + 4 * width bytes, tokens * width * 14 FLOPs.
// Needs: any sm_80+; grid tokens, block 256.
// Source: dx += rstd (g - mean(g) - n mean(g n)) with n = (x - mean) rstd and g = dy gain; own.
#include "act.cuh"
#include "reduce.cuh"

KERNEL BOUNDS(256, 1) layernorm_bwd(X* __restrict__ dx_acc, const Y* __restrict__ dy, const X* __restrict__ x,
                                    const float* __restrict__ mean, const float* __restrict__ rstd,
                                    const float* __restrict__ gain, int tokens, int width) {
    __shared__ float shared[8];
    const int n = blockIdx.x;
    if (n >= tokens) return;
    dx_acc += (size_t)n * width;
    dy += (size_t)n * width;
    x += (size_t)n * width;
    const float centre = mean[n], scale = rstd[n];

    float sum_g = 0.0f, sum_gx = 0.0f;
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        const float g = to_float(dy[c]) * gain[c];
        sum_g += g;
        sum_gx += g * ((to_float(x[c]) - centre) * scale);
    }
    const float mean_g = block_sum<8>(sum_g, shared) / width;
    const float mean_gx = block_sum<8>(sum_gx, shared) / width;

    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        const float g = to_float(dy[c]) * gain[c];
        const float normal = (to_float(x[c]) - centre) * scale;
        dx_acc[c] = convert<X>(to_float(dx_acc[c]) + scale * (g - mean_g - normal * mean_gx));
    }
}
