// Idea: a thread makes four neighbours, from two pairs: rows of x need not begin at multiples of 16 bytes.
// Against: v01_flat: a quarter of the accesses.
// Bound: memory; rows * (columns * sizeof(X) + stride * sizeof(Y)) bytes, no FLOPs.
// Needs: any sm_80+; columns even, stride a multiple of 4; grid rows * ceil(stride / 1024), block 256; X_BF16, Y_BF16.
// Source: own.
#include "values.cuh"

KERNEL BOUNDS(256, 4) cast(Y* __restrict__ y, const X* x, int columns, int stride) {
    let_next_begin();
    wait_for_previous();
    const int blocks = (stride + 1023) / 1024, row = blockIdx.x / blocks;
    const int column = blockIdx.x % blocks * 1024 + 4 * threadIdx.x;
    if (column >= stride) return;
    float low[2] = {}, high[2] = {};
    x += (size_t)row * columns + column;
    if (column < columns) load_values(low, x);
    if (column + 2 < columns) load_values(high, x + 2);
    const float all[4] = {low[0], low[1], high[0], high[1]};
    store_values(y + (size_t)row * stride + column, all);
}
