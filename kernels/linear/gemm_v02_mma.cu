// Idea: tensor cores fed from a ring of tiles in shared memory that cp.async fills ahead of use.
// Against: v01_tile: 16 times the arithmetic an instruction, and loads that overlap it.
// Bound: compute; 2 * m * n * k FLOPs in bf16; 2 * (m * k * ceil(n / TILE_N) + k * n * ceil(m / TILE_M)) bytes read.
// Needs: sm_80+, A_BF16, B_BF16; a block of THREADS per tile and part, grid (n, m, SPLITS); STAGES * (A_TILE + B_TILE) *
// 2 bytes shared.
// Source: own; the ring as in CUTLASS's sm_80 kernels.
#include "product.cuh"

#ifndef TILE_M
#define TILE_M 128
#endif
#ifndef TILE_N
#define TILE_N 128
#endif
#ifndef TILE_K
#define TILE_K 32
#endif
#ifndef STAGES
#define STAGES 3
#endif
// Warps along m and n.
#ifndef WARPS_M
#define WARPS_M 2
#endif
#ifndef WARPS_N
#define WARPS_N 4
#endif
#ifndef BLOCKS
#define BLOCKS 2  // at once on a multiprocessor
#endif
#ifndef BATCH
#define BATCH 4  // loads under way together where rows are not aligned
#endif
#define THREADS (32 * WARPS_M * WARPS_N)
#define WARP_M (TILE_M / WARPS_M)
#define WARP_N (TILE_N / WARPS_N)
#define PARTS_M (WARP_M / 16)
#define PARTS_N (WARP_N / 8)
#define A_TILE (TILE_M * TILE_K)
#define B_TILE (TILE_N * TILE_K)

// Where a tile of rows of COLUMNS values has (row, column): in each 128 bytes the 16-byte pieces change places by XOR
// with the row, so that the 8 rows that ldmatrix reads at once lie in different banks.
template <int COLUMNS> DEVICE int place(int row, int column) {
    const int together = COLUMNS < 64 ? 64 / COLUMNS : 1, pieces = COLUMNS < 64 ? COLUMNS / 8 : 8;
    return row * COLUMNS + ((column / 8) ^ (row / together % pieces)) * 8 + column % 8;
}

// Starts to load a tile of an operand, which is (lines, k) if DEPTH_FIRST, else (k, lines), its rows `stride` elements
// apart. The tile has LINES lines and TILE_K steps along k and is stored the same way, zero beyond the matrix, but for
// what lies between its rows, which must be zero. If its rows are ALIGNED to 16 bytes, these are copies in the
// background; if not, two and two values pass through registers, and this waits for them.
template <bool DEPTH_FIRST, int LINES, bool ALIGNED>
DEVICE void fetch(bf16* tile, const bf16* x, int first_line, int lines, int first_depth, int k, int stride) {
    constexpr int ROWS = DEPTH_FIRST ? LINES : TILE_K, COLUMNS = DEPTH_FIRST ? TILE_K : LINES;
    const int first_row = DEPTH_FIRST ? first_line : first_depth, first_column = DEPTH_FIRST ? first_depth : first_line;
    const int rows = DEPTH_FIRST ? lines : k, columns = DEPTH_FIRST ? k : lines;
    if constexpr (ALIGNED) {
        static_assert(ROWS * COLUMNS / 8 % THREADS == 0, "every thread has as many copies");
#pragma unroll
        for (int i = 0; i < ROWS * COLUMNS / 8 / THREADS; i++) {
            const int e = (int)threadIdx.x + i * THREADS, r = e / (COLUMNS / 8), c = e % (COLUMNS / 8) * 8;
            const int row = first_row + r, column = first_column + c;
            const bool valid = row < rows && column < columns;
            cp_async16_zfill(tile + place<COLUMNS>(r, c), valid ? x + (size_t)row * stride + column : x, valid);
        }
    } else {
        static_assert(ROWS * COLUMNS / 2 % (BATCH * THREADS) == 0, "every thread has as many batches");
        const bool even = rows_even(x, stride);
#pragma unroll 1
        for (int first = (int)threadIdx.x; first < ROWS * COLUMNS / 2; first += BATCH * THREADS) {
            u32 pairs[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const int e = first + i * THREADS;
                const int row = first_row + e / (COLUMNS / 2), column = first_column + e % (COLUMNS / 2) * 2;
                const bf16* from = x + (size_t)row * stride + column;
                pairs[i] = 0;
                if (row >= rows || column >= columns) continue;
                if (even) {
                    pairs[i] = *(const u32*)from;
                } else {
                    pairs[i] = from[0].bits | (column + 1 < columns ? (u32)from[1].bits << 16 : 0);
                }
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const int e = first + i * THREADS;
                *(u32*)(tile + place<COLUMNS>(e / (COLUMNS / 2), e % (COLUMNS / 2) * 2)) = pairs[i];
            }
        }
    }
}

typedef float Sums[PARTS_M][4 * PARTS_N];  // fragments

// Adds the product of two tiles, of the parts that are this warp's.
DEVICE void multiply(Sums& sums, const bf16* a, const bf16* b, int first_row, int first_column) {
    const int lane = (int)threadIdx.x % 32, low = lane % 8, mid = lane / 8 % 2 * 8, high = lane / 16 * 8;
#pragma unroll
    for (int depth = 0; depth < TILE_K; depth += 16) {
        u32 a_part[PARTS_M][4], b_part[PARTS_N / 2][4];
#pragma unroll
        for (int i = 0; i < PARTS_M; i++) {
            const int row = first_row + 16 * i;
            if (LAYOUT == 2) {
                ldmatrix_x4_trans(a_part[i], a + place<TILE_M>(depth + high + low, row + mid));
            } else {
                ldmatrix_x4(a_part[i], a + place<TILE_K>(row + mid + low, depth + high));
            }
        }
#pragma unroll
        for (int j = 0; j < PARTS_N / 2; j++) {
            const int column = first_column + 16 * j;
            if (LAYOUT == 1) {
                ldmatrix_x4(b_part[j], b + place<TILE_K>(column + high + low, depth + mid));
            } else {
                ldmatrix_x4_trans(b_part[j], b + place<TILE_N>(depth + mid + low, column + high));
            }
        }
#pragma unroll
        for (int i = 0; i < PARTS_M; i++) {
#pragma unroll
            for (int j = 0; j < PARTS_N; j++) {
                mma_bf16_16816(&sums[i][4 * j], a_part[i], b_part[j / 2][j % 2 * 2], b_part[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
}

template <bool A_ALIGNED, bool B_ALIGNED>
DEVICE void product(Sums& sums, bf16* tiles, const bf16* a, const bf16* b, int m, int n, int k, int a_stride,
                    int tile_row, int tile_column, int first_row, int first_column) {
    bf16 *a_tiles = tiles, *b_tiles = tiles + STAGES * A_TILE;
    const int steps = steps_of_part(k, TILE_K), first_depth = SPLITS > 1 ? (int)blockIdx.z * steps * TILE_K : 0;
    auto load = [&](int stage, int step) {
        const int depth = first_depth + step * TILE_K;
        fetch<LAYOUT != 2, TILE_M, A_ALIGNED>(a_tiles + stage * A_TILE, a, tile_row, m, depth, k, a_stride);
        fetch<LAYOUT == 1, TILE_N, B_ALIGNED>(b_tiles + stage * B_TILE, b, tile_column, n, depth, k,
                                              LAYOUT == 1 ? k : n);
    };
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) load(step, step);
        cp_async_commit();
    }
    int stage = 0, free = STAGES - 1;
    for (int step = 0; step < steps; step++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // the tiles of this step are there, and those of the step before were read
        if (step + STAGES - 1 < steps) load(free, step + STAGES - 1);
        cp_async_commit();
        multiply(sums, a_tiles + stage * A_TILE, b_tiles + stage * B_TILE, first_row, first_column);
        stage = stage + 1 < STAGES ? stage + 1 : 0;
        free = free + 1 < STAGES ? free + 1 : 0;
    }
}

KERNEL BOUNDS(THREADS, BLOCKS) gemm(Out* y, const A* a, const B* b,
                                    const float* __restrict__ bias, const act* residual,
                                    act* __restrict__ u, int gelu, int accumulate, int m, int n, int k,
                                    int a_stride) {
    DYNAMIC_SHARED(bf16, tiles);
    let_next_begin();
    wait_for_previous();
    const TilePlace tile = tile_place(blockIdx.y * gridDim.x + blockIdx.x, gridDim.y, gridDim.x);
    const int warp = (int)threadIdx.x / 32;
    const int tile_row = tile.row * TILE_M, tile_column = tile.column * TILE_N;
    const int first_row = warp / WARPS_N * WARP_M, first_column = warp % WARPS_N * WARP_N;

    if (SPLITS > 1) y += (size_t)blockIdx.z * m * n;
    const Finish f = make_finish(y, bias, residual, u, gelu, accumulate, m, n);
    auto place = [&](int part) {
        return fragment_place(tile_row + first_row + 16 * part, tile_column + first_column);
    };
    Sums sums;
#pragma unroll
    for (int i = 0; i < PARTS_M; i++) begin_fragment(sums[i], f, place(i));
    const bool a_aligned = rows_aligned(a, a_stride), b_aligned = rows_aligned(b, LAYOUT == 1 ? k : n);
    if (a_aligned && b_aligned) {
        product<true, true>(sums, tiles, a, b, m, n, k, a_stride, tile_row, tile_column, first_row, first_column);
    } else if (a_aligned) {
        product<true, false>(sums, tiles, a, b, m, n, k, a_stride, tile_row, tile_column, first_row, first_column);
    } else if (b_aligned) {
        product<false, true>(sums, tiles, a, b, m, n, k, a_stride, tile_row, tile_column, first_row, first_column);
    } else {
        product<false, false>(sums, tiles, a, b, m, n, k, a_stride, tile_row, tile_column, first_row, first_column);
    }

    cp_async_wait<0>();
#pragma unroll 1
    for (int part = 0; part < PARTS_M; part++) {
        finish_fragment<false>(sums[0], f, place(part));
#pragma unroll
        for (int i = 0; i + 1 < PARTS_M; i++) {
#pragma unroll
            for (int j = 0; j < 4 * PARTS_N; j++) sums[i][j] = sums[i + 1][j];
        }
    }
}
