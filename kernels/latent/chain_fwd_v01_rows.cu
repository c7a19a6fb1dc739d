// Idea: a block takes four rows through all layers: no row needs another, so only the block waits for itself. A warp
//       multiplies its rows with eight outputs' weights at a time, which makes one sum for each of its lanes.
// Against: the same op by op, a dozen launches a layer that are too small to fill the device.
// Bound: the L2 cache, of which each block reads all weights: a layer's are 8 Z (P + Q + Z) bytes, with P and Q the widths
//        that the two nets read, and half as many FLOPs a row.
// Needs: any sm_80+; grid ceil(rows / 4), block 384; any sizes, read 16 bytes at a time where widths are multiples of 4.
// Source: own; formulas as in reparameterize_fwd, kl_fwd and tanh_fwd.
#include "math.cuh"

#define CHAIN_ROWS 4
#define CHAIN_OUTPUTS 8
#define CHAIN_THREADS 384
#define CHAIN_WARPS (CHAIN_THREADS / 32)

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

// The rows of this block.
struct ChainRows {
    int first, count;
};

// A part of what a net reads, with the first column of the weights that it meets; null if the net has no such part.
struct Part {
    const float *x, *w;
    int width;
};

// What a net reads side by side.
struct Parts {
    Part first, second, third;
    int stride;  // of the weights' rows
};

// The sum of row r and output o of eight is the one of CHAIN_OUTPUTS * r + o.
typedef float Sums[CHAIN_ROWS * CHAIN_OUTPUTS];

// Adds x W^T for outputs `first` and the seven behind it, as far as this lane has a part in it.
DEVICE void add_products(Sums& sums, const float* x, const float* w, int width, int stride, const ChainRows& rows,
                         int first, int outputs) {
    const int lane = threadIdx.x % 32;
    x += (size_t)rows.first * width;
    w += (size_t)first * stride;
    // Behind the last row and the last output are the last again, of which nothing is written.
    u32 row_at[CHAIN_ROWS], weights_at[CHAIN_OUTPUTS];
#pragma unroll
    for (int r = 0; r < CHAIN_ROWS; r++) row_at[r] = (r < rows.count ? r : rows.count - 1) * width;
#pragma unroll
    for (int o = 0; o < CHAIN_OUTPUTS; o++) {
        weights_at[o] = (first + o < outputs ? o : outputs - 1 - first) * stride;
    }
    if (((u64)x | (u64)w | (u64)width * 4 | (u64)stride * 4) % 16 == 0) {
#pragma unroll 1  // the registers are full
        for (int k = 4 * lane; k < width; k += 128) {
            float4 four[CHAIN_ROWS];
#pragma unroll
            for (int r = 0; r < CHAIN_ROWS; r++) four[r] = *(const float4*)(x + row_at[r] + k);
#pragma unroll
            for (int o = 0; o < CHAIN_OUTPUTS; o++) {
                const float4 weights = *(const float4*)(w + weights_at[o] + k);
#pragma unroll
                for (int r = 0; r < CHAIN_ROWS; r++) {
                    float& sum = sums[CHAIN_OUTPUTS * r + o];
                    sum = fmaf(four[r].x, weights.x, sum);
                    sum = fmaf(four[r].y, weights.y, sum);
                    sum = fmaf(four[r].z, weights.z, sum);
                    sum = fmaf(four[r].w, weights.w, sum);
                }
            }
        }
        return;
    }
#pragma unroll 1
    for (int k = lane; k < width; k += 32) {
#pragma unroll
        for (int r = 0; r < CHAIN_ROWS; r++) {
            const float one = x[row_at[r] + k];
#pragma unroll
            for (int o = 0; o < CHAIN_OUTPUTS; o++) {
                sums[CHAIN_OUTPUTS * r + o] = fmaf(one, w[weights_at[o] + k], sums[CHAIN_OUTPUTS * r + o]);
            }
        }
    }
}

// Halves the sums that a lane has a part of: of two it keeps one and gives the other to the lane HALF away.
template <int HALF> DEVICE void halve_sums(Sums& sums) {
    const bool upper = threadIdx.x & HALF;
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        const float low = sums[i], high = sums[i + HALF];
        sums[i] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, HALF);
    }
}

// Adds up what the lanes have of each sum: lane l gets sum l.
DEVICE float spread_sums(Sums& sums) {
    halve_sums<16>(sums);
    halve_sums<8>(sums);
    halve_sums<4>(sums);
    halve_sums<2>(sums);
    halve_sums<1>(sums);
    return sums[0];
}

// Lane l gets x W^T of row l / 8 of the block and output first + l % 8.
DEVICE float net(Parts parts, const ChainRows& rows, int first, int outputs) {
    Sums sums;
#pragma unroll
    for (int i = 0; i < CHAIN_ROWS * CHAIN_OUTPUTS; i++) sums[i] = 0.0f;
    // parts move up rather than being chosen by an index, which would keep them out of registers
#pragma unroll 1
    for (int left = 3; left; left--) {
        const Part part = parts.first;
        if (part.x) add_products(sums, part.x, part.w, part.width, parts.stride, rows, first, outputs);
        parts.first = parts.second;
        parts.second = parts.third;
    }
    return spread_sums(sums);
}

// A net over [c, r, s], or less of it.
DEVICE Parts net_parts(const float* weights, const float* condition, const float* sentence, const float* state,
                       int hidden, int latent) {
    const int behind_condition = condition ? hidden : 0, before_state = behind_condition + (sentence ? hidden : 0);
    return {{condition, weights, hidden},
            {sentence, weights + behind_condition, hidden},
            {state, weights + before_state, latent},
            before_state + latent};
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

KERNEL BOUNDS(CHAIN_THREADS, 1) chain_fwd(const ChainLayer* __restrict__ layers, int count, int drive, float scale,
                                          int batch, int hidden, int latent) {
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int first_row = blockIdx.x * CHAIN_ROWS, left = batch - first_row;
    const ChainRows rows = {first_row, left < CHAIN_ROWS ? left : CHAIN_ROWS};
    // of each group of outputs, what this lane gets
    const int lane_row = lane / CHAIN_OUTPUTS, lane_output = lane % CHAIN_OUTPUTS;
    const int both = 2 * latent, net_groups = (both + CHAIN_OUTPUTS - 1) / CHAIN_OUTPUTS;
    const int state_groups = (latent + CHAIN_OUTPUTS - 1) / CHAIN_OUTPUTS;

    for (int l = 0; l < count; l++) {
        const ChainLayer& layer = layers[l];
        // the posterior first: its groups take longest
        const int posterior_groups = drive == DRIVE_PRIOR ? 0 : net_groups;
        for (int group = warp; group < posterior_groups + net_groups; group += CHAIN_WARPS) {
            const bool of_posterior = group < posterior_groups;
            const int first = CHAIN_OUTPUTS * (of_posterior ? group : group - posterior_groups);
            const Parts parts = net_parts(of_posterior ? layer.posterior_net : layer.prior_net, layer.condition,
                                          of_posterior ? layer.sentence : nullptr, layer.state, hidden, latent);
            const float value = net(parts, rows, first, both);
            const int output = first + lane_output;
            float* y = of_posterior ? layer.posterior : layer.prior;
            if (lane_row < rows.count && output < both) y[(size_t)(first_row + lane_row) * both + output] = value;
        }
        __syncthreads();

        if (drive != DRIVE_GIVEN) {
            const float* gaussian = drive == DRIVE_PRIOR ? layer.prior : layer.posterior;
            for (int i = thread; i < rows.count * latent; i += CHAIN_THREADS) {
                const size_t row = first_row + i / latent;
                const int column = i % latent;
                const float* mean = gaussian + row * both + column;
                float value = *mean;
                // A deviation may overflow, and 0 * inf is not 0.
                if (layer.eps && scale != 0.0f) {
                    value = fmaf(scale * layer.eps[row * latent + column], expf(0.5f * mean[latent]), value);
                }
                layer.z[row * latent + column] = value;
            }
        }
        if (drive != DRIVE_PRIOR && warp < rows.count) {
            const size_t row = first_row + warp;
            const float kl = divergence(layer.posterior + row * both, layer.prior + row * both, latent);
            if (lane == 0) layer.kl[row] = kl;
        }
        if (l + 1 == count) return;
        __syncthreads();

        float* next = layers[l + 1].state;
        const Parts parts = {{layer.state, layer.hh, latent}, {layer.z, layer.ih, latent}, {nullptr, nullptr, 0}, latent};
        for (int group = warp; group < state_groups; group += CHAIN_WARPS) {
            const int first = CHAIN_OUTPUTS * group, output = first + lane_output;
            const float value = net(parts, rows, first, latent);
            if (lane_row < rows.count && output < latent) next[(size_t)(first_row + lane_row) * latent + output] = tanhf(value);
        }
        __syncthreads();
    }
}
