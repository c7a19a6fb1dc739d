// Idea: v01_tile that has the next tiles on their way to registers while it multiplies, and reads shared memory four at a time.
// Against: v01_tile: no step along k waits for memory, or twice at a barrier.
// Bound: compute; 2 * m * n * k FLOPs in f32; m * k * ceil(n / 64) + k * n * ceil(m / 64) elements read.
// Needs: any sm_80+; grid (ceil(n / 64), ceil(m / 64)), block 256; LAYOUT (0 nn, 1 nt, 2 tn), [ABY]_BF16.
// Source: own.
#include "product.cuh"

#define SIDE 64    // of a tile
#define TILE_K 16
#define SHARE (SIDE * TILE_K / 256)  // of a tile's elements, those that a thread brings
#define ROW (SIDE + 4)

// An operand: if DEPTH_FIRST, x is (lines, k), else (k, lines); its rows are `stride` elements apart.
template <bool DEPTH_FIRST, class T> struct Operand {
    const T* x;
    int first_line, lines, k, stride;
};

// Which line, and which step along k, of a tile the thread's i-th element is: those of neighbours lie side by side.
template <bool DEPTH_FIRST> DEVICE int line_of(int i) {
    const int e = (int)threadIdx.x + 256 * i;
    return DEPTH_FIRST ? e / TILE_K : e % SIDE;
}
template <bool DEPTH_FIRST> DEVICE int depth_of(int i) {
    const int e = (int)threadIdx.x + 256 * i;
    return DEPTH_FIRST ? e % TILE_K : e / SIDE;
}

// This thread's elements of a tile, zero beyond the matrix.
template <bool DEPTH_FIRST, class T>
DEVICE void fetch(float (&share)[SHARE], const Operand<DEPTH_FIRST, T>& operand, int first_depth) {
#pragma unroll
    for (int i = 0; i < SHARE; i++) {
        const int line = operand.first_line + line_of<DEPTH_FIRST>(i), depth = first_depth + depth_of<DEPTH_FIRST>(i);
        const size_t place = DEPTH_FIRST ? (size_t)line * operand.stride + depth : (size_t)depth * operand.stride + line;
        share[i] = line < operand.lines && depth < operand.k ? to_float(operand.x[place]) : 0.0f;
    }
}

template <bool DEPTH_FIRST> DEVICE void place_share(float (&tile)[TILE_K][ROW], const float (&share)[SHARE]) {
#pragma unroll
    for (int i = 0; i < SHARE; i++) tile[depth_of<DEPTH_FIRST>(i)][line_of<DEPTH_FIRST>(i)] = share[i];
}

KERNEL BOUNDS(256, 2) gemm(Out* y, const A* __restrict__ a, const B* __restrict__ b, const float* __restrict__ bias,
                           const act* residual, act* u, int gelu, int accumulate, int m, int n, int k,
                           int a_stride) {
    __shared__ __align__(16) float a_tiles[2][TILE_K][ROW];
    __shared__ __align__(16) float b_tiles[2][TILE_K][ROW];
    constexpr bool A_FIRST = LAYOUT != 2, B_FIRST = LAYOUT == 1;
    const int first_row = blockIdx.y * SIDE, first_column = blockIdx.x * SIDE;
    const Operand<A_FIRST, A> of_a = {a, first_row, m, k, a_stride};
    const Operand<B_FIRST, B> of_b = {b, first_column, n, k, B_FIRST ? k : n};
    const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;

    float a_share[SHARE], b_share[SHARE], sums[4][4] = {};
    fetch(a_share, of_a, 0);
    fetch(b_share, of_b, 0);
    int stage = 0;
    for (int depth = 0; depth < k; depth += TILE_K, stage ^= 1) {
        place_share<A_FIRST>(a_tiles[stage], a_share);
        place_share<B_FIRST>(b_tiles[stage], b_share);
        __syncthreads();  // these tiles are there, and those of the step before the last were read
        if (depth + TILE_K < k) {
            fetch(a_share, of_a, depth + TILE_K);
            fetch(b_share, of_b, depth + TILE_K);
        }
#pragma unroll
        for (int d = 0; d < TILE_K; d++) {
            float a_part[4], b_part[4];
            load_values(a_part, &a_tiles[stage][d][row]);
            load_values(b_part, &b_tiles[stage][d][column]);
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] = fmaf(a_part[i], b_part[j], sums[i][j]);
            }
        }
    }

    const Finish f = make_finish(y, bias, residual, u, gelu, accumulate, m, n);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int y_row = first_row + row + i, y_column = first_column + column;
        if (!is_inside(f, y_row, y_column)) continue;
        const size_t place = (size_t)y_row * n + y_column;
        if (f.in_fours) {
            finish_values(sums[i], f, place, y_column);
            continue;
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float value[1] = {sums[i][j]};
            if (y_column + j < n) finish_values(value, f, place + j, y_column + j);
        }
    }
}
