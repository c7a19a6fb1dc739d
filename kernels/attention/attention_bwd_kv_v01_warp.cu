// Idea: a warp per key passes over the queries that see it, 32 at a time; a lane makes the weight and slope of one.
// Against: -
// Bound: compute; for a span of T tokens 5 * T * (T + 1) * D FLOPs per head; half as many elements read, cached.
// Needs: any sm_80+; D <= 256; grid (ceil(longest span / 4), heads, rows), block 128.
// Source: Dao et al. 2022: dv_s = sum_t m_ts p_ts dy_t, dk_s = sum_t g_ts q_t / sqrt(D).
#include "attention.cuh"

KERNEL BOUNDS(128, 1) attention_bwd_kv(act* __restrict__ dqkv, const act* __restrict__ dy, const act* __restrict__ y,
                                       const float* __restrict__ lse, const act* __restrict__ qkv, u32 key0, u32 key1,
                                       u32 threshold, float factor, const u32* __restrict__ bounds, int heads,
                                       int head_dim) {
    const int s = blockIdx.x * ATTENTION_WARPS + threadIdx.x / 32, head = blockIdx.y, row = blockIdx.z;
    const int start = bounds[2 * row], length = (int)bounds[2 * row + 1] - start;
    if (s >= length) return;  // the whole warp
    const int width = heads * head_dim, n = start + s, lane = lane_in_warp();
    const size_t stride = 3 * (size_t)width;
    const act* queries = qkv + start * stride + head * head_dim;
    const act* slopes = dy + (size_t)start * width + head * head_dim;
    const act* outputs = y + (size_t)start * width + head * head_dim;
    const Mask mask = {key0, key1, threshold, factor};
    const float scale = score_scale(head_dim);

    HeadPart key, value, dkey, dvalue;
    load_head(key, queries + s * stride + width, head_dim);
    load_head(value, queries + s * stride + 2 * width, head_dim);
    clear_head(dkey);
    clear_head(dvalue);
    for (int first = s; first < length; first += 32) {
        const int queries_here = length - first < 32 ? length - first : 32;
        const int mine = first + lane;
        float score = -INF, slope_v = 0.0f, mean = 0.0f, log_sum = 0.0f, kept = 1.0f;
        for (int j = 0; j < queries_here; j++) {
            HeadPart x, slope;
            load_head(x, queries + (first + j) * stride, head_dim, scale);
            const float dot = dot_head(x, key);
            load_head(slope, slopes + (size_t)(first + j) * width, head_dim);
            const float dot_v = dot_head(slope, value);
            load_head(x, outputs + (size_t)(first + j) * width, head_dim);
            const float dot_y = dot_head(slope, x);
            if (lane == j) {
                score = dot;
                slope_v = dot_v;
                mean = dot_y;
            }
        }
        if (lane < queries_here) {
            const u64 mask_row = (u64)(start + mine) * heads + head;
            log_sum = lse[mask_row];
            if (mask.threshold != 0) kept = mask_factor(mask, mask_row, s);
        }
        const float weight = expf(score - log_sum);
        const float g = weight * (slope_v * kept - mean), masked = weight * kept;
        for (int j = 0; j < queries_here; j++) {
            HeadPart x;
            load_head(x, queries + (first + j) * stride, head_dim, scale);
            add_head(dkey, __shfl_sync(0xffffffffu, g, j), x);
            load_head(x, slopes + (size_t)(first + j) * width, head_dim);
            add_head(dvalue, __shfl_sync(0xffffffffu, masked, j), x);
        }
    }
    act* to = dqkv + n * stride + head * head_dim;
    store_head(to + width, dkey, head_dim);
    store_head(to + 2 * width, dvalue, head_dim);
}
