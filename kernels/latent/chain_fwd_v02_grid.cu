// Idea: all blocks share a layer's outputs, eight rows each, and wait for each other twice a layer; what the nets read that no
//       state changes, the pooled sentence and condition, is multiplied for all layers beforehand.
// Against: v01_rows, where few blocks read all weights from the L2 cache, each for itself.
// Bound: the L2 cache; a layer's 8 Z (P + Q + Z) bytes of weights once for each eight rows; and two waits a layer.
// Needs: any sm_80+; cooperative, any number of blocks, 256 threads, dynamic shared memory 8 * latent * 4; a counter that is 0.
// Source: own; formulas as in v01. The order of sums is given by the widths alone.
#include "chain.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)
#define GROUPS 2
#define ROWS (GROUPS * CHAIN_ROWS)  // of a block

// What becomes of a product: it is written, or added to what is there, of which the hyperbolic tangent may be written.
#define WRITE 0
#define ADD 1
#define ADD_TANH 2

// A net's product with one part, for eight outputs from `first` on, to y (rows, outputs).
DEVICE void net(float* y, const Part& part, int stride, int rows, int first, int outputs, int what) {
    Sums<GROUPS> sums = {};
    add_products(sums, part, stride, rows, first, outputs);
    const int lane = threadIdx.x % 32, output = first + lane % CHAIN_OUTPUTS;
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const float sum = spread_sums(sums.of[g]);
        const int row = g * CHAIN_ROWS + lane / CHAIN_OUTPUTS;
        if (row >= rows || output >= outputs) continue;
        float* to = y + (size_t)row * outputs + output;
        const float value = what == WRITE ? sum : *to + sum;
        *to = what == ADD_TANH ? tanhf(value) : value;
    }
}

// The first row of a group of a matrix.
template <class T> DEVICE T* at(T* x, int group, int width) { return x + (size_t)group * ROWS * width; }

KERNEL BOUNDS(THREADS, 1) chain_fwd(const ChainLayer* __restrict__ layers, u32* counter, int count, int drive, float scale,
                                    int batch, int hidden, int latent) {
    DYNAMIC_SHARED(float, z);  // (ROWS, latent)
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, both = 2 * latent;
    const int net_groups = (both + CHAIN_OUTPUTS - 1) / CHAIN_OUTPUTS;
    const int state_groups = (latent + CHAIN_OUTPUTS - 1) / CHAIN_OUTPUTS;
    const int posterior_groups = drive == DRIVE_PRIOR ? 0 : net_groups;

    // blocks are divided among groups of rows, and those of one among its outputs
    const int row_groups = (batch + ROWS - 1) / ROWS, sharers = max(1, (int)gridDim.x / row_groups);
    const int at_once = (int)gridDim.x / sharers, sharer = blockIdx.x % sharers;
    const int begin = blockIdx.x / sharers < at_once ? blockIdx.x / sharers : row_groups;
    auto rows_from = [&](int group) { return min(ROWS, batch - group * ROWS); };
    const int first_item = sharer + sharers * warp, step = sharers * WARPS;

    const bool has_condition = layers[0].condition;
    const int of_prior = has_condition ? net_groups : 0, before_sentence = has_condition ? hidden : 0;
    const int prior_stride = before_sentence + latent, posterior_stride = before_sentence + hidden + latent;
    const int hoisted = posterior_groups + of_prior;
    for (int group = begin; group < row_groups; group += at_once) {
        for (int item = first_item; item < count * hoisted; item += step) {
            const ChainLayer& layer = layers[item / hoisted];
            const int which = item % hoisted, rows = rows_from(group);
            const bool of_posterior = which < posterior_groups;
            const int first = CHAIN_OUTPUTS * (of_posterior ? which : which - posterior_groups);
            float* y = at(of_posterior ? layer.posterior : layer.prior, group, both);
            const float* w = of_posterior ? layer.posterior_net : layer.prior_net;
            const int stride = of_posterior ? posterior_stride : prior_stride;
#pragma unroll 1
            for (int p = has_condition ? 0 : 1; p < (of_posterior ? 2 : 1); p++) {
                const float* x = at(p == 0 ? layer.condition : layer.sentence, group, hidden);
                const Part part = {x, p == 0 ? w : w + before_sentence, hidden};
                net(y, part, stride, rows, first, both, p == 1 && has_condition ? ADD : WRITE);
            }
        }
    }
    // of the first layer, a warp adds to the products that it made itself; before those of the others are waits enough

    for (int l = 0; l < count; l++) {
        const ChainLayer& layer = layers[l];
        float* next = l + 1 < count ? layers[l + 1].state : nullptr;
        // the nets, and what the state adds to the next
        const int items = posterior_groups + net_groups + (next ? state_groups : 0);
        for (int group = begin; group < row_groups; group += at_once) {
            const int rows = rows_from(group);
            const float* state = at(layer.state, group, latent);
            for (int item = first_item; item < items; item += step) {
                const int of_nets = item - posterior_groups, of_state = of_nets - net_groups;
                const bool of_posterior = of_nets < 0, of_prior = !of_posterior && of_state < 0;
                const int first = CHAIN_OUTPUTS * (of_posterior ? item : of_prior ? of_nets : of_state);
                const int outputs = of_posterior || of_prior ? both : latent;
                const int stride = of_posterior ? posterior_stride : of_prior ? prior_stride : latent;
                const float* w = of_posterior ? layer.posterior_net : of_prior ? layer.prior_net : layer.hh;
                float* y = of_posterior ? layer.posterior : of_prior ? layer.prior : next;
                const bool added = of_posterior || (of_prior && has_condition);
                const Part part = {state, w + stride - latent, latent};
                net(at(y, group, outputs), part, stride, rows, first, outputs, added ? ADD : WRITE);
            }
        }
        grid_sync(counter);

        for (int group = begin; group < row_groups; group += at_once) {
            const int rows = rows_from(group);
            const float* gaussian = at(drive == DRIVE_PRIOR ? layer.prior : layer.posterior, group, both);
            float* z_rows = at(layer.z, group, latent);
            __syncthreads();  // the z of the rows before was read
            for (int i = thread; i < rows * latent; i += THREADS) {
                const int row = i / latent, column = i % latent;
                if (drive == DRIVE_GIVEN) {
                    z[i] = z_rows[i];
                    continue;
                }
                const float* eps = layer.eps ? at(layer.eps, group, latent) + i : nullptr;
                z[i] = drawn(gaussian + (size_t)row * both + column, eps, scale, latent);
                if (sharer == 0) z_rows[i] = z[i];
            }
            if (drive != DRIVE_PRIOR && sharer == 0 && warp < rows) {
                const size_t row = (size_t)group * ROWS + warp;
                const float kl = divergence(layer.posterior + row * both, layer.prior + row * both, latent);
                if (lane == 0) layer.kl[row] = kl;
            }
            if (!next) continue;
            __syncthreads();
            float* to = at(next, group, latent);
            for (int item = first_item; item < state_groups; item += step) {
                net(to, {z, layer.ih, latent}, latent, rows, CHAIN_OUTPUTS * item, latent, ADD_TANH);
            }
        }
        if (!next) return;
        grid_sync(counter);
    }
}
