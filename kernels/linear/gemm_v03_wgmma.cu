// Idea: a warp has the copy engine fill a ring of tiles, two warpgroups multiply it; a block does tile after tile.
// Against: v02_mma: the multiplying warps neither load nor compute addresses, and read both operands from shared memory.
// Bound: compute; 2 * m * n * k FLOPs in bf16; 2 * (m * k * ceil(n / TILE_N) + k * n * ceil(m / TILE_M)) bytes read.
// Needs: sm_90a, A_BF16, B_BF16, maps; any grid, block THREADS, shared STAGES * (A_TILE + B_TILE) * 2 bytes and, where Y
// is f32, 8 strips of 8 * TILE_N floats; if TAIL, parts (sharers, tail, 128, 128) of the last `tail` tiles.
// Source: own; roles as in CUTLASS's sm_90 kernels; TAIL as the hybrid in Osama et al. 2023, Stream-K.
#include "product.cuh"

// Whether the last tiles, too few for all blocks, are shared: gemm_tail adds up their parts.
#ifndef TAIL
#define TAIL 0
#endif
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

// What a block does at a time: `steps` steps along k, from `first` on, of the sums of a tile, or nothing. It has all of
// them, or leaves a part of them to be added up.
struct Segment {
    int tile, first, steps, part;
    bool has_all;
};

// A matrix of tiles, each of `steps` steps along k; of the last `tail` tiles `sharers` blocks each have a part.
struct Work {
    int rows, columns, steps, tail, sharers;
};

DEVICE Segment part_of(int index, int first_tile, int tiles, int steps, int sharers) {
    const int part = index / tiles, share = (steps + sharers - 1) / sharers;  // the last may lie beyond k: there are zeros
    return {first_tile + index % tiles, part * share, part < sharers ? share : 0, part, false};
}

DEVICE Segment segment_of(const Work& work, int turn) {
    const int index = (int)blockIdx.x + turn * (int)gridDim.x, tiles = work.rows * work.columns;
    if (SPLITS > 1) return part_of(index, 0, tiles, work.steps, SPLITS);
    const int whole = tiles - work.tail;
    if (index < whole) return {index, 0, work.steps, 0, true};
    if (!TAIL || work.tail == 0) return {0, 0, 0, 0, true};
    return part_of(index - whole, whole, work.tail, work.steps, work.sharers);
}

// Where a strip, 8 rows of a warp's part of a tile on their way to memory, has (row, column): by the XOR the pairs of 4 rows
// lie in different banks. (Written from registers, in pieces of 32 bytes, logits took half as long again.)
DEVICE int strip_place(int row, int column) { return row * TILE_N + (column ^ row % 4 * 8); }

// Writes the fragment of 16 rows and TILE_N columns that begins at `first_row` and `first_column`, row by row.
DEVICE void store_rows(float* y, float* strip, const float (&v)[64], const Finish& f, int first_row, int first_column) {
    const int lane = (int)threadIdx.x % 32, column = first_column + 4 * lane;
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int j = 0; j < TILE_N / 8; j++) {
            const float pair[2] = {v[4 * j + 2 * h], v[4 * j + 2 * h + 1]};
            store_values(strip + strip_place(lane / 4, 8 * j + 2 * (lane % 4)), pair);
        }
        __syncwarp();
        float* to = y + (size_t)(first_row + 8 * h) * f.n + column;
#pragma unroll
        for (int r = 0; r < 8; r++, to += f.n) {
            if (first_row + 8 * h + r >= f.m) break;
            float four[4];
            load_values(four, strip + strip_place(r, 4 * lane));
            if (f.in_fours) {
                if (column < f.n) store_values(to, four);
            } else {
                const float left[2] = {four[0], four[1]}, right[2] = {four[2], four[3]};
                if (column < f.n) store_values(to, left);
                if (column + 2 < f.n) store_values(to + 2, right);
            }
        }
        __syncwarp();
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

// What follows the sums of 16 rows.
DEVICE void finish(float (&sums)[64], float* strip, const Finish& f, int first_row, int first_column) {
    const FragmentPlace at = fragment_place(first_row, first_column);
    if constexpr (sizeof(Out) == 4) {
        if (f.u) store_fragment<false>(f.u, sums, f, at);
        if (f.gelu) gelu_values(sums);
        store_rows((float*)f.y, strip, sums, f, first_row, first_column);
    } else if (first_row + 16 <= f.m && first_column + TILE_N <= f.n) {
        finish_fragment<true>(sums, f, at);
    } else {
        finish_fragment<false>(sums, f, at);
    }
}

KERNEL BOUNDS(THREADS, 1)
    gemm(Out* y, const A* a, const B* b, const float* __restrict__ bias, const act* residual,
         act* __restrict__ u, int gelu, int accumulate, int m, int n, int k, int a_stride,
         GRID_CONSTANT TensorMap a_map, GRID_CONSTANT TensorMap b_map
#if TAIL
         ,
         float* parts, int tail, int sharers
#endif
    ) {
    DYNAMIC_SHARED(bf16, a_tiles);
    __shared__ u64 full[STAGES], empty[STAGES];
    bf16* b_tiles = a_tiles + STAGES * A_TILE;
#if !TAIL
    const int tail = 0, sharers = 1;
#endif
    // here it takes no registers
    __shared__ Work work;

    if (threadIdx.x == 0) {
        work = {(m + TILE_M - 1) / TILE_M, (n + TILE_N - 1) / TILE_N, (k + TILE_K - 1) / TILE_K, tail, sharers};
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
        for (int i = 0;; i++) {
            const Segment segment = segment_of(work, i);
            if (segment.steps == 0) return;
            const TilePlace tile = tile_place(segment.tile, work.rows, work.columns);
            for (int step = 0; step < segment.steps; step++, Turn::next(turn)) {
                const int s = turn.stage;
                mbarrier_wait(&empty[s], turn.parity ^ 1);  // in the first round all are empty
                mbarrier_arrive_expect_tx(&full[s], (A_TILE + B_TILE) * sizeof(bf16));
                const int depth = (segment.first + step) * TILE_K;
                fetch<A_TRANSPOSED, TILE_M>(a_tiles + s * A_TILE, &a_map, &full[s], tile.row * TILE_M, depth);
                fetch<B_TRANSPOSED, TILE_N>(b_tiles + s * B_TILE, &b_map, &full[s], tile.column * TILE_N, depth);
            }
        }
    } else {
        reg_alloc<232>();
        const int group = (int)threadIdx.x / 128 - 1, warp = (int)threadIdx.x % 128 / 32, lane = (int)threadIdx.x % 32;
        const int first_line = SHARERS == 2 ? 128 * group : 0, first_turn = SHARERS == 2 ? 0 : group;
#if TAIL
        Finish f = make_finish(y, nullptr, nullptr, nullptr, 0, accumulate, m, n);  // a gradient has nothing else
#else
        Finish f = make_finish(y, bias, residual, u, gelu, accumulate, m, n);
#endif
        f.in_pairs = true, f.in_fours |= sizeof(Out) == 2;  // as `is_tiled` in the registry wants it
        float* strip = (float*)(b_tiles + STAGES * B_TILE) + (4 * group + warp) * 8 * TILE_N;
        if (first_turn > 0) Turn::advance(turn, segment_of(work, 0).steps);
        for (int i = first_turn;; i += 2 / SHARERS) {
            const Segment segment = segment_of(work, i);
            if (segment.steps == 0) return;
            const TilePlace tile = tile_place(segment.tile, work.rows, work.columns);
            int first_row = tile.row * TILE_M + first_line + 16 * warp, first_column = tile.column * TILE_N;
            if (SPLITS > 1) f.y = y + (size_t)segment.part * m * n;
#if TAIL
            f.y = y, f.accumulate = accumulate, f.m = m, f.n = n;
            if (!segment.has_all) {
                const int place = segment.part * work.tail + segment.tile - (work.rows * work.columns - work.tail);
                f.y = parts + (size_t)place * TILE_M * TILE_N, f.accumulate = 0, f.m = TILE_M, f.n = TILE_N;
                first_row -= tile.row * TILE_M, first_column = 0;
            }
#endif
            float sums[2][64];
#pragma unroll
            for (int j = 0; j < 2; j++) begin_fragment(sums[j], f, fragment_place(first_row + 64 * j, first_column));
            if (SHARERS == 1 && i > 0) named_barrier(1 + group, 256);  // the other has its last stage
#pragma unroll
            for (int j = 0; j < 2; j++) wgmma_settle(sums[j]);

            auto multiply_stage = [&] {
                const bf16 *a_tile = a_tiles + turn.stage * A_TILE, *b_tile = b_tiles + turn.stage * B_TILE;
                mbarrier_wait(&full[turn.stage], turn.parity);
                wgmma_fence();
#pragma unroll
                for (int depth = 0; depth < TILE_K; depth += 16) {
                    const u64 b_part = operand<B_TRANSPOSED>(b_tile, 0, depth);
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        const u64 a_part = operand<A_TRANSPOSED>(a_tile, first_line + 64 * j, depth);
                        wgmma_m64n128k16<A_TRANSPOSED, B_TRANSPOSED>(sums[j], a_part, b_part);
                    }
                }
                wgmma_commit();
            };
            multiply_stage();
            wgmma_wait<0>();  // else NVRTC 12.8 lets all others wait, too: it must move what the sums began with
            int before = turn.stage;
            Turn::next(turn);
            for (int step = 1; step < segment.steps; step++, Turn::next(turn)) {
                multiply_stage();
                wgmma_wait<1>();
                if (lane == 0) mbarrier_arrive(&empty[before]);
                before = turn.stage;
            }
            if (SHARERS == 1) {
                const int steps = segment_of(work, i + 1).steps;
                if (steps > 0) named_barrier_arrive(2 - group, 256);
                Turn::advance(turn, steps);  // past the stages of the other
            }
            wgmma_wait<0>();
            if (lane == 0) mbarrier_arrive(&empty[before]);

            // Each instruction takes its turn beside the other warpgroup's wgmma; two passes, for long code costs as well.
#pragma unroll 1
            for (int j = 0; j < 2; j++, first_row += 64) {
                finish(sums[0], strip, f, first_row, first_column);
#pragma unroll
                for (int i = 0; i < 64; i++) sums[0][i] = sums[1][i];
            }
        }
    }
}
