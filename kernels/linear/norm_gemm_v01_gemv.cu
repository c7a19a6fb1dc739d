// Idea: gemm_v04_gemv whose blocks each make the layer norm of their rows in shared memory first, a warp a row: of x or,
//       with latents, of x + e, which the first block of the rows keeps.
// Against: fuse_fwd, layernorm_fwd and gemm: two launches less, and b is fetched while the norm is made.
// Bound: memory; k * n * sizeof(B) bytes, 2 * m * n * k FLOPs.
// Needs: sm_80+, LAYOUT 0, A_BF16 = B_BF16; all but x and e are parameters; k <= 1024, a multiple of 4; with latents a slot
//        for each row, and `fused`, which is not x: other blocks still read that; grid (ceil(m / MOST_ROWS),
//        ceil(n / COLUMNS)), block THREADS.
// Source: own. The norm has the bits of layernorm_fwd_v03_stream.
#define MOST_DEPTH 1024
#include "gemv.cuh"

#define FOURS (MOST_DEPTH / 128)

// Gain and bias of the norm, in shared memory.
struct Parameters {
    float gain[MOST_DEPTH], bias[MOST_DEPTH];
};

DEVICE void load_parameters(Parameters& p, const float* gain, const float* bias, int width) {
    for (int c = threadIdx.x; c < width; c += THREADS) p.gain[c] = gain[c], p.bias[c] = bias[c];
}

// The layer norm of a row by a warp: of x, or of x + e, which is left in `fused` if that is wanted.
DEVICE void normalise(A* y, float* fused, const float* x, const float* e, const Parameters& p, float epsilon,
                      int width) {
    const int lane = (int)threadIdx.x % 32;
    float row[FOURS][4] = {}, sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        if (4 * lane + 128 * i < width) load_values(row[i], x + 4 * lane + 128 * i);
    }
    if (e) {
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            float added[4] = {};
            if (4 * lane + 128 * i < width) load_values(added, e + 4 * lane + 128 * i);
#pragma unroll
            for (int j = 0; j < 4; j++) row[i][j] += added[j];
        }
    }
    if (fused) {
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            if (4 * lane + 128 * i < width) store_values(fused + 4 * lane + 128 * i, row[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) sum += row[i][j];
    }
    const float share = 1.0f / width, centre = warp_sum(sum) * share;
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        const bool inside = 4 * lane + 128 * i < width;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            row[i][j] = inside ? row[i][j] - centre : 0.0f;
            squares = fmaf(row[i][j], row[i][j], squares);
        }
    }
    const float scale = rsqrtf(fmaf(warp_sum(squares), share, epsilon));
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        const int place = 4 * lane + 128 * i;
        if (place >= width) continue;
        float factor[4], offset[4];
        load_values(factor, p.gain + place);
        load_values(offset, p.bias + place);
#pragma unroll
        for (int j = 0; j < 4; j++) row[i][j] = fmaf(row[i][j] * scale, factor[j], offset[j]);
        store_values(y + place, row[i]);
    }
}

KERNEL BOUNDS(THREADS, RESIDENT / THREADS)
    norm_gemm(Out* __restrict__ y, float* fused, const float* x, const float* e, const u32* __restrict__ slots,
              const float* __restrict__ gain, const float* __restrict__ offset, float epsilon,
              const B* __restrict__ b, const float* __restrict__ bias, int gelu, int m, int n, int k) {
    __shared__ __align__(16) A normed[MOST_ROWS * MOST_DEPTH];
    __shared__ __align__(16) Parameters parameters;
    const int first_row = blockIdx.x * MOST_ROWS, warp = (int)threadIdx.x / 32;
    const int rows = m - first_row < MOST_ROWS ? m - first_row : MOST_ROWS;
    auto normalise_rows = [&] {
        const int row = first_row + warp;
        load_parameters(parameters, gain, offset, k);
        if (e && warp < rows) {
            e += (size_t)slots[row] * k;
            for (int c = 8 * ((int)threadIdx.x % 32); c < k; c += 8 * 32) prefetch_l2(e + c);
        }
        __syncthreads();
        wait_for_previous();
        if (warp < rows) {
            float* kept = fused && blockIdx.y == 0 ? fused + (size_t)row * k : nullptr;
            normalise(normed + warp * k, kept, x + (size_t)row * k, e, parameters, epsilon, k);
        }
        __syncthreads();
    };
    let_next_begin();
    const Finish f = make_finish(y + (size_t)first_row * n, bias, nullptr, nullptr, gelu, 0, rows, n);
    multiply_few(f, normed, b, 0, k, k, normalise_rows);
}
