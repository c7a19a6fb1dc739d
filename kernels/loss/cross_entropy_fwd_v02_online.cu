// Idea: a block per token reads its logits once, 8 bytes a read, with an online softmax.
// Against: v01_row: one read instead of two; eight reads of a thread under way.
// Bound: memory; tokens * (vocab * 4 + 8) bytes, tokens * vocab * 3 FLOPs and an exponential.
// Needs: any sm_80+; vocab even; grid tokens, block 512.
// Source: log sum_v exp(x_v) - x_target, shifted by the maximum; softmax.cuh.
#include "softmax.cuh"

KERNEL BOUNDS(SOFTMAX_THREADS, 2) cross_entropy_fwd(float* __restrict__ loss, const float* __restrict__ logits,
                                                    const u32* __restrict__ targets, int tokens, int vocab) {
    __shared__ float shared[SOFTMAX_THREADS / 32];
    const int n = blockIdx.x;
    if (n >= tokens) return;
    const float* x = logits + (size_t)n * vocab;
    float at_target = 0.0f;
    if (threadIdx.x == 0) at_target = x[targets[n]];
    const Softmax of_row = row_softmax((const float2*)x, vocab / 2, shared);
    // The difference first: where the target is the greatest, a small loss keeps its digits.
    if (threadIdx.x == 0) loss[n] = (of_row.greatest - at_target) + logf(of_row.sum);
}
