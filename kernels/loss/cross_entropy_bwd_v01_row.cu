// Idea: a block per token reads its logits three times: for the maximum, for the sum of exponentials, for the result.
// Against: -
// Bound: memory; tokens * (vocab * 8 + 8) bytes, tokens * vocab * 5 FLOPs and an exponential.
// Needs: any sm_80+; grid tokens, block 256.
// Source: weight (softmax(x) - onehot(target)); own.
#include "reduce.cuh"

KERNEL BOUNDS(256, 1) cross_entropy_bwd(float* __restrict__ logits, const u32* __restrict__ targets,
                                        const float* __restrict__ weights, int tokens, int vocab) {
    __shared__ float shared[8];
    const int n = blockIdx.x;
    if (n >= tokens) return;
    float* x = logits + (size_t)n * vocab;
    const int target = targets[n];
    const float weight = weights[n];

    float greatest = -INF, sum = 0.0f;
    for (int v = threadIdx.x; v < vocab; v += blockDim.x) greatest = fmaxf(greatest, x[v]);
    greatest = block_max<8>(greatest, shared);
    for (int v = threadIdx.x; v < vocab; v += blockDim.x) sum += expf(x[v] - greatest);
    sum = block_sum<8>(sum, shared);
    for (int v = threadIdx.x; v < vocab; v += blockDim.x) {
        const float probability = expf(x[v] - greatest) / sum;
        x[v] = weight * (v == target ? probability - 1.0f : probability);
    }
}
