// Idea: a block per token reads its logits twice, 8 bytes a read: for an online softmax, for the result.
// Against: v01_row: two reads instead of three, the second from the cache; eight reads of a thread under way.
// Bound: memory; tokens * (vocab * 8 + 8) bytes, tokens * vocab * 5 FLOPs and two exponentials.
// Needs: any sm_80+; vocab even; grid tokens, block 512.
// Source: weight (softmax(x) - onehot(target)); softmax.cuh.
#include "softmax.cuh"

KERNEL BOUNDS(SOFTMAX_THREADS, 2) cross_entropy_bwd(float* __restrict__ logits, const u32* __restrict__ targets,
                                                    const float* __restrict__ weights, int tokens, int vocab) {
    __shared__ float shared[SOFTMAX_THREADS / 32];
    const int n = blockIdx.x;
    if (n >= tokens) return;
    float2* row = (float2*)(logits + (size_t)n * vocab);
    const int pairs = vocab / 2, target = targets[n];
    const float weight = weights[n];

    const Softmax of_row = row_softmax(row, pairs, shared);
    const float greatest = of_row.greatest, share = 1.0f / of_row.sum;
    for (int first = threadIdx.x; first < pairs; first += SOFTMAX_READS * SOFTMAX_THREADS) {
        float2 x[SOFTMAX_READS];
        load_pairs(x, row, first, pairs);
#pragma unroll
        for (int j = 0; j < SOFTMAX_READS; j++) {
            const int v = first + j * SOFTMAX_THREADS;
            if (v >= pairs) break;
            const float low = expf(x[j].x - greatest) * share, high = expf(x[j].y - greatest) * share;
            row[v] = make_float2(weight * (2 * v == target ? low - 1.0f : low),
                                 weight * (2 * v + 1 == target ? high - 1.0f : high));
        }
    }
}
