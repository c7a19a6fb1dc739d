// Idea: FlashAttention-2: a warp per 16 queries; tiles of 64 keys by cp.async, products by mma, online softmax.
// Against: v01_warp: tensor cores instead of dot products by shuffles; a key is read once for 64 queries.
// Bound: compute; for a span of T tokens 2 * T * (T + 64) * D FLOPs per head; T / 64 times as many elements read.
// Needs: sm_80+; bf16, D = 64; grid (ceil(longest span / 64), heads, rows), block 128.
// Source: Dao 2023 (FlashAttention-2).
#include "flash.cuh"

KERNEL BOUNDS(FLASH_THREADS, 4) attention_fwd(bf16* __restrict__ y, float* lse,
                                              const bf16* qkv, u32 key0, u32 key1, u32 threshold,
                                              float factor, const u32* __restrict__ bounds, int heads, int head_dim) {
    let_next_begin();
    wait_for_previous();
    __shared__ __align__(16) Tile queries, keys[2], values[2];
    // Those with the most keys begin first.
    const int tile = gridDim.x - 1 - blockIdx.x;
    const Part at = part_of(qkv, bounds, heads, tile);
    if (at.first >= at.length) return;  // the whole block
    const int lane = lane_in_warp(), t = lane % 4;
    const Mask mask = {key0, key1, threshold, factor};
    const int of_warp = 16 * warp_in_block(), query = of_warp + lane / 4;  // and query + 8, in the tile
    const u64 mask_row = mask_row_of(at, query);

    auto load = [&](int k) { load_keys(keys[k % 2], values[k % 2], at, k); };
    load_tile(queries, at.of_head + at.first * at.stride, at.stride, at.length - at.first);
    load(0);
    cp_async_wait<0>();
    __syncthreads();

    Product sums = {};
    float greatest[2] = {-INF, -INF}, total[2] = {};  // the total of this lane's columns
    for (int k = 0; k <= tile; k++) {
        if (k < tile) load(k + 1);
#pragma unroll 1
        for (int part = 0; part < TILE; part += 32) {
            if (k == tile && part > of_warp + 15) break;  // no query of the warp sees them
            float score[4][4] = {};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                // Once more each time: registers are scarcer.
                u32 rows[4];
                load_part(rows, queries, i);
                add_transposed<2>(score, rows, keys[k % 2] + part * PITCH, i);
            }
            if (k == tile) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (part + 8 * j + 2 * t + i % 2 > query + i / 2 * 8) score[j][i] = -INF;
                    }
                }
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float top = greatest[h], sum = 0.0f;
#pragma unroll
                for (int j = 0; j < 4; j++) top = fmaxf(top, fmaxf(score[j][2 * h], score[j][2 * h + 1]));
                top = quad_max(top);
                const float keep = exp2_flushed((greatest[h] - top) * (SCORE_SCALE * LOG2_E));
                const float shift = top * (SCORE_SCALE * LOG2_E);
                greatest[h] = top;
#pragma unroll
                for (int j = 0; j < 4; j++) {
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float& weight = score[j][2 * h + c];
                        weight = exp2_flushed(fmaf(weight, SCORE_SCALE * LOG2_E, -shift));
                        sum += weight;
                    }
                }
                total[h] = fmaf(total[h], keep, sum);
#pragma unroll
                for (int i = 0; i < HEAD / 8; i++) {
                    sums[i][2 * h] *= keep;
                    sums[i][2 * h + 1] *= keep;
                }
            }
            if (mask.threshold != 0) {
                u32 dropped[2];
                dropped_of_queries<4>(dropped, mask, mask_row, heads, k * TILE + part);
#pragma unroll
                for (int j = 0; j < 4; j++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (dropped[i / 2] >> (4 * j + i % 2) & 1) score[j][i] = 0.0f;
                    }
                }
            }
            add_multiplied<2>(sums, score, values[k % 2] + part * PITCH);
        }
        if (k < tile) {
            cp_async_wait<0>();
            __syncthreads();
        }
    }

    total[0] = quad_sum(total[0]);
    total[1] = quad_sum(total[1]);
    const float kept = mask.threshold != 0 ? mask.factor : 1.0f;
    bf16* to = y + (size_t)(at.start + at.first) * at.width + at.head * HEAD;
    store_rows(to, at.width, at.length - at.first, queries, sums, kept / total[0], kept / total[1]);
    if (t == 0) {
        if (at.first + query < at.length) lse[mask_row] = fmaf(greatest[0], SCORE_SCALE, logf(total[0]));
        if (at.first + query + 8 < at.length) {
            lse[mask_row + 8 * (u64)heads] = fmaf(greatest[1], SCORE_SCALE, logf(total[1]));
        }
    }
}
