// Idea: a block takes PART_ROWS rows: warps make their means, then threads go down columns for dx and both sums.
// Against: -
// Bound: memory; tokens * width * (3 * sizeof(X) + sizeof(Y) + 8 / PART_ROWS) bytes, tokens * width * 18 FLOPs.
// Needs: any sm_80+; grid ceil(tokens / PART_ROWS), block 256.
// Source: dx += rstd (g - mean(g) - n mean(g n)) with n = (x - mean) rstd and g = dy gain; own. A part is the sums of
// dy n, then those of dy; layernorm_params_bwd adds the parts up.
#include "act.cuh"

KERNEL BOUNDS(256, 1) layernorm_bwd(X* __restrict__ dx_acc, float* __restrict__ parts, const Y* __restrict__ dy,
                                    const X* __restrict__ x, const float* __restrict__ mean,
                                    const float* __restrict__ rstd, const float* __restrict__ gain, int tokens,
                                    int width) {
    __shared__ float mean_g[PART_ROWS], mean_gx[PART_ROWS];
    const int thread = threadIdx.x, first = blockIdx.x * PART_ROWS;
    const int rows = min(tokens - first, PART_ROWS);
    dx_acc += (size_t)first * width;
    dy += (size_t)first * width;
    x += (size_t)first * width;
    mean += first;
    rstd += first;

    for (int r = thread / 32; r < rows; r += 8) {
        float sum_g = 0.0f, sum_gx = 0.0f;
        for (int c = thread % 32; c < width; c += 32) {
            const float g = to_float(dy[(size_t)r * width + c]) * gain[c];
            sum_g += g;
            sum_gx += g * ((to_float(x[(size_t)r * width + c]) - mean[r]) * rstd[r]);
        }
        mean_g[r] = warp_sum(sum_g) / width;
        mean_gx[r] = warp_sum(sum_gx) / width;
    }
    __syncthreads();

    parts += (size_t)blockIdx.x * 2 * width;
    for (int c = thread; c < width; c += 256) {
        float gains = 0.0f, biases = 0.0f;
        for (int r = 0; r < rows; r++) {
            const size_t place = (size_t)r * width + c;
            const float slope = to_float(dy[place]), normal = (to_float(x[place]) - mean[r]) * rstd[r];
            const float change = rstd[r] * (slope * gain[c] - mean_g[r] - normal * mean_gx[r]);
            dx_acc[place] = convert<X>(to_float(dx_acc[place]) + change);
            gains += slope * normal;
            biases += slope;
        }
        parts[c] = gains;
        parts[width + c] = biases;
    }
}
