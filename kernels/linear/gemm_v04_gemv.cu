// Idea: for few rows: b passes through registers once, in 16-byte loads, and meets 4 or 8 rows of a at a time.
// Against: v01_tile, v02_mma: no tile of rows that are not there, and the whole device reads b.
// Bound: memory; k * n * sizeof(B) bytes (again, from the L2 cache, for each further 4 or 8 rows), 2 * m * n * k FLOPs.
// Needs: sm_80+, LAYOUT 0 or 1; b and bias are parameters; grid (ceil(m / MOST_ROWS), ceil(n / COLUMNS)), block THREADS.
// Source: own.
#include "gemv.cuh"

KERNEL BOUNDS(THREADS, RESIDENT / THREADS)
    gemm(Out* y, const A* a, const B* __restrict__ b, const float* __restrict__ bias,
         const act* residual, act* __restrict__ u, int gelu, int accumulate, int m, int n, int k,
         int a_stride) {
    let_next_begin();
    const Finish f = make_finish(y, bias, residual, u, gelu, accumulate, m, n);
    multiply_few(f, a, b, blockIdx.x * MOST_ROWS, k, a_stride, [] { wait_for_previous(); });
}
