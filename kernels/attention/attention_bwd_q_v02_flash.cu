// Idea: FlashAttention-2: a warp per 16 queries; tiles of 64 keys by cp.async, scores again, all products by mma.
// Against: v01_warp: tensor cores instead of dot products by shuffles; a key is read once for 64 queries.
// Bound: compute; for a span of T tokens 3 * T * (T + 64) * D FLOPs per head; T / 64 times as many elements read.
// Needs: sm_80+; bf16, D = 64; grid (ceil(longest span / 64), heads, rows), block 128.
// Source: Dao 2023 (FlashAttention-2); dq_t = sum_s g_ts k_s / sqrt(D), g_ts = p_ts (m_ts dy_t v_s - dy_t y_t).
#include "flash.cuh"

KERNEL BOUNDS(FLASH_THREADS, 3) attention_bwd_q(bf16* dqkv, const bf16* dy,
                                                const bf16* y, const float* lse,
                                                const bf16* qkv, u32 key0, u32 key1, u32 threshold,
                                                float factor, const u32* __restrict__ bounds, int heads,
                                                int head_dim) {
    let_next_begin();
    wait_for_previous();
    __shared__ __align__(16) Tile keys[2], values[2];
    // Those with the most keys begin first.
    const int tile = gridDim.x - 1 - blockIdx.x;
    const Part at = part_of(qkv, bounds, heads, tile);
    if (at.first >= at.length) return;  // the whole block
    const int lane = lane_in_warp(), t = lane % 4;
    const bf16* slopes = dy + (size_t)at.start * at.width + at.head * HEAD;
    const bf16* outputs = y + (size_t)at.start * at.width + at.head * HEAD;
    const Mask mask = {key0, key1, threshold, factor};
    const int of_warp = 16 * warp_in_block(), query = of_warp + lane / 4;  // and query + 8, in the tile
    const u64 mask_row = mask_row_of(at, query);

    auto load = [&](int k) { load_keys(keys[k % 2], values[k % 2], at, k); };
    // Queries and slopes pass through the second stage.
    load_tile(keys[1], at.of_head + at.first * at.stride, at.stride, at.length - at.first);
    load_tile(values[1], slopes + (size_t)at.first * at.width, at.width, at.length - at.first);
    load(0);
    float log_sum[2], mean[2];  // the logarithm to base 2
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int n = at.first + query + 8 * h;
        const bool inside = n < at.length;
        log_sum[h] = inside ? lse[mask_row + 8 * h * (u64)heads] * LOG2_E : 0.0f;
        const size_t place = (size_t)n * at.width + 16 * t;
        mean[h] = quad_sum(inside ? dot_of_16(slopes + place, outputs + place) : 0.0f);
    }
    cp_async_wait<0>();
    __syncthreads();
    Operand q, slope;
    load_operand(q, keys[1]);
    load_operand(slope, values[1]);
    __syncthreads();

    Product sums = {};
    for (int k = 0; k <= tile; k++) {
        if (k < tile) load(k + 1);
#pragma unroll 1
        for (int part = 0; part < TILE; part += 32) {
            if (k == tile && part > of_warp + 15) break;  // no query of the warp sees them
            float score[4][4], slope_v[4][4];
            multiply_transposed<2>(score, q, keys[k % 2] + part * PITCH);
            multiply_transposed<2>(slope_v, slope, values[k % 2] + part * PITCH);
            if (mask.threshold != 0) {
                u32 dropped[2];
                dropped_of_queries<4>(dropped, mask, mask_row, heads, k * TILE + part);
#pragma unroll
                for (int j = 0; j < 4; j++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        slope_v[j][i] = dropped[i / 2] >> (4 * j + i % 2) & 1 ? 0.0f : slope_v[j][i] * mask.factor;
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int h = i / 2, key = part + 8 * j + 2 * t + i % 2;
                    float weight = exp2_flushed(fmaf(score[j][i], SCORE_SCALE * LOG2_E, -log_sum[h]));
                    if (k == tile && key > query + 8 * h) weight = 0.0f;
                    score[j][i] = weight * (slope_v[j][i] - mean[h]);
                }
            }
            add_multiplied<2>(sums, score, keys[k % 2] + part * PITCH);
        }
        if (k < tile) cp_async_wait<0>();
        __syncthreads();
    }
    bf16* to = dqkv + (at.start + at.first) * at.stride + at.head * HEAD;
    store_rows(to, at.stride, at.length - at.first, keys[0], sums, SCORE_SCALE, SCORE_SCALE);
}
