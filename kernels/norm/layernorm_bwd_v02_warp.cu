// Idea: a warp per token reads its rows once, 16 bytes a read, and keeps both in registers; no block barrier.
// Against: v01_row: one read of dy and x instead of two, shuffles instead of four barriers.
// Bound: memory; tokens * width * (3 * sizeof(X) + sizeof(Y)) + 8 * tokens bytes, tokens * width * 14 FLOPs.
// Needs: any sm_80+; width <= 1024 and a multiple of 8; grid ceil(tokens / 4), block 128.
// Source: dx += rstd (g - mean(g) - n mean(g n)) with n = (x - mean) rstd and g = dy gain; own.
#include "vector.cuh"

KERNEL BOUNDS(128, 3) layernorm_bwd(X* __restrict__ dx_acc, const Y* __restrict__ dy, const X* __restrict__ x,
                                    const float* __restrict__ mean, const float* __restrict__ rstd,
                                    const float* __restrict__ gain, int tokens, int width) {
    const int n = blockIdx.x * 4 + threadIdx.x / 32;
    if (n >= tokens) return;  // the whole warp
    dx_acc += (size_t)n * width;
    dy += (size_t)n * width;
    x += (size_t)n * width;
    const float centre = mean[n], scale = rstd[n], share = 1.0f / width;

    const PackedRow<X> packed_x = load_row(x, width), packed_dx = load_row((const X*)dx_acc, width);
    const PackedRow<Y> packed_dy = load_row(dy, width);
    RowPart normal, slope;
    float sum_g = 0.0f, sum_gx = 0.0f;
#pragma unroll
    for (int i = 0; i < ROW_VECTORS; i++) {
        Vector factor;
        load_reals(factor, gain + (vector_place(i) < width ? vector_place(i) : 0));
        unpack(normal[i], packed_x.part[i]);
        unpack(slope[i], packed_dy.part[i]);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            normal[i][j] = (normal[i][j] - centre) * scale;
            slope[i][j] *= factor[j];
            sum_g += slope[i][j];
            sum_gx = fmaf(slope[i][j], normal[i][j], sum_gx);
        }
    }
    const float mean_g = warp_sum(sum_g) * share;
    const float mean_gx = warp_sum(sum_gx) * share;

#pragma unroll
    for (int i = 0; i < ROW_VECTORS; i++) {
        if (vector_place(i) >= width) break;
        Vector sum;
        unpack(sum, packed_dx.part[i]);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            sum[j] = fmaf(scale, fmaf(-normal[i][j], mean_gx, slope[i][j] - mean_g), sum[j]);
        }
        store_vector(dx_acc + vector_place(i), sum);
    }
}
