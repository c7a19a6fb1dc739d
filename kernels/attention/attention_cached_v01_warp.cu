// Idea: a warp per new token passes over the cache as attention_fwd_v01 passes over a span, with the same bits.
// Against: -
// Bound: memory; for each new token and head (past + 1) * D * 2 * sizeof(act) bytes and (past + 1) * D * 4 FLOPs.
// Needs: any sm_80+; D <= 256; grid (ceil(longest span / 4), heads, rows), block 128; the cache has the new keys.
// Source: attention.cuh.
#include "attention.cuh"

KERNEL BOUNDS(128, 1) attention_cached(act* __restrict__ y, const act* __restrict__ keys,
                                       const act* __restrict__ values, const act* __restrict__ qkv,
                                       const u32* __restrict__ bounds, const u32* __restrict__ slots,
                                       const u32* __restrict__ positions, int capacity, int heads, int head_dim) {
    const int t = blockIdx.x * ATTENTION_WARPS + threadIdx.x / 32, head = blockIdx.y, row = blockIdx.z;
    const int start = bounds[2 * row], end = bounds[2 * row + 1];
    if (t >= end - start) return;  // the whole warp
    const int width = heads * head_dim, n = start + t;
    const size_t cached = ((size_t)slots[row] * heads + head) * capacity * head_dim;
    const Mask none = {0, 0, 0, 1.0f};

    HeadPart q, sums;
    load_head(q, qkv + (size_t)n * 3 * width + head * head_dim, head_dim, score_scale(head_dim));
    attend(sums, q, keys + cached, values + cached, head_dim, (int)positions[start] + t + 1, none, 0, head_dim);
    store_head(y + (size_t)n * width + head * head_dim, sums, head_dim);
}
