// Idea: a warp has the copy engine fill a ring of tiles, two warpgroups multiply it; a block does tile after tile, or an
//       equal share of all steps of all tiles: of a tile that several blocks share, the last adds up what all have of it.
// Against: v02_mma: the multiplying warps neither load nor compute addresses, and read both operands from shared memory.
// Bound: compute; 2 * m * n * k FLOPs in bf16; 2 * (m * k * ceil(n / TILE_N) + k * n * ceil(m / TILE_M)) bytes read.
// Needs: sm_90a, A_BF16, B_BF16, maps; any grid, block THREADS, shared STAGES * (A_TILE + B_TILE) * 2 bytes. If
// STREAM, parts: two tiles of f32 for each block; counters: one for each tile, 0 before and after.
// Source: own; roles as in CUTLASS's sm_90 kernels; shares as in Osama, Merrill, Cecka, Garland and Owens 2023, Stream-K.
#include "product.cuh"

// Whether each block does an equal share of all steps along k of all tiles, wherever that begins and ends.
#ifndef STREAM
#define STREAM 0
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
static_assert(!STREAM || TILE_M == 128, "a tile of a stream is one warpgroup's");
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

// What a block does at a time: `steps` steps along k, from `first` on, of the sums of a tile, or nothing. Of a tile whose
// sums are shared `of` such segments, this is the one at `place`.
struct Segment {
    int tile, first, steps, place, of;
};

// A matrix of tiles, each of `steps` steps along k.
struct Work {
    int rows, columns, steps;
};

// The block that does this of all steps: block b those from all * b / blocks on.
DEVICE int block_of(u64 step, u64 all) { return (int)(((step + 1) * gridDim.x - 1) / all); }

DEVICE Segment segment_of(const Work& work, int turn) {
    const int tiles = work.rows * work.columns;
    if (!STREAM) {
        const int index = (int)blockIdx.x + turn * (int)gridDim.x, part = index / tiles;
        const int steps = (work.steps + SPLITS - 1) / SPLITS;  // the last ones may lie beyond k, where there are zeros
        return {index % tiles, part * steps, part < SPLITS ? steps : 0, part, SPLITS};
    }
    const u64 all = (u64)tiles * work.steps, first = all * blockIdx.x / gridDim.x;
    const u64 end = all * (blockIdx.x + 1) / gridDim.x;
    const u64 begin = turn == 0 ? first : (first / work.steps + turn) * work.steps;
    if (begin >= end) return {0, 0, 0, 0, 1};
    const u64 tile = begin / work.steps, of_tile = tile * work.steps, next = of_tile + work.steps;
    const int before = block_of(of_tile, all);
    return {(int)tile, (int)(begin - of_tile), (int)((end < next ? end : next) - begin), (int)blockIdx.x - before,
            block_of(next - 1, all) - before + 1};
}

// Values of a tile that a thread of a warpgroup has.
#define VALUES 128

// Where a segment leaves what it has of a tile, in the order of the threads: a block has two such places, one for a tile
// that it begins.
DEVICE float* part_of(float* parts, int block, bool begins) {
    return parts + ((size_t)2 * block + begins) * (TILE_M * TILE_N) + (int)threadIdx.x % 128 * 4;
}

template <int N> DEVICE void leave(float* part, const float (&v)[N], int first) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        const float four[4] = {v[i], v[i + 1], v[i + 2], v[i + 3]};
        store_values(part + (first + i) * 128, four);
    }
}

template <int N> DEVICE void add_left(float (&v)[N], const float* part, int first) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        float four[4];
        load_values(four, part + (first + i) * 128);
#pragma unroll
        for (int j = 0; j < 4; j++) v[i + j] += four[j];
    }
}

// Whether this warpgroup is the last of `of` to come here; it then sees what the others left, and the counter is 0 again.
DEVICE bool is_last(u32* counter, int of, int group, u32& shared) {
    named_barrier(3 + group, 128);
    if (threadIdx.x % 128 == 0) {
        __threadfence();
        shared = atomicAdd(counter, 1u);
        __threadfence();
        if (shared + 1 == (u32)of) *counter = 0;
    }
    named_barrier(3 + group, 128);
    return shared + 1 == (u32)of;
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
         GRID_CONSTANT TensorMap a_map, GRID_CONSTANT TensorMap b_map
#if STREAM
         ,
         float* parts, u32* counters
#endif
    ) {
    DYNAMIC_SHARED(bf16, a_tiles);
    __shared__ u64 full[STAGES], empty[STAGES];
    bf16* b_tiles = a_tiles + STAGES * A_TILE;
    const Work work = {(m + TILE_M - 1) / TILE_M, (n + TILE_N - 1) / TILE_N, (k + TILE_K - 1) / TILE_K};

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
        Finish f = make_finish(y, bias, residual, u, gelu, accumulate, m, n);
        f.in_pairs = true;  // the row of the registry asks for it
        if (first_turn > 0) Turn::advance(turn, segment_of(work, 0).steps);
        for (int i = first_turn;; i += 2 / SHARERS) {
            const Segment segment = segment_of(work, i);
            if (segment.steps == 0) return;
            const TilePlace tile = tile_place(segment.tile, work.rows, work.columns);
            const int first_row = tile.row * TILE_M + first_line + 16 * warp, first_column = tile.column * TILE_N;
            if (SPLITS > 1) f.y = y + (size_t)segment.place * m * n;
            float sums[2][64];
            const Finish added = STREAM && segment.place > 0 ? nothing_added(f) : f;
#pragma unroll
            for (int j = 0; j < 2; j++) begin_fragment(sums[j], added, fragment_place(first_row + 64 * j, first_column));
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

            bool together = false;
#if STREAM
            __shared__ u32 earlier[2];
            if (segment.of > 1) {
                float* part = part_of(parts, blockIdx.x, segment.first == 0);
#pragma unroll
                for (int j = 0; j < 2; j++) leave(part, sums[j], 64 * j);
                if (!is_last(counters + segment.tile, segment.of, group, earlier[group])) continue;
                together = true;
            }
            const int begun_by = (int)blockIdx.x - segment.place;
#endif
#pragma unroll 1
            for (int quarter = 0; quarter < 4; quarter++) {
                float v[VALUES / 4];
                if (together) {
#pragma unroll
                    for (int j = 0; j < VALUES / 4; j++) v[j] = 0.0f;
#if STREAM
#pragma unroll 1
                    for (int other = 0; other < segment.of; other++) {
                        add_left(v, part_of(parts, begun_by + other, other == 0), VALUES / 4 * quarter);
                    }
#endif
                } else {
#pragma unroll
                    for (int q = 0; q < 4; q++) {
#pragma unroll
                        for (int j = 0; j < VALUES / 4; j++) {
                            if (q == quarter) v[j] = sums[q / 2][q % 2 * VALUES / 4 + j];
                        }
                    }
                }
                finish_fragment(v, f, fragment_place(first_row + quarter / 2 * 64, first_column + quarter % 2 * 64));
            }
        }
    }
}
