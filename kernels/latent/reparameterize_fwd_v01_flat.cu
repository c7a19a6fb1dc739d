// Idea: a thread per element.
// Against: -
// Bound: memory; rows * latent * 16 bytes, rows * latent * 4 FLOPs.
// Needs: any sm_80+; grid ceil(rows * latent / 256), block 256; eps may be null.
// Source: z = mean + scale eps exp(log_var / 2), the mean alone without eps or scale; Kingma and Welling 2014.
#include "device.cuh"

KERNEL BOUNDS(256, 1) reparameterize_fwd(float* __restrict__ z, const float* __restrict__ gaussian,
                                         const float* __restrict__ eps, float scale, int rows, int latent) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = i / latent, column = i % latent;
    if (row >= rows) return;
    const float* mean = gaussian + (size_t)row * 2 * latent + column;
    float value = *mean;
    // A deviation may overflow, and 0 * inf is not 0.
    if (eps && scale != 0.0f) value = fmaf(scale * eps[i], expf(0.5f * mean[latent]), value);
    z[i] = value;
}
