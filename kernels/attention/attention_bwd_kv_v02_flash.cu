// Idea: FlashAttention-2: a warp per 16 keys; tiles of 64 queries by cp.async, scores again, all products by mma.
// Against: v01_warp: tensor cores instead of dot products by shuffles; a query is read once for 64 keys.
// Bound: compute; for a span of T tokens 4 * T * (T + 64) * D FLOPs per head; T / 64 times as many elements read.
// Needs: sm_80+; bf16, D = 64; grid (ceil(longest span / 64), heads, rows), block 128, 65024 bytes.
// Source: Dao 2023 (FlashAttention-2): dv_s = sum_t m_ts p_ts dy_t, dk_s = sum_t g_ts q_t / sqrt(D).
#include "flash.cuh"

struct Shared {
    Tile keys, values, queries[2], slopes[2], outputs;
    float logs[TILE], means[TILE];  // of each query: the logarithm to base 2, and dy y
};

KERNEL BOUNDS(FLASH_THREADS, 3) attention_bwd_kv(bf16* dqkv, const bf16* dy,
                                                 const bf16* y, const float* lse,
                                                 const bf16* qkv, u32 key0, u32 key1, u32 threshold,
                                                 float factor, const u32* __restrict__ bounds, int heads,
                                                 int head_dim) {
    let_next_begin();
    wait_for_previous();
    DYNAMIC_SHARED(Shared, shared);
    Tile(&queries)[2] = shared->queries, (&slopes)[2] = shared->slopes, &outputs = shared->outputs;
    const int tile = blockIdx.x;  // those with the most queries begin first
    const Part at = part_of(qkv, bounds, heads, tile);
    if (at.first >= at.length) return;  // the whole block
    const int thread = threadIdx.x, lane = lane_in_warp(), t = lane % 4;
    const size_t token = (size_t)at.start * at.width + at.head * HEAD;
    const Mask mask = {key0, key1, threshold, factor};
    const int of_warp = 16 * warp_in_block(), key = of_warp + lane / 4;  // and key + 8, in the tile
    const u64 mask_row = (u64)at.start * heads + at.head;

    auto load = [&](int k) {
        load_tile(queries[k % 2], at.of_head + k * TILE * at.stride, at.stride, at.length - k * TILE);
        load_tile(slopes[k % 2], dy + token + (size_t)k * TILE * at.width, at.width, at.length - k * TILE);
    };
    auto load_outputs = [&](int k) {
        load_tile(outputs, y + token + (size_t)k * TILE * at.width, at.width, at.length - k * TILE);
    };
    // A query that is not there has no weight.
    auto load_log = [&](int k) {
        const int n = k * TILE + thread / 2;
        return n < at.length ? lse[mask_row + (u64)n * heads] * LOG2_E : INF;
    };
    load_tile(shared->keys, at.of_head + at.first * at.stride + at.width, at.stride, at.length - at.first);
    load_tile(shared->values, at.of_head + at.first * at.stride + 2 * at.width, at.stride, at.length - at.first);
    load(tile);
    load_outputs(tile);
    float log_sum = load_log(tile);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();

    Product dkeys = {}, dvalues = {};
    const int tiles = (at.length + TILE - 1) / TILE;
    for (int k = tile; k < tiles; k++) {
        const int place = thread / 2 * PITCH + thread % 2 * 32;
        float mean = dot_of_16(slopes[k % 2] + place, outputs + place) +
                     dot_of_16(slopes[k % 2] + place + 16, outputs + place + 16);
        mean += __shfl_xor_sync(0xffffffffu, mean, 1);
        if (thread % 2 == 0) {
            shared->logs[thread / 2] = log_sum;
            shared->means[thread / 2] = mean;
        }
        __syncthreads();  // also: the other stage and the outputs were read
        if (k + 1 < tiles) {
            load(k + 1);
            load_outputs(k + 1);
            log_sum = load_log(k + 1);
        }
        cp_async_commit();
#pragma unroll 1
        for (int part = 0; part < TILE; part += 32) {
            if (k == tile && part + 31 < of_warp) continue;  // none of them sees a key of the warp
            float score[4][4] = {}, slope_v[4][4] = {};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                // Once more each time: registers are scarcer.
                u32 rows[4];
                load_part(rows, shared->keys, i);
                add_transposed<2>(score, rows, queries[k % 2] + part * PITCH, i);
                load_part(rows, shared->values, i);
                add_transposed<2>(slope_v, rows, slopes[k % 2] + part * PITCH, i);
            }
            u32 dropped[4] = {};
            float kept = 1.0f;
            if (mask.threshold != 0) {
                dropped_of_keys<4>(dropped, mask, mask_row + (u64)(k * TILE + part) * heads, heads, at.first + of_warp);
                kept = mask.factor;
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    const int query = part + 8 * j + 2 * t + c;
                    const float log_here = shared->logs[query], mean_here = shared->means[query];
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        float &x = score[j][2 * h + c], &v = slope_v[j][2 * h + c];
                        float weight = exp2_flushed(fmaf(x, SCORE_SCALE * LOG2_E, -log_here));
                        if (k == tile && key + 8 * h > query) weight = 0.0f;
                        const bool drop = dropped[2 * h + c] >> 4 * j & 1;
                        v = weight * ((drop ? 0.0f : v * kept) - mean_here);
                        x = drop ? 0.0f : weight;
                    }
                }
            }
            add_multiplied<2>(dvalues, score, slopes[k % 2] + part * PITCH);
            add_multiplied<2>(dkeys, slope_v, queries[k % 2] + part * PITCH);
        }
        cp_async_wait<0>();
        __syncthreads();
    }
    bf16* to = dqkv + (at.start + at.first) * at.stride + at.head * HEAD;
    const float kept = mask.threshold != 0 ? mask.factor : 1.0f;
    store_rows(to + at.width, at.stride, at.length - at.first, queries[0], dkeys, SCORE_SCALE, SCORE_SCALE);
    store_rows(to + 2 * at.width, at.stride, at.length - at.first, slopes[0], dvalues, kept, kept);
}
