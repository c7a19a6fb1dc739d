// Idea: a warp per head of a row writes the new token's key and value to the cache, then passes over it as
// attention_cached_v01 does, with the same bits.
// Against: -
// Bound: memory; for each row and head (past + 1) * D * 2 * sizeof(act) bytes and (past + 1) * D * 4 FLOPs.
// Needs: any sm_80+; at most one new token a row; D <= 256; grid (rows, heads), block 32.
// Source: attention.cuh.
#include "attention.cuh"

KERNEL BOUNDS(32, 1) attention_decode(act* __restrict__ y, act* keys, act* values, const act* __restrict__ qkv,
                                      const u32* __restrict__ bounds, const u32* __restrict__ slots,
                                      const u32* __restrict__ positions, float*, u32*, int capacity, int heads,
                                      int head_dim) {
    const int row = blockIdx.x, head = blockIdx.y, n = bounds[2 * row], width = heads * head_dim;
    if (n == (int)bounds[2 * row + 1]) return;  // the whole warp
    const size_t cached = ((size_t)slots[row] * heads + head) * capacity * head_dim;
    const act* query = qkv + (size_t)n * 3 * width + head * head_dim;
    append_to_cache(keys + cached, values + cached, query, (int)positions[n], width, head_dim, threadIdx.x, 32);
    __syncwarp();

    HeadPart q, sums;
    load_head(q, query, head_dim, score_scale(head_dim));
    attend(sums, q, keys + cached, values + cached, head_dim, (int)positions[n] + 1, {0, 0, 0, 1.0f}, 0, head_dim);
    store_head(y + (size_t)n * width + head * head_dim, sums, head_dim);
}
