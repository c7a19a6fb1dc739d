// Idea: a warp per row.
// Against: -
// Bound: memory; rows * (latent * 16 + 4) bytes, rows * latent * 20 FLOPs.
// Needs: any sm_80+; grid ceil(rows / 4), block 128.
// Source: with r = log_var_q - log_var_p, half the sum of (exp(r) - 1 - r) + (mean_q - mean_p)^2 / var_p; own.
#include "math.cuh"

KERNEL BOUNDS(128, 1) kl_fwd(float* __restrict__ kl, const float* __restrict__ posterior,
                             const float* __restrict__ prior, int rows, int latent) {
    const int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;  // the whole warp
    const float* mean_q = posterior + (size_t)row * 2 * latent;
    const float* mean_p = prior + (size_t)row * 2 * latent;
    float sum = 0.0f;
    for (int c = lane; c < latent; c += 32) {
        const float log_p = mean_p[latent + c], ratio = mean_q[latent + c] - log_p, distance = mean_q[c] - mean_p[c];
        sum += exp_excess(ratio) + distance * distance * expf(-log_p);
    }
    sum = warp_sum(sum);
    if (lane == 0) kl[row] = 0.5f * sum;
}
