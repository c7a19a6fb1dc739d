// Idea: a block takes four rows through all layers: no row needs another, so only the block waits for itself.
// Against: the same op by op, a dozen launches a layer that are too small to fill the device.
// Bound: the L2 cache, of which each block reads all weights: a layer's are 8 Z (P + Q + Z) bytes, with P and Q the widths
//        that the two nets read, and half as many FLOPs a row.
// Needs: any sm_80+; grid ceil(rows / 4), block 384; any sizes, read 16 bytes at a time where widths are multiples of 4.
// Source: own; formulas as in reparameterize_fwd, kl_fwd and tanh_fwd.
#include "chain.cuh"

#define CHAIN_THREADS 384
#define CHAIN_WARPS (CHAIN_THREADS / 32)

// The rows of this block.
struct ChainRows {
    int first, count;
};

// What a net reads side by side.
struct Parts {
    Part first, second, third;
    int stride;  // of the weights' rows
};

// Lane l gets x W^T of row l / 8 of the block and output first + l % 8.
DEVICE float net(Parts parts, const ChainRows& rows, int first, int outputs) {
    Sums<1> sums = {};
    // parts move up rather than being chosen by an index, which would keep them out of registers
#pragma unroll 1
    for (int left = 3; left; left--) {
        const Part part = parts.first;
        if (part.x) {
            const Part of_rows = {part.x + (size_t)rows.first * part.width, part.w, part.width};
            add_products(sums, of_rows, parts.stride, rows.count, first, outputs);
        }
        parts.first = parts.second;
        parts.second = parts.third;
    }
    return spread_sums(sums.of[0]);
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

KERNEL BOUNDS(CHAIN_THREADS, 1) chain_fwd(const ChainLayer* __restrict__ layers, u32*, int count, int drive,
                                          float scale, int batch, int hidden, int latent) {
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
                const float* eps = layer.eps ? layer.eps + row * latent + column : nullptr;
                layer.z[row * latent + column] = drawn(mean, eps, scale, latent);
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
