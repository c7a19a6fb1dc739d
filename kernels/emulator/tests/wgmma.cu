// A product of matrices of bf16 with TMA, mbarriers and wgmma. One warpgroup loads, two multiply.
//
//   grid (n / 128, m / 128), block (384), dynamic shared memory 131072 bytes
//   wgmma(float* c, TensorMap a, TensorMap b, int m, int n, int k, int a_transposed, int b_transposed)
//
// Expected: c[i][j] = the sum over p of a(i, p) * b(p, j). m and n are multiples of 128, k one of 8. The maps are of
// bf16 with the 128-byte swizzle:
//   a_transposed 0: a is row-major m x k, box 64 x 128 (columns x rows); 1: a is row-major k x m, box 64 x 64
//   b_transposed 0: b is row-major n x k, box 64 x 128; 1: b is row-major k x n, box 64 x 64
//
// MUTATION 1: multiplies before the tile has landed
// MUTATION 2: loads into a stage that is still in use
// MUTATION 3: expects fewer bytes than are loaded
// MUTATION 4: always waits for the same phase
// MUTATION 5: gives a stage back before wgmma is done with it
// MUTATION 6: a wrong step along k
// MUTATION 7: as 5, but waits for all wgmma at the end
// MUTATION 8: waits for wgmma at the very end only
// MUTATION 9: loads into a stage that is still in use, from the second round on
// MUTATION 10: a wrong distance between the halves of a transposed tile
// MUTATION 11: no wgmma_fence
// MUTATION 12: reads the sums before the last wgmma is done
// MUTATION 13: one warpgroup too few gives stages back
#include "device.cuh"

constexpr int TILE = 128, DEPTH = 64, STAGES = 4;
constexpr int STAGE = TILE * DEPTH;  // values of a tile of either matrix: 16 KiB
constexpr int HALF = STAGE / 2;

// Loads a tile as one box of 128 rows, or, transposed, as two boxes of 64 rows along k, one for each half of m or n.
DEVICE void load(bf16* to, const TensorMap* map, u64* barrier, int first, int p, int transposed) {
    if (transposed) {
        tma_load_2d(to, map, barrier, first, p);
        tma_load_2d(to + HALF, map, barrier, first + 64, p);
    } else {
        tma_load_2d(to, map, barrier, p, first);
    }
}

template <int TRANSPOSED>
DEVICE u64 descriptor(const bf16* tile, int p) {
#if MUTATION == 6
    p *= 2;
#endif
#if MUTATION == 10
    const u32 leading = 1024;
#else
    const u32 leading = HALF * sizeof(bf16);
#endif
    return TRANSPOSED ? wgmma_descriptor_mn(tile + p * 64, leading) : wgmma_descriptor_k(tile + p);
}

template <int A_TRANSPOSED, int B_TRANSPOSED>
DEVICE void multiply(float (&sums)[64], const bf16* a, const bf16* b, u64* full, u64* empty, int steps, int group) {
    for (int step = 0; step < steps; step++) {
        int stage = step % STAGES;
#if MUTATION == 4
        u32 parity = 0;
#else
        u32 parity = step / STAGES & 1;
#endif
#if MUTATION != 1
        mbarrier_wait(&full[stage], parity);
#endif
#if MUTATION != 11
        wgmma_fence();
#endif
        for (int p = 0; p < DEPTH; p += 16) {
            // 64 rows of a for each warpgroup: in either layout, half of the tile.
            u64 a_part = descriptor<A_TRANSPOSED>(a + stage * STAGE + group * HALF, p);
            u64 b_part = descriptor<B_TRANSPOSED>(b + stage * STAGE, p);
            wgmma_m64n128k16<A_TRANSPOSED, B_TRANSPOSED>(sums, a_part, b_part, step + p > 0);
        }
        wgmma_commit();
#if MUTATION == 5 || MUTATION == 7
        wgmma_wait<2>();
#elif MUTATION == 12
        if (step < steps - 1) wgmma_wait<0>();
#elif MUTATION != 8
        wgmma_wait<0>();
#endif
#if MUTATION == 13
        if (threadIdx.x == 128) mbarrier_arrive(&empty[stage]);
#else
        if (threadIdx.x % 128 == 0) mbarrier_arrive(&empty[stage]);
#endif
    }
}

KERNEL BOUNDS(384, 1) wgmma(float* __restrict__ c, GRID_CONSTANT TensorMap a_map, GRID_CONSTANT TensorMap b_map,
                            int m, int n, int k, int a_transposed, int b_transposed) {
    DYNAMIC_SHARED(bf16, a);
    __shared__ u64 full[STAGES], empty[STAGES];
    bf16* b = a + STAGES * STAGE;
    const int steps = (k + DEPTH - 1) / DEPTH;
    const int first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], 2);
        }
        mbarrier_fence_init();
    }
    __syncthreads();

    if (threadIdx.x < 128) {
        reg_dealloc<40>();
        if (threadIdx.x > 0) return;
        for (int step = 0; step < steps; step++) {
            int stage = step % STAGES;
            // The first round finds all stages empty: parity 1 has not begun, so it counts as over.
            u32 parity = (step / STAGES & 1) ^ 1;
#if MUTATION == 9
            if (step < STAGES) mbarrier_wait(&empty[stage], parity);
#elif MUTATION != 2
            mbarrier_wait(&empty[stage], parity);
#endif
#if MUTATION == 3
            mbarrier_arrive_expect_tx(&full[stage], STAGE * sizeof(bf16));
#else
            mbarrier_arrive_expect_tx(&full[stage], 2 * STAGE * sizeof(bf16));
#endif
            load(a + stage * STAGE, &a_map, &full[stage], first_row, step * DEPTH, a_transposed);
            load(b + stage * STAGE, &b_map, &full[stage], first_column, step * DEPTH, b_transposed);
        }
        return;
    }

    reg_alloc<232>();
    const int thread = threadIdx.x % 128, group = threadIdx.x / 128 - 1;
    float sums[64];
    for (int i = 0; i < 64; i++) sums[i] = 0.0f;
    if (a_transposed) {
        if (b_transposed) {
            multiply<1, 1>(sums, a, b, full, empty, steps, group);
        } else {
            multiply<1, 0>(sums, a, b, full, empty, steps, group);
        }
    } else {
        if (b_transposed) {
            multiply<0, 1>(sums, a, b, full, empty, steps, group);
        } else {
            multiply<0, 0>(sums, a, b, full, empty, steps, group);
        }
    }
#if MUTATION == 7 || MUTATION == 8
    wgmma_wait<0>();
#endif
    int row = first_row + group * 64 + thread / 32 * 16 + thread % 32 / 4;
    int column = first_column + thread % 4 * 2;
    for (int j = 0; j < 16; j++) {
        float* to = c + (size_t)row * n + column + j * 8;
        *(float2*)to = make_float2(sums[j * 4], sums[j * 4 + 1]);
        *(float2*)(to + 8 * (size_t)n) = make_float2(sums[j * 4 + 2], sums[j * 4 + 3]);
    }
#if MUTATION == 12
    wgmma_wait<0>();
#endif
}
