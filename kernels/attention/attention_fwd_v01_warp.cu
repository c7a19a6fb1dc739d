// Idea: a warp per query passes over its keys 32 at a time with an online softmax; no score leaves the registers.
// Against: -
// Bound: compute; for a span of T tokens 2 * T * (T + 1) * D FLOPs per head; half as many elements read, cached.
// Needs: any sm_80+; D <= 256; grid (ceil(longest span / 4), heads, rows), block 128.
// Source: attention.cuh.
#include "attention.cuh"

KERNEL BOUNDS(128, 1) attention_fwd(act* __restrict__ y, float* __restrict__ lse, const act* __restrict__ qkv,
                                    u32 key0, u32 key1, u32 threshold, float factor, const u32* __restrict__ bounds,
                                    int heads, int head_dim) {
    const int t = blockIdx.x * ATTENTION_WARPS + threadIdx.x / 32, head = blockIdx.y, row = blockIdx.z;
    const int start = bounds[2 * row], end = bounds[2 * row + 1];
    if (t >= end - start) return;  // the whole warp
    const int width = heads * head_dim, n = start + t;
    const size_t stride = 3 * (size_t)width;
    const act* of_head = qkv + head * head_dim;
    const act* keys = of_head + start * stride + width;
    const Mask mask = {key0, key1, threshold, factor};
    const u64 mask_row = (u64)n * heads + head;

    HeadPart q, sums;
    load_head(q, of_head + n * stride, head_dim, score_scale(head_dim));
    const float log_sum = attend(sums, q, keys, keys + width, stride, t + 1, mask, mask_row, head_dim);
    store_head(y + (size_t)n * width + head * head_dim, sums, head_dim);
    if (lane_in_warp() == 0) lse[mask_row] = log_sum;
}
