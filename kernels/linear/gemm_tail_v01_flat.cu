// Idea: a thread adds up the parts of four values of a tile, in their order.
// Against: -
// Bound: memory; tail * 128 * 128 * 4 * (sharers + 2) bytes, and as many additions as there are values in the parts.
// Needs: any sm_80+; n a multiple of 4; grid (16, tail), block 256; parts (sharers, tail, 128, 128) of the last `tail` tiles.
// Source: own.
#include "product.cuh"

#define SIDE 128

KERNEL BOUNDS(256, 4) gemm_tail(float* y, const float* parts, int accumulate, int m, int n, int tail, int sharers) {
    let_next_begin();
    const int rows = (m + SIDE - 1) / SIDE, columns = (n + SIDE - 1) / SIDE, index = blockIdx.y;
    const TilePlace tile = tile_place(rows * columns - tail + index, rows, columns);
    const int inside = 4 * ((int)blockIdx.x * 256 + (int)threadIdx.x);
    const int row = tile.row * SIDE + inside / SIDE, column = tile.column * SIDE + inside % SIDE;
    wait_for_previous();
    if (row >= m || column >= n) return;
    y += (size_t)row * n + column;
    float sum[4] = {}, x[4];
    if (accumulate) load_values(sum, y);
#pragma unroll 4
    for (int part = 0; part < sharers; part++) {
        load_values(x, parts + ((size_t)part * tail + index) * SIDE * SIDE + inside);
        add_values(sum, x);
    }
    store_values(y, sum);
}
