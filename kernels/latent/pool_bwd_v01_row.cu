// Idea: a block per span; a warp per token makes the dot products and, after the block's mean of them, the gradient.
// Against: -
// Bound: memory; tokens * width * 4 * sizeof(act) + 12 * tokens + 4 * rows * width bytes, tokens * width * 10 FLOPs.
// Needs: any sm_80+; grid rows, block 256; g holds one value per token, of which the weight's gradient is made.
// Source: g_t = a_t (dy x_t - sum_s a_s dy x_s) (1 - u_t^2), u_t = tanh(x_t w); dx_t += a_t dy + g_t w; own.
#include "act.cuh"
#include "reduce.cuh"

KERNEL BOUNDS(256, 1) pool_bwd(act* __restrict__ dx_acc, float* __restrict__ g, const float* __restrict__ dy,
                               const float* __restrict__ scores, const act* __restrict__ x,
                               const float* __restrict__ w, const u32* __restrict__ bounds, int, int width) {
    __shared__ float shared[8];
    const int row = blockIdx.x, lane = threadIdx.x % 32;
    const int start = bounds[2 * row], end = bounds[2 * row + 1];
    dy += (size_t)row * width;

    for (int t = start + threadIdx.x / 32; t < end; t += 8) {
        float dot = 0.0f;
        for (int c = lane; c < width; c += 32) dot += to_float(x[(size_t)t * width + c]) * dy[c];
        dot = warp_sum(dot);
        if (lane == 0) g[t] = dot;
    }
    __syncthreads();

    float mean = 0.0f;
    for (int t = start + threadIdx.x; t < end; t += blockDim.x) mean += scores[t] * g[t];
    mean = block_sum<8>(mean, shared);

    for (int t = start + threadIdx.x / 32; t < end; t += 8) {
        float dot = 0.0f;
        for (int c = lane; c < width; c += 32) dot += to_float(x[(size_t)t * width + c]) * w[c];
        const float u = tanhf(warp_sum(dot)), score = scores[t];
        // The product of sum and difference keeps its digits where u is near 1.
        const float slope = score * (g[t] - mean) * ((1.0f + u) * (1.0f - u));
        __syncwarp();  // every lane has read g
        if (lane == 0) g[t] = slope;
        for (int c = lane; c < width; c += 32) {
            act* dx = dx_acc + (size_t)t * width + c;
            *dx = convert<act>(to_float(*dx) + score * dy[c] + slope * w[c]);
        }
    }
}
