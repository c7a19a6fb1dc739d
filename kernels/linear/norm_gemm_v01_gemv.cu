// Idea: gemm_v04_gemv whose blocks each make the layer norm of their rows in shared memory first, a warp a row.
// Against: layernorm_fwd and gemm: one launch less, and b is fetched while the norm is made.
// Bound: memory; k * n * sizeof(B) bytes, 2 * m * n * k FLOPs.
// Needs: sm_80+, LAYOUT 0, A_BF16 = B_BF16; all but x are parameters; k <= 1024, a multiple of 4; grid
// (ceil(m / MOST_ROWS), ceil(n / COLUMNS)), block THREADS.
// Source: own. The norm has the bits of layernorm_fwd_v02_warp.
#include "gemv.cuh"

#define MOST_DEPTH 1024
#define FOURS (MOST_DEPTH / 128)

// Gain and bias of the norm, in shared memory.
struct Parameters {
    float gain[MOST_DEPTH], bias[MOST_DEPTH];
};

DEVICE void load_parameters(Parameters& p, const float* gain, const float* bias, int width) {
    for (int c = threadIdx.x; c < width; c += THREADS) p.gain[c] = gain[c], p.bias[c] = bias[c];
}

// The layer norm of a row by a warp.
DEVICE void normalise(A* y, const float* x, const Parameters& p, float epsilon, int width) {
    const int lane = (int)threadIdx.x % 32;
    float row[FOURS][4] = {}, sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        if (4 * lane + 128 * i < width) load_values(row[i], x + 4 * lane + 128 * i);
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
    norm_gemm(Out* __restrict__ y, const float* x, const float* __restrict__ gain,
              const float* __restrict__ offset, float epsilon, const B* __restrict__ b, const float* __restrict__ bias,
              int gelu, int m, int n, int k) {
    __shared__ __align__(16) A normed[MOST_ROWS * MOST_DEPTH];
    __shared__ __align__(16) Parameters parameters;
    const int first_row = blockIdx.x * MOST_ROWS, warp = (int)threadIdx.x / 32;
    const int rows = m - first_row < MOST_ROWS ? m - first_row : MOST_ROWS;
    auto normalise_rows = [&] {
        load_parameters(parameters, gain, offset, k);
        __syncthreads();
        wait_for_previous();
        if (warp < rows) normalise(normed + warp * k, x + (size_t)(first_row + warp) * k, parameters, epsilon, k);
        __syncthreads();
    };
    let_next_begin();
    const Finish f = {y + (size_t)first_row * n, bias, nullptr, nullptr, gelu, 0, rows, n, false};
    multiply_few(f, normed, b, 0, k, k, normalise_rows);
}
