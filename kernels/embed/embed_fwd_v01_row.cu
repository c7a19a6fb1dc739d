// Idea: a block per token adds a row of the token table and a row of the position table.
// Against: -
// Bound: memory; tokens * width * (sizeof(X) + sizeof(Y) + 4) + 8 * tokens bytes, tokens * width FLOPs.
// Needs: any sm_80+; grid tokens, block 256.
// Source: own.
#include "act.cuh"

KERNEL BOUNDS(256, 1) embed_fwd(Y* __restrict__ y, const u32* __restrict__ ids, const u32* __restrict__ positions,
                                const X* __restrict__ wte, const float* __restrict__ wpe, int tokens, int width) {
    let_next_begin();
    const int n = blockIdx.x;
    if (n >= tokens) return;
    const X* token = wte + (size_t)ids[n] * width;
    const float* position = wpe + (size_t)positions[n] * width;
    wait_for_previous();
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        y[(size_t)n * width + c] = convert<Y>(to_float(token[c]) + position[c]);
    }
}
