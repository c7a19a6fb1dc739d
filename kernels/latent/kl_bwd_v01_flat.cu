// Idea: a thread per dimension of a row.
// Against: -
// Bound: memory; rows * latent * 48 + 4 * latent bytes, rows * latent * 30 FLOPs.
// Needs: any sm_80+; grid ceil(rows * latent / 256), block 256.
// Source: the gradient of kl_fwd; with r = var_q / var_p, which is an exponential: dlog_var_q += w (r - 1) / 2; own.
#include "math.cuh"

KERNEL BOUNDS(256, 1) kl_bwd(float* __restrict__ dposterior_acc, float* __restrict__ dprior_acc,
                             const float* __restrict__ weights, const float* __restrict__ posterior,
                             const float* __restrict__ prior, int rows, int latent) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = i / latent, column = i % latent;
    if (row >= rows) return;
    const size_t mean = (size_t)row * 2 * latent + column, log_var = mean + latent;
    const float weight = weights[column], log_p = prior[log_var], ratio = posterior[log_var] - log_p;
    // exp(ratio) - 1, which would cancel where the Gaussians are near each other.
    const float excess = exp_excess(ratio) + ratio;
    const float distance = posterior[mean] - prior[mean];
    const float slope = distance * expf(-log_p);
    dposterior_acc[mean] += weight * slope;
    dposterior_acc[log_var] += 0.5f * weight * excess;
    dprior_acc[mean] -= weight * slope;
    dprior_acc[log_var] -= 0.5f * weight * (distance * slope + excess);
}
