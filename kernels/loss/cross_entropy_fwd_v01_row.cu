// Idea: a block per token reads its logits twice: for the maximum, for the sum of exponentials.
// Against: -
// Bound: memory; tokens * (vocab * 4 + 8) bytes, tokens * vocab * 3 FLOPs and an exponential.
// Needs: any sm_80+; grid tokens, block 256.
// Source: log sum_v exp(x_v) - x_target, shifted by the maximum; own.
#include "reduce.cuh"

KERNEL BOUNDS(256, 1) cross_entropy_fwd(float* __restrict__ loss, const float* __restrict__ logits,
                                        const u32* __restrict__ targets, int tokens, int vocab) {
    __shared__ float shared[8];
    const int n = blockIdx.x;
    if (n >= tokens) return;
    const float* x = logits + (size_t)n * vocab;

    float greatest = -INF, sum = 0.0f;
    for (int v = threadIdx.x; v < vocab; v += blockDim.x) greatest = fmaxf(greatest, x[v]);
    greatest = block_max<8>(greatest, shared);
    for (int v = threadIdx.x; v < vocab; v += blockDim.x) sum += expf(x[v] - greatest);
    sum = block_sum<8>(sum, shared);
    // The difference first: where the target is the greatest, a small loss keeps its digits.
    if (threadIdx.x == 0) loss[n] = (greatest - x[targets[n]]) + logf(sum);
}
