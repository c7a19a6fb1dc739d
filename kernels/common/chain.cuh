// The chain of latents: what its kernels share. A warp multiplies rows with eight outputs' weights at a time, which makes one
// sum for each of its lanes.
#pragma once
#include "math.cuh"

#define CHAIN_ROWS 4  // of a lane's sums: four rows, eight outputs
#define CHAIN_OUTPUTS 8

// What drives the chain: `Drive` in src/backend/latent.rs.
#define DRIVE_PRIOR 1
#define DRIVE_GIVEN 2

// Where a layer lies: `places` in src/cuda/ops/latent.rs. What a layer does not have is null.
struct ChainLayer {
    const float *prior_net, *posterior_net;  // (2 Z, P), (2 Z, Q)
    const float *hh, *ih;                    // (Z, Z)
    const float *condition, *sentence;       // (rows, C)
    const float* eps;                        // (rows, Z)
    float *state, *z;                        // (rows, Z)
    float *prior, *posterior;                // (rows, 2 Z)
    float* kl;                               // (rows)
};

// A part of what a net reads, with the first column of the weights that it meets; null if the net has no such part.
struct Part {
    const float *x, *w;
    int width;
};

// GROUPS times four rows of eight outputs: the sum of row r and output o of group g is [g][CHAIN_OUTPUTS * r + o].
template <int GROUPS> struct Sums {
    float of[GROUPS][CHAIN_ROWS * CHAIN_OUTPUTS];
};

// Adds x W^T for `rows` rows and for outputs `first` and the seven behind it, as far as this lane has a part in it.
template <int GROUPS>
DEVICE void add_products(Sums<GROUPS>& sums, const Part& part, int stride, int rows, int first, int outputs) {
    const int lane = threadIdx.x % 32, width = part.width;
    const float *x = part.x, *w = part.w + (size_t)first * stride;
    // Behind the last row and the last output are the last again, of which nothing is written.
    u32 row_at[GROUPS * CHAIN_ROWS], weights_at[CHAIN_OUTPUTS];
#pragma unroll
    for (int r = 0; r < GROUPS * CHAIN_ROWS; r++) row_at[r] = min(r, rows - 1) * width;
#pragma unroll
    for (int o = 0; o < CHAIN_OUTPUTS; o++) weights_at[o] = min(o, outputs - 1 - first) * stride;
    auto add = [&](int r, int o, float a, float b) {
        float& sum = sums.of[r / CHAIN_ROWS][CHAIN_OUTPUTS * (r % CHAIN_ROWS) + o];
        sum = fmaf(a, b, sum);
    };
    if (((u64)x | (u64)w | (u64)width * 4 | (u64)stride * 4) % 16 == 0) {
#pragma unroll 1  // the registers are full
        for (int k = 4 * lane; k < width; k += 128) {
            float4 four[GROUPS * CHAIN_ROWS];
#pragma unroll
            for (int r = 0; r < GROUPS * CHAIN_ROWS; r++) four[r] = *(const float4*)(x + row_at[r] + k);
#pragma unroll
            for (int o = 0; o < CHAIN_OUTPUTS; o++) {
                const float4 weights = *(const float4*)(w + weights_at[o] + k);
#pragma unroll
                for (int r = 0; r < GROUPS * CHAIN_ROWS; r++) {
                    add(r, o, four[r].x, weights.x);
                    add(r, o, four[r].y, weights.y);
                    add(r, o, four[r].z, weights.z);
                    add(r, o, four[r].w, weights.w);
                }
            }
        }
        return;
    }
#pragma unroll 1
    for (int k = lane; k < width; k += 32) {
#pragma unroll
        for (int r = 0; r < GROUPS * CHAIN_ROWS; r++) {
            const float one = x[row_at[r] + k];
#pragma unroll
            for (int o = 0; o < CHAIN_OUTPUTS; o++) add(r, o, one, w[weights_at[o] + k]);
        }
    }
}

// Halves the sums that a lane has a part of: of two it keeps one and gives the other to the lane HALF away.
template <int HALF> DEVICE void halve_sums(float* sums) {
    const bool upper = threadIdx.x & HALF;
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        const float low = sums[i], high = sums[i + HALF];
        sums[i] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, HALF);
    }
}

// Adds up what the lanes have of each of 32 sums: lane l gets sum l, of row l / 8 and output l % 8.
DEVICE float spread_sums(float (&sums)[CHAIN_ROWS * CHAIN_OUTPUTS]) {
    halve_sums<16>(sums);
    halve_sums<8>(sums);
    halve_sums<4>(sums);
    halve_sums<2>(sums);
    halve_sums<1>(sums);
    return sums[0];
}

// An element of z, of which `mean` is the mean, and `mean[latent]` the logarithm of the variance; `eps` may be null.
DEVICE float drawn(const float* mean, const float* eps, float scale, int latent) {
    // A deviation may overflow, and 0 * inf is not 0.
    return eps && scale != 0.0f ? fmaf(scale * *eps, expf(0.5f * mean[latent]), *mean) : *mean;
}

// As kl_fwd, a warp a row.
DEVICE float divergence(const float* mean_q, const float* mean_p, int latent) {
    float sum = 0.0f;
    for (int c = threadIdx.x % 32; c < latent; c += 32) {
        const float log_p = mean_p[latent + c], ratio = mean_q[latent + c] - log_p, distance = mean_q[c] - mean_p[c];
        sum += exp_excess(ratio) + distance * distance * expf(-log_p);
    }
    return 0.5f * warp_sum(sum);
}
