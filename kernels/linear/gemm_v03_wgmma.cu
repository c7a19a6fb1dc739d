// Idea: a warp has the copy engine fill a ring of tiles, two warpgroups multiply it; a block does tile after tile.
// Against: v02_mma: the multiplying warps neither load nor compute addresses, and read both operands from shared memory.
// Bound: compute; 2 * m * n * k FLOPs in bf16; 2 * (m * k * ceil(n / TILE_N) + k * n * ceil(m / TILE_M)) bytes read.
// Needs: sm_90a, A_BF16, B_BF16, maps; any grid, block THREADS, shared STAGES * (A_TILE + B_TILE) * 2 bytes
// and 8 strips of 8 * TILE_N floats.
// Source: own; roles as in CUTLASS's sm_90 kernels.
#include "product.cuh"

// 256: the warpgroups share a tile; 128: they take turns, and one finishes its tile while the other multiplies.
#ifndef TILE_M
#define TILE_M 256
#endif
#ifndef STAGES
#define STAGES 4
#endif
#define TILE_N 128
#define TILE_K 64
#define A_TILE (TILE_M * TILE_K)
#define B_TILE (TILE_N * TILE_K)
#define SLAB (64 * 64)  // a box of a transposed operand
#define SHARERS (TILE_M / 128)  // warpgroups
#define THREADS 384
#define A_TRANSPOSED (LAYOUT == 2)
#define B_TRANSPOSED (LAYOUT != 1)

// Starts to load a tile of LINES lines: one box of them, or, of a transposed operand, one for each 64 lines.
template <bool TRANSPOSED, int LINES>
DEVICE void fetch(bf16* tile, const TensorMap* map, u64* barrier, int first_line, int depth) {
    if (TRANSPOSED) {
#pragma unroll
        for (int line = 0; line < LINES; line += 64) {
            tma_load_2d(tile + line / 64 * SLAB, map, barrier, first_line + line, depth);
        }
    } else {
        tma_load_2d(tile, map, barrier, depth, first_line);
    }
}

// The operand of a wgmma: 16 steps along k from `depth` on, of the lines from `line` on, a multiple of 64.
template <bool TRANSPOSED> DEVICE u64 operand(const bf16* tile, int line, int depth) {
    const bf16* first = tile + line / 64 * SLAB;
    return TRANSPOSED ? wgmma_descriptor_mn(first + depth * 64, SLAB * sizeof(bf16))
                      : wgmma_descriptor_k(first + depth);
}

// Leaves 8 rows of sums in a strip: of each 16 the upper or the lower.
DEVICE void leave(float* strip, const float (&sums)[64], int half) {
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < TILE_N / 8; j++) {
        const float both[2] = {sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]};
        store_values(strip + strip_place<TILE_N>(lane / 4, 8 * j + 2 * (lane % 4)), both);
    }
}

// A place in the ring.
struct Turn {
    int stage;
    u32 parity;

    DEVICE void advance(Turn& turn, int steps) {
        const int sum = turn.stage + steps;
        turn.stage = sum % STAGES;
        turn.parity ^= sum / STAGES & 1;
    }
    DEVICE void next(Turn& turn) {
        if (++turn.stage == STAGES) turn.stage = 0, turn.parity ^= 1;
    }
};

KERNEL BOUNDS(THREADS, 1)
    gemm(Out* y, const A* a, const B* b, const float* __restrict__ bias, const act* residual,
         act* __restrict__ u, int gelu, int accumulate, int m, int n, int k, int a_stride,
         GRID_CONSTANT TensorMap a_map, GRID_CONSTANT TensorMap b_map) {
    DYNAMIC_SHARED(bf16, a_tiles);
    __shared__ u64 full[STAGES], empty[STAGES];
    bf16* b_tiles = a_tiles + STAGES * A_TILE;
    const int rows = (m + TILE_M - 1) / TILE_M, columns = (n + TILE_N - 1) / TILE_N, tiles = rows * columns * SPLITS;
    const int steps = steps_of_part(k, TILE_K);

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], 4 * SHARERS);  // warps
        }
        mbarrier_fence_init();
    }
    __syncthreads();
    let_next_begin();
    wait_for_previous();

    Turn turn = {0, 0};
    if (threadIdx.x < 128) {
        reg_dealloc<40>();
        if (threadIdx.x > 0) return;
        for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
            const PartPlace place = part_place(index, rows, columns);
            const TilePlace tile = place.tile;
            for (int step = 0; step < steps; step++, Turn::next(turn)) {
                const int s = turn.stage;
                mbarrier_wait(&empty[s], turn.parity ^ 1);  // in the first round all are empty
                mbarrier_arrive_expect_tx(&full[s], (A_TILE + B_TILE) * sizeof(bf16));
                const int depth = (place.part * steps + step) * TILE_K;
                fetch<A_TRANSPOSED, TILE_M>(a_tiles + s * A_TILE, &a_map, &full[s], tile.row * TILE_M, depth);
                fetch<B_TRANSPOSED, TILE_N>(b_tiles + s * B_TILE, &b_map, &full[s], tile.column * TILE_N, depth);
            }
        }
    } else {
        reg_alloc<232>();
        const int group = (int)threadIdx.x / 128 - 1, warp = (int)threadIdx.x % 128 / 32, lane = (int)threadIdx.x % 32;
        const int first_row = SHARERS == 2 ? 128 * group : 0, first_turn = SHARERS == 2 ? 0 : group;
        float* strip = (float*)(b_tiles + STAGES * B_TILE) + (4 * group + warp) * 8 * TILE_N;
        Finish f = make_finish(y, bias, residual, u, gelu, accumulate, m, n);
        Turn::advance(turn, first_turn * steps);
        for (int index = blockIdx.x + first_turn * gridDim.x; index < tiles; index += 2 / SHARERS * gridDim.x) {
            if (SHARERS == 1 && index >= (int)gridDim.x) named_barrier(1 + group, 256);  // the other has its last stage
            // Zeroed here: NVRTC 12.8 lets each wgmma wait for the one before if the first decides not to add.
            float sums[2][64];
#pragma unroll
            for (int i = 0; i < 64; i++) sums[0][i] = sums[1][i] = 0.0f;
            int before = 0;  // the stage that is being multiplied
            for (int step = 0; step < steps; step++, Turn::next(turn)) {
                const int s = turn.stage;
                mbarrier_wait(&full[s], turn.parity);
                wgmma_fence();
#pragma unroll
                for (int depth = 0; depth < TILE_K; depth += 16) {
                    const u64 b_part = operand<B_TRANSPOSED>(b_tiles + s * B_TILE, 0, depth);
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const u64 a_part = operand<A_TRANSPOSED>(a_tiles + s * A_TILE, first_row + 64 * i, depth);
                        wgmma_m64n128k16<A_TRANSPOSED, B_TRANSPOSED>(sums[i], a_part, b_part);
                    }
                }
                wgmma_commit();
                wgmma_wait<1>();
                if (lane == 0 && step > 0) mbarrier_arrive(&empty[before]);
                before = s;
            }
            if (SHARERS == 1) {
                if (index + (int)gridDim.x < tiles) named_barrier_arrive(2 - group, 256);
                Turn::advance(turn, steps);  // past the stages of the other
            }
            wgmma_wait<0>();
            if (lane == 0) mbarrier_arrive(&empty[before]);

            const PartPlace place = part_place(index, rows, columns);
            const TilePlace tile = place.tile;
            f.y = y + (size_t)place.part * m * n;
            const int row = tile.row * TILE_M + first_row + 16 * warp, column = tile.column * TILE_N;
#pragma unroll 1
            for (int part = 0; part < 4; part++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (i == part) leave(strip, sums[i / 2], i % 2);
                }
                __syncwarp();
                finish_strip<8, TILE_N>(f, strip, row + 64 * (part / 2) + 8 * (part % 2), column);
                __syncwarp();
            }
        }
    }
}
