// Idea: a block per token reads its row three times: for the mean, for the variance around it, for the result.
// Against: -
// Bound: memory; tokens * width * (sizeof(X) + sizeof(Y)) + 8 * (tokens + width) bytes, tokens * width * 8 FLOPs.
// Needs: any sm_80+; grid tokens, block 256.
// Source: Ba et al. 2016; sums in the order of reduce.cuh.
#include "act.cuh"
#include "reduce.cuh"

KERNEL BOUNDS(256, 1) layernorm_fwd(Y* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd,
                                    const X* __restrict__ x, const float* __restrict__ gain,
                                    const float* __restrict__ bias, float epsilon, int tokens, int width) {
    __shared__ float shared[8];
    const int n = blockIdx.x;
    if (n >= tokens) return;
    x += (size_t)n * width;
    y += (size_t)n * width;

    float sum = 0.0f;
    for (int c = threadIdx.x; c < width; c += blockDim.x) sum += to_float(x[c]);
    const float centre = block_sum<8>(sum, shared) / width;

    float squares = 0.0f;
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        const float distance = to_float(x[c]) - centre;
        squares += distance * distance;
    }
    const float scale = 1.0f / sqrtf(block_sum<8>(squares, shared) / width + epsilon);

    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        y[c] = convert<Y>((to_float(x[c]) - centre) * scale * gain[c] + bias[c]);
    }
    if (threadIdx.x == 0) {
        mean[n] = centre;
        rstd[n] = scale;
    }
}
