// Idea: a warp per query passes over its keys again, 32 at a time; a lane makes the slope of one score.
// Against: -
// Bound: compute; for a span of T tokens 3 * T * (T + 1) * D FLOPs per head; half as many elements read, cached.
// Needs: any sm_80+; D <= 256; grid (ceil(longest span / 4), heads, rows), block 128.
// Source: Dao et al. 2022: dq_t = sum_s g_ts k_s / sqrt(D), g_ts = p_ts (m_ts dy_t v_s - dy_t y_t).
#include "attention.cuh"

KERNEL BOUNDS(128, 1) attention_bwd_q(act* __restrict__ dqkv, const act* __restrict__ dy, const act* __restrict__ y,
                                      const float* __restrict__ lse, const act* __restrict__ qkv, u32 key0, u32 key1,
                                      u32 threshold, float factor, const u32* __restrict__ bounds, int heads,
                                      int head_dim) {
    const int t = blockIdx.x * ATTENTION_WARPS + threadIdx.x / 32, head = blockIdx.y, row = blockIdx.z;
    const int start = bounds[2 * row], end = bounds[2 * row + 1];
    if (t >= end - start) return;  // the whole warp
    const int width = heads * head_dim, n = start + t, lane = lane_in_warp();
    const size_t stride = 3 * (size_t)width;
    const act* of_head = qkv + head * head_dim;
    const act* keys = of_head + start * stride + width;
    const act* values = keys + width;
    const Mask mask = {key0, key1, threshold, factor};
    const u64 mask_row = (u64)n * heads + head;
    const float scale = score_scale(head_dim), log_sum = lse[mask_row];

    HeadPart q, slope, x, sums;
    load_head(q, of_head + n * stride, head_dim, scale);
    load_head(slope, dy + (size_t)n * width + head * head_dim, head_dim);
    load_head(x, y + (size_t)n * width + head * head_dim, head_dim);
    const float mean = dot_head(slope, x);
    clear_head(sums);
    for (int first = 0; first <= t; first += 32) {
        const int keys_here = t + 1 - first < 32 ? t + 1 - first : 32;
        float score = -INF, slope_v = 0.0f;
        for (int j = 0; j < keys_here; j++) {
            load_head(x, keys + (first + j) * stride, head_dim);
            const float dot = dot_head(q, x);
            load_head(x, values + (first + j) * stride, head_dim);
            const float dot_v = dot_head(slope, x);
            if (lane == j) {
                score = dot;
                slope_v = dot_v;
            }
        }
        if (mask.threshold != 0) slope_v *= mask_factor(mask, mask_row, first + lane);
        const float g = expf(score - log_sum) * (slope_v - mean);
        for (int j = 0; j < keys_here; j++) {
            load_head(x, keys + (first + j) * stride, head_dim);
            add_head(sums, __shfl_sync(0xffffffffu, g, j), x);
        }
    }
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS; i++) sums[i] *= scale;
    store_head(dqkv + n * stride + head * head_dim, sums, head_dim);
}
