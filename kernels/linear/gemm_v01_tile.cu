// Idea: a block computes a tile of y from tiles of a and b in shared memory; what follows happens in registers.
// Against: -
// Bound: compute; 2 * m * n * k FLOPs in f32; m * k * ceil(n / TILE_N) + k * n * ceil(m / TILE_M) elements read.
// Needs: any sm_80+; grid (ceil(n / TILE_N), ceil(m / TILE_M)), block 256; LAYOUT (0 nn, 1 nt, 2 tn), [ABY]_BF16.
// Source: own; GELU as in Hendrycks and Gimpel 2016, the tanh form.
#include "product.cuh"

#ifndef TILE_M
#define TILE_M 64
#endif
#ifndef TILE_N
#define TILE_N 64
#endif
#ifndef TILE_K
#define TILE_K 16
#endif
// A thread computes every 16th row and column of the tile.
#define THREAD_M (TILE_M / 16)
#define THREAD_N (TILE_N / 16)

// tile[depth][line] = x(line, depth), zero beyond the matrix. If DEPTH_FIRST, x is (lines, k), else (k, lines); its rows
// are `stride` elements apart.
template <bool DEPTH_FIRST, int LINES, class T>
DEVICE void load_tile(float (&tile)[TILE_K][LINES + 1], const T* x, int first_line, int lines, int first_depth, int k,
                      int stride) {
    for (int e = threadIdx.x; e < LINES * TILE_K; e += 256) {
        const int line = DEPTH_FIRST ? e / TILE_K : e % LINES, depth = DEPTH_FIRST ? e % TILE_K : e / LINES;
        const int row = first_line + line, at = first_depth + depth;
        float value = 0.0f;
        if (row < lines && at < k) {
            value = to_float(DEPTH_FIRST ? x[(size_t)row * stride + at] : x[(size_t)at * stride + row]);
        }
        tile[depth][line] = value;
    }
}

KERNEL BOUNDS(256, 2) gemm(Out* y, const A* __restrict__ a, const B* __restrict__ b, const float* __restrict__ bias,
                           const act* residual, act* u, int gelu, int accumulate, int m, int n, int k,
                           int a_stride) {
    __shared__ float a_tile[TILE_K][TILE_M + 1];
    __shared__ float b_tile[TILE_K][TILE_N + 1];
    const int first_row = blockIdx.y * TILE_M, first_column = blockIdx.x * TILE_N;
    const int thread_row = threadIdx.x / 16, thread_column = threadIdx.x % 16;

    float sums[THREAD_M][THREAD_N] = {};
    for (int depth = 0; depth < k; depth += TILE_K) {
        load_tile<LAYOUT != 2, TILE_M>(a_tile, a, first_row, m, depth, k, a_stride);
        load_tile<LAYOUT == 1, TILE_N>(b_tile, b, first_column, n, depth, k, LAYOUT == 1 ? k : n);
        __syncthreads();
#pragma unroll
        for (int d = 0; d < TILE_K; d++) {
            float a_part[THREAD_M], b_part[THREAD_N];
#pragma unroll
            for (int i = 0; i < THREAD_M; i++) a_part[i] = a_tile[d][thread_row + 16 * i];
#pragma unroll
            for (int j = 0; j < THREAD_N; j++) b_part[j] = b_tile[d][thread_column + 16 * j];
#pragma unroll
            for (int i = 0; i < THREAD_M; i++) {
#pragma unroll
                for (int j = 0; j < THREAD_N; j++) sums[i][j] = fmaf(a_part[i], b_part[j], sums[i][j]);
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < THREAD_M; i++) {
        const int row = first_row + thread_row + 16 * i;
#pragma unroll
        for (int j = 0; j < THREAD_N; j++) {
            const int column = first_column + thread_column + 16 * j;
            if (row >= m || column >= n) continue;
            const size_t place = (size_t)row * n + column;
            float value = sums[i][j];
            if (bias) value += bias[column];
            if (u) u[place] = convert<act>(value);
            if (gelu) value = gelu_new(value);
            if (residual) value += to_float(residual[place]);
            if (accumulate) value += to_float(y[place]);
            y[place] = convert<Out>(value);
        }
    }
}
