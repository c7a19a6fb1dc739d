// A product of matrices of bf16 with cp.async, ldmatrix and mma.
//
//   grid (n / 64, m / 64), block (128), dynamic shared memory 29184 bytes
//   mma(float* c, const bf16* a, const bf16* b, int m, int n, int k)
//
// Expected: c[i][j] = the sum over p of a[i][p] * b[p][j]; all matrices row-major, a of m x k. m and n are multiples of
// 64, k one of 8. A block computes 64 x 64; its four warps 32 x 32 each.
//
// MUTATION 1: waits for one group of copies too few
// MUTATION 2: the copies of other threads are not waited for
// MUTATION 3: rows of a in the wrong order
// MUTATION 4: waits for one group too few, but for all at the end
// MUTATION 5: what lies beyond k is not set to zero
// MUTATION 6: b is not transposed while it is loaded
// MUTATION 7: rows in shared memory that are no multiple of 16 bytes
// MUTATION 8: the copies are closed into groups only where there are any
#include "device.cuh"

constexpr int TILE = 64, DEPTH = 32, STAGES = 3;
// Eight more values a row, so that the rows of ldmatrix lie in different banks.
#if MUTATION == 7
constexpr int A_PITCH = DEPTH + 4, B_PITCH = TILE + 8;
#else
constexpr int A_PITCH = DEPTH + 8, B_PITCH = TILE + 8;
#endif
constexpr int A_STAGE = TILE * A_PITCH, B_STAGE = DEPTH * B_PITCH;

DEVICE void copy(bf16* to, const bf16* from, bool valid) {
#if MUTATION == 5
    if (valid) cp_async16(to, from);
#else
    cp_async16_zfill(to, from, valid);
#endif
}

// Starts the copies of 64 x 32 values of a and 32 x 64 of b, 16 bytes each.
DEVICE void load(bf16* a_tile, bf16* b_tile, const bf16* a, const bf16* b, int first, int n, int k) {
    for (int i = threadIdx.x; i < TILE * DEPTH / 8; i += 128) {
        int row = i / (DEPTH / 8), p = i % (DEPTH / 8) * 8;
        copy(a_tile + row * A_PITCH + p, a + (size_t)row * k + first + p, first + p < k);
        row = i / (TILE / 8);
        int column = i % (TILE / 8) * 8;
        copy(b_tile + row * B_PITCH + column, b + (size_t)(first + row) * n + column, first + row < k);
    }
}

KERNEL BOUNDS(128, 1) mma(float* __restrict__ c, const bf16* __restrict__ a, const bf16* __restrict__ b, int m, int n,
                          int k) {
    DYNAMIC_SHARED(bf16, a_tiles);
    bf16* b_tiles = a_tiles + STAGES * A_STAGE;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
    const int steps = (k + DEPTH - 1) / DEPTH;
    a += (size_t)blockIdx.y * TILE * k;
    b += blockIdx.x * TILE;

    float sums[2][4][4] = {};
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) load(a_tiles + s * A_STAGE, b_tiles + s * B_STAGE, a, b, s * DEPTH, n, k);
        cp_async_commit();
    }
    for (int step = 0; step < steps; step++) {
#if MUTATION == 1 || MUTATION == 4
        cp_async_wait<STAGES - 1>();
#else
        cp_async_wait<STAGES - 2>();
#endif
        // Also: all have read the stage that is overwritten next.
#if MUTATION != 2
        __syncthreads();
#endif
        int next = step + STAGES - 1;
        if (next < steps) {
            int s = next % STAGES;
            load(a_tiles + s * A_STAGE, b_tiles + s * B_STAGE, a, b, next * DEPTH, n, k);
#if MUTATION == 8
            cp_async_commit();
        }
#else
        }
        cp_async_commit();
#endif
        const bf16* a_tile = a_tiles + step % STAGES * A_STAGE;
        const bf16* b_tile = b_tiles + step % STAGES * B_STAGE;
        for (int p = 0; p < DEPTH; p += 16) {
            u32 a_part[2][4], b_part[2][4];
            for (int i = 0; i < 2; i++) {
#if MUTATION == 3
                int row = warp_row + i * 16 + lane / 16 * 8 + lane % 8, column = p + lane / 8 % 2 * 8;
#else
                int row = warp_row + i * 16 + lane % 16, column = p + lane / 16 * 8;
#endif
                ldmatrix_x4(a_part[i], a_tile + row * A_PITCH + column);
            }
            for (int j = 0; j < 2; j++) {
                int row = p + lane % 16, column = warp_column + j * 16 + lane / 16 * 8;
#if MUTATION == 6
                ldmatrix_x4(b_part[j], b_tile + row * B_PITCH + column);
#else
                ldmatrix_x4_trans(b_part[j], b_tile + row * B_PITCH + column);
#endif
            }
            for (int i = 0; i < 2; i++) {
                for (int j = 0; j < 4; j++) {
                    mma_bf16_16816(sums[i][j], a_part[i], b_part[j / 2][j % 2 * 2], b_part[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
    }
#if MUTATION == 4
    cp_async_wait<0>();
#endif
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 4; j++) {
            int row = blockIdx.y * TILE + warp_row + i * 16 + lane / 4;
            int column = blockIdx.x * TILE + warp_column + j * 8 + lane % 4 * 2;
            *(float2*)(c + (size_t)row * n + column) = make_float2(sums[i][j][0], sums[i][j][1]);
            *(float2*)(c + (size_t)(row + 8) * n + column) = make_float2(sums[i][j][2], sums[i][j][3]);
        }
    }
}
