// Idea: a block per new token copies its keys and values to their places in the cache.
// Against: -
// Bound: memory; tokens * width * 4 * sizeof(act) bytes, no FLOPs.
// Needs: any sm_80+; grid (longest span, rows), block 256; keys and values (slots, heads, capacity, head_dim).
// Source: own.
#include "act.cuh"

KERNEL BOUNDS(256, 1) cache_append(act* __restrict__ keys, act* __restrict__ values, const act* __restrict__ qkv,
                                   const u32* __restrict__ bounds, const u32* __restrict__ slots,
                                   const u32* __restrict__ positions, int capacity, int heads, int head_dim) {
    const int t = blockIdx.x, row = blockIdx.y;
    const int start = bounds[2 * row], end = bounds[2 * row + 1];
    if (t >= end - start) return;
    const int width = heads * head_dim, place = positions[start] + t;
    const act* from = qkv + (size_t)(start + t) * 3 * width + width;
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        const int head = c / head_dim, d = c % head_dim;
        const size_t to = (((size_t)slots[row] * heads + head) * capacity + place) * head_dim + d;
        keys[to] = from[c];
        values[to] = from[width + c];
    }
}
