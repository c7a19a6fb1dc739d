// Boxes of a matrix of f32 squared by mma in tf32: TMA in both directions, also past the edges.
//
//   grid (columns / 16 rounded up, rows / 16 rounded up), block (32), dynamic shared memory 2048 bytes
//   store(TensorMap out, TensorMap x)
//
// Both maps are of f32 matrices of the same size (columns a multiple of 4), boxes of 16 x 16, no swizzle. Expected:
// with X the box of x that a block loads (zero past the edges), the box of out is X X, with the elements of X rounded
// to tf32.
//
// MUTATION 1: the box is stored without waiting for it to be read
// MUTATION 2: the box is overwritten before the store has read it
// MUTATION 3: uses the box before it has landed
// MUTATION 4: the barrier expects a box of the size that is inside of the matrix
#include "device.cuh"

constexpr int BOX = 16;

KERNEL BOUNDS(32, 1) store(GRID_CONSTANT TensorMap out_map, GRID_CONSTANT TensorMap x_map) {
    DYNAMIC_SHARED(float, x);
    __shared__ u64 landed;
    float* out = x + BOX * BOX;
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    const int column = blockIdx.x * BOX, row = blockIdx.y * BOX;

    if (lane == 0) {
        mbarrier_init(&landed, 1);
        mbarrier_fence_init();
#if MUTATION == 4
        mbarrier_arrive_expect_tx(&landed, blockIdx.y + 1 < gridDim.y ? BOX * BOX * 4 : BOX * BOX * 2);
#else
        mbarrier_arrive_expect_tx(&landed, BOX * BOX * 4);
#endif
        tma_load_2d(x, &x_map, &landed, column, row);
    }
    __syncwarp();
#if MUTATION != 3
    mbarrier_wait(&landed, 0);
#endif

    for (int half = 0; half < 2; half++) {
        float sums[4] = {};
        for (int p = 0; p < BOX; p += 8) {
            u32 a[4];
            for (int i = 0; i < 4; i++) a[i] = to_tf32(x[(g + i % 2 * 8) * BOX + p + t + i / 2 * 4]);
            const float* b = x + (p + t) * BOX + half * 8 + g;
            mma_tf32_1688(sums, a, to_tf32(b[0]), to_tf32(b[4 * BOX]));
        }
        for (int i = 0; i < 4; i++) out[(g + i / 2 * 8) * BOX + half * 8 + t * 2 + i % 2] = sums[i];
    }
    fence_proxy_async();
    __syncwarp();
    if (lane == 0) {
        tma_store_2d(&out_map, out, column, row);
        tma_store_commit();
#if MUTATION == 2
        out[0] = INF;
#endif
#if MUTATION != 1
        tma_store_wait<0>();
#endif
    }
}
