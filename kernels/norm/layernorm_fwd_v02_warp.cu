// Idea: a warp per token reads its row once, 16 bytes a read, and keeps it in registers; no block barrier.
// Against: v01_row: one read instead of three, shuffles instead of four barriers.
// Bound: memory; tokens * width * (sizeof(X) + sizeof(Y)) + 8 * (tokens + width) bytes, tokens * width * 8 FLOPs.
// Needs: any sm_80+; width <= 1024 and a multiple of 8; grid ceil(tokens / 4), block 128.
// Source: Ba et al. 2016; the variance around the mean as in v01.
#include "vector.cuh"

KERNEL BOUNDS(128, 4) layernorm_fwd(Y* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd,
                                    const X* x, const float* __restrict__ gain,
                                    const float* __restrict__ bias, float epsilon, int tokens, int width) {
    let_next_begin();
    for (int c = 8 * (int)threadIdx.x; c < width; c += 8 * 128) prefetch_l2(gain + c), prefetch_l2(bias + c);
    wait_for_previous();
    const int n = blockIdx.x * 4 + threadIdx.x / 32;
    if (n >= tokens) return;  // the whole warp
    x += (size_t)n * width;
    y += (size_t)n * width;

    const float share = 1.0f / width;
    const PackedRow<X> packed = load_row(x, width);
    RowPart row;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < ROW_VECTORS; i++) {
        unpack(row[i], packed.part[i]);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) sum += row[i][j];
    }
    const float centre = warp_sum(sum) * share;

    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < ROW_VECTORS; i++) {
        const bool inside = vector_place(i) < width;
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            row[i][j] = inside ? row[i][j] - centre : 0.0f;
            squares = fmaf(row[i][j], row[i][j], squares);
        }
    }
    const float scale = rsqrtf(fmaf(warp_sum(squares), share, epsilon));

#pragma unroll
    for (int i = 0; i < ROW_VECTORS; i++) {
        const bool inside = vector_place(i) < width;
        const int place = inside ? vector_place(i) : 0;
        Vector factor, offset;
        load_reals(factor, gain + place);
        load_reals(offset, bias + place);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) row[i][j] = fmaf(row[i][j] * scale, factor[j], offset[j]);
        if (inside) store_vector(y + place, row[i]);
    }
    if (threadIdx.x % 32 == 0) {
        mean[n] = centre;
        rstd[n] = scale;
    }
}
