// Idea: a warp takes several rows, one after the other, and the next is on its way while it has one; gain and bias are in
// shared memory before the first row is there.
// Against: v01_row: one read instead of three, shuffles instead of four barriers; a row a warp, which waits for it alone and
// then for gain and bias.
// Bound: memory; tokens * width * (sizeof(X) + sizeof(Y)) + 8 * (tokens + width) bytes, tokens * width * 8 FLOPs.
// Needs: any sm_80+; width <= 1024 and a multiple of 8; grid at most ceil(tokens / 4), block 128.
// Source: Ba et al. 2016; the variance around the mean as in v01.
#include "vector.cuh"

KERNEL BOUNDS(128, 4) layernorm_fwd(Y* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd,
                                    const X* x, const float* __restrict__ gain,
                                    const float* __restrict__ bias, float epsilon, int tokens, int width) {
    let_next_begin();
    __shared__ __align__(16) float factors[ROW_WIDTH], offsets[ROW_WIDTH];
    for (int c = 4 * (int)threadIdx.x; c < width; c += 4 * 128) {
        cp_async16(factors + c, gain + c);
        cp_async16(offsets + c, bias + c);
    }
    cp_async_commit();
    wait_for_previous();
    int n = blockIdx.x * 4 + threadIdx.x / 32;
    const int step = gridDim.x * 4;
    PackedRow<X> next;
    if (n < tokens) next = load_row(x + (size_t)n * width, width);
    cp_async_wait<0>();
    __syncthreads();

    const float share = 1.0f / width;
    for (; n < tokens; n += step) {
        const PackedRow<X> packed = next;
        if (n + step < tokens) next = load_row(x + (size_t)(n + step) * width, width);
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

        Y* to = y + (size_t)n * width;
#pragma unroll
        for (int i = 0; i < ROW_VECTORS; i++) {
            if (vector_place(i) >= width) break;
            Vector factor, offset;
            load_reals(factor, factors + vector_place(i));
            load_reals(offset, offsets + vector_place(i));
#pragma unroll
            for (int j = 0; j < VECTOR; j++) row[i][j] = fmaf(row[i][j] * scale, factor[j], offset[j]);
            store_vector(to + vector_place(i), row[i]);
        }
        if (threadIdx.x % 32 == 0) {
            mean[n] = centre;
            rstd[n] = scale;
        }
    }
}
