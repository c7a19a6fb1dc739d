// Idea: a thread per element.
// Against: -
// Bound: memory; rows * latent * 28 bytes, rows * latent * 7 FLOPs.
// Needs: any sm_80+; grid ceil(rows * latent / 256), block 256; eps may be null.
// Source: dmean += dz, dlog_var += dz scale eps exp(log_var / 2) / 2; own.
#include "device.cuh"

KERNEL BOUNDS(256, 1) reparameterize_bwd(float* __restrict__ dgaussian_acc, const float* __restrict__ dz,
                                         const float* __restrict__ gaussian, const float* __restrict__ eps,
                                         float scale, int rows, int latent) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = i / latent, column = i % latent;
    if (row >= rows) return;
    const size_t mean = (size_t)row * 2 * latent + column, log_var = mean + latent;
    dgaussian_acc[mean] += dz[i];
    if (eps && scale != 0.0f) {
        const float noise = 0.5f * scale * eps[i] * expf(0.5f * gaussian[log_var]);
        dgaussian_acc[log_var] += dz[i] * noise;
    }
}
