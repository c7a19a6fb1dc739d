// A product of matrices of f32 through tiles in static shared memory.
//
//   grid (ceil(n / 32), ceil(m / 32)), block (64), no dynamic shared memory
//   tile(float* c, const float* a, const float* b, const float* bias, int m, int n, int k)
//
// Expected: c[i][j] = bias[j] + the sum over p of a[i][p] * b[p][j]; all matrices row-major, a of m x k. Any sizes.
//
// MUTATION 1: the tile is overwritten while others still read it
// MUTATION 2: the tile is read before all of it is there
// MUTATION 3: what lies beyond k is not set to zero
#include "device.cuh"

constexpr int TILE = 32, DEPTH = 16;

KERNEL BOUNDS(64, 1) tile(float* __restrict__ c, const float* __restrict__ a, const float* __restrict__ b,
                          const float* __restrict__ bias, int m, int n, int k) {
    __shared__ float a_tile[DEPTH][TILE + 4];
    __shared__ float b_tile[DEPTH][TILE];
    const int column = threadIdx.x % 8 * 4, row = threadIdx.x / 8 * 4;
    const int first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;

    float sums[4][4] = {};
    for (int first = 0; first < k; first += DEPTH) {
        for (int i = threadIdx.x; i < TILE * DEPTH; i += 64) {
            int r = first_row + i / DEPTH, p = first + i % DEPTH;
            int q = first + i / TILE, j = first_column + i % TILE;
#if MUTATION == 3
            if (r < m && p < k) a_tile[i % DEPTH][i / DEPTH] = a[(size_t)r * k + p];
            if (q < k && j < n) b_tile[i / TILE][i % TILE] = b[(size_t)q * n + j];
#else
            a_tile[i % DEPTH][i / DEPTH] = r < m && p < k ? a[(size_t)r * k + p] : 0.0f;
            b_tile[i / TILE][i % TILE] = q < k && j < n ? b[(size_t)q * n + j] : 0.0f;
#endif
        }
#if MUTATION != 2
        __syncthreads();
#endif
        for (int p = 0; p < DEPTH; p++) {
            for (int i = 0; i < 4; i++) {
                for (int j = 0; j < 4; j++) sums[i][j] += a_tile[p][row + i] * b_tile[p][column + j];
            }
        }
#if MUTATION != 1
        __syncthreads();
#endif
    }
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            int r = first_row + row + i, q = first_column + column + j;
            if (r < m && q < n) c[(size_t)r * n + q] = sums[i][j] + bias[q];
        }
    }
}
