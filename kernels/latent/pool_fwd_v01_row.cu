// Idea: a block per span; a warp per token makes the scores, the block their softmax, a thread per column the sum.
// Against: -
// Bound: memory; tokens * width * 2 * sizeof(act) + 8 * tokens + 4 * rows * width bytes, tokens * width * 4 FLOPs.
// Needs: any sm_80+; grid rows, block 256.
// Source: y_b = sum_t softmax_t(tanh(x_t w)) x_t; own.
#include "act.cuh"
#include "reduce.cuh"

KERNEL BOUNDS(256, 1) pool_fwd(float* __restrict__ y, float* __restrict__ scores, const act* __restrict__ x,
                               const float* __restrict__ w, const u32* __restrict__ bounds, int width) {
    __shared__ float shared[8];
    const int row = blockIdx.x, lane = threadIdx.x % 32;
    const int start = bounds[2 * row], end = bounds[2 * row + 1];

    for (int t = start + threadIdx.x / 32; t < end; t += 8) {
        float dot = 0.0f;
        for (int c = lane; c < width; c += 32) dot += to_float(x[(size_t)t * width + c]) * w[c];
        dot = warp_sum(dot);
        if (lane == 0) scores[t] = tanhf(dot);
    }
    __syncthreads();

    float greatest = -INF, sum = 0.0f;
    for (int t = start + threadIdx.x; t < end; t += blockDim.x) greatest = fmaxf(greatest, scores[t]);
    greatest = block_max<8>(greatest, shared);
    for (int t = start + threadIdx.x; t < end; t += blockDim.x) sum += expf(scores[t] - greatest);
    sum = block_sum<8>(sum, shared);
    for (int t = start + threadIdx.x; t < end; t += blockDim.x) scores[t] = expf(scores[t] - greatest) / sum;
    __syncthreads();

    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        float total = 0.0f;
        for (int t = start; t < end; t++) total += scores[t] * to_float(x[(size_t)t * width + c]);
        y[(size_t)row * width + c] = total;
    }
}
