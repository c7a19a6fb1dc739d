// Idea: 16 warps a span, a token each, whose row is read once, 16 bytes of f32 a lane, for both dot products.
// Against: v01_row: x once instead of twice, twice as many rows under way.
// Bound: memory; tokens * width * 3 * sizeof(act) + 20 * tokens + 4 * rows * width bytes, tokens * width * 10 FLOPs.
// Needs: any sm_80+; width <= 1024 and a multiple of 8; grid rows, block 512; g as v01, but two values a token.
// Source: as v01.
#include "reduce.cuh"
#include "vector.cuh"

#define WARPS 16

KERNEL BOUNDS(32 * WARPS, 1) pool_bwd(act* dx_acc, float* g, const float* dy, const float* scores, const act* x,
                                      const float* __restrict__ w, const u32* __restrict__ bounds, int tokens, int width) {
    let_next_begin();
    __shared__ __align__(16) float slope_of[ROW_WIDTH], weight_of[ROW_WIDTH];
    __shared__ float shared[WARPS];
    const int row = blockIdx.x, thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int start = bounds[2 * row], end = bounds[2 * row + 1];
    for (int c = thread; c < width; c += 32 * WARPS) weight_of[c] = w[c];
    wait_for_previous();
    for (int c = thread; c < width; c += 32 * WARPS) slope_of[c] = dy[(size_t)row * width + c];
    __syncthreads();

    float* dots = g + tokens;
    for (int t = start + warp; t < end; t += WARPS) {
        const PackedRow<act> packed = load_row(x + (size_t)t * width, width);
        float by_slope = 0.0f, by_weight = 0.0f;
#pragma unroll
        for (int i = 0; i < ROW_VECTORS; i++) {
            if (vector_place(i) >= width) break;
            Vector one, slope, weight;
            unpack(one, packed.part[i]);
            load_reals(slope, slope_of + vector_place(i));
            load_reals(weight, weight_of + vector_place(i));
#pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                by_slope = fmaf(one[j], slope[j], by_slope);
                by_weight = fmaf(one[j], weight[j], by_weight);
            }
        }
        by_slope = warp_sum(by_slope);
        by_weight = warp_sum(by_weight);
        if (lane == 0) g[t] = by_slope, dots[t] = by_weight;
    }
    __syncthreads();

    float mean = 0.0f;
    for (int t = start + thread; t < end; t += 32 * WARPS) mean += scores[t] * g[t];
    mean = block_sum<WARPS>(mean, shared);

    for (int t = start + warp; t < end; t += WARPS) {
        act* to = dx_acc + (size_t)t * width;
        const PackedRow<act> packed = load_row((const act*)to, width);
        const float u = tanhf(dots[t]), score = scores[t];
        // The product of sum and difference keeps its digits where u is near 1.
        const float change = score * (g[t] - mean) * ((1.0f + u) * (1.0f - u));
        __syncwarp();  // every lane has read g
        if (lane == 0) g[t] = change;
#pragma unroll
        for (int i = 0; i < ROW_VECTORS; i++) {
            if (vector_place(i) >= width) break;
            Vector sum, slope, weight;
            unpack(sum, packed.part[i]);
            load_reals(slope, slope_of + vector_place(i));
            load_reals(weight, weight_of + vector_place(i));
#pragma unroll
            for (int j = 0; j < VECTOR; j++) sum[j] += fmaf(score, slope[j], change * weight[j]);
            store_vector(to + vector_place(i), sum);
        }
    }
}
