// Idea: a warp has 256 keys of a head, 32 at a time, 8 lanes a key; keys and values come through a ring in shared memory. A
//       block is one warp: it waits for nobody, and all of a batch are on the device together.
// Against: v03_ahead, whose registers let two blocks on a multiprocessor: with many rows they come in rounds, and between
//          a block's loads and the next one's the memory waits for its sums.
// Bound: memory; as v03.
// Needs: as v03; grid (ceil(capacity / 256), heads, rows), block 32, dynamic shared memory 4 * 4096.
// Source: Dao, Haziza, Massa and Sizov 2023, Flash-Decoding; Milakov and Gimelshein 2018. The order of sums is given by the
//         number of keys alone. Why older keys may be read before `wait_for_previous`: see v03.
#include "attention.cuh"
#include "split.cuh"
#include "vector.cuh"

#define HEAD_DIM 64
#define KEYS 256                 // of a block
#define LANES (HEAD_DIM / 8)     // that share a key, 16 bytes each
#define TOGETHER (32 / LANES)    // keys side by side
#define TURNS 8                  // keys of a lane in a tile, one after the other
#define TILE (TURNS * TOGETHER)  // keys of a tile: as many as lanes
#define SLOTS 4                  // of the ring: a tile's keys or its values
#define LEFT PART_LEN(HEAD_DIM)  // elements of a part

KERNEL BOUNDS(32, 1) attention_decode(act* __restrict__ y, act* keys, act* values, const act* qkv,
                                      const u32* __restrict__ bounds, const u32* __restrict__ slots,
                                      const u32* __restrict__ positions, float* parts, u32* counters, int capacity,
                                      int heads, int) {
    let_next_begin();
    const int block = blockIdx.x, head = blockIdx.y, row = blockIdx.z;
    const int n = bounds[2 * row], slot = slots[row];
    if (n == (int)bounds[2 * row + 1]) return;  // the whole block
    const int count = (int)positions[n] + 1, blocks = (count + KEYS - 1) / KEYS;
    if (block >= blocks) return;  // the whole block
    const int first = block * KEYS, newest = count - 1 - first;  // beyond this block's keys, if it is another's
    const int here = min(KEYS, newest);                          // older keys of this block
    const int group = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES, d = 8 * lane;
    const size_t cached = (((size_t)slot * heads + head) * capacity + first) * HEAD_DIM + d;
    keys += cached;
    values += cached;

    // piece 2 i is the keys of tile i, piece 2 i + 1 its values; of each, a lane copies and reads the same places
    DYNAMIC_SHARED(act, ring);
    auto tile_of = [&](int piece) { return piece / 2 * TILE; };
    auto slot_of = [&](int piece) { return ring + (piece % SLOTS * TILE + group) * HEAD_DIM + d; };
    auto fetch = [&](int piece) {
        const int left = here - tile_of(piece) - group;
        const act* from = (piece % 2 ? values : keys) + (tile_of(piece) + group) * HEAD_DIM;
        act* to = slot_of(piece);
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            const int step = i * TOGETHER;
            cp_async16_zfill(to + step * HEAD_DIM, from + step * HEAD_DIM, step < left);
        }
        cp_async_commit();
    };
    // waits for a piece, and begins another in the place of the one before
    auto next = [&](int piece) {
        cp_async_wait<SLOTS - 2>();
        __syncwarp();
        fetch(piece + SLOTS - 1);
        return (const act*)slot_of(piece);
    };
#pragma unroll 1
    for (int piece = 0; piece < SLOTS - 1; piece++) fetch(piece);
    wait_for_previous();

    float q[8], sums[8] = {}, greatest = -INF, denominator = 0.0f;
    const int width = heads * HEAD_DIM, of_row = row * heads + head;
    const act* query = qkv + (size_t)n * 3 * width + head * HEAD_DIM + d;
    load_eight(q, query);
    const float scale = score_scale(HEAD_DIM);
#pragma unroll
    for (int e = 0; e < 8; e++) q[e] *= scale;

#pragma unroll 1
    for (int piece = 0; tile_of(piece) < here; piece += 2) {
        const int left = here - tile_of(piece) - group;
        const act* tile = next(piece);
        float scores[TURNS] = {};
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            float x[8];
            load_eight(x, tile + i * TOGETHER * HEAD_DIM);
#pragma unroll
            for (int e = 0; e < 8; e++) scores[i] = fmaf(q[e], x[e], scores[i]);
        }
        share_sums<LANES / 2, 1>(scores);  // a lane gets the score of the key of its turn
        const float score = lane * TOGETHER < left ? scores[0] : -INF;
        const float top = fmaxf(greatest, warp_max(score));
        const float keep = expf(greatest - top), weight = expf(score - top);
        greatest = top;
        denominator = fmaf(denominator, keep, weight);

        tile = next(piece + 1);
#pragma unroll
        for (int e = 0; e < 8; e++) sums[e] *= keep;
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            const float of_key = __shfl_sync(0xffffffffu, weight, group * LANES + i);
            float x[8];
            load_eight(x, tile + i * TOGETHER * HEAD_DIM);
#pragma unroll
            for (int e = 0; e < 8; e++) sums[e] = fmaf(of_key, x[e], sums[e]);
        }
    }
    cp_async_wait<0>();
    if (newest < KEYS) {  // the newest key has no tile: each group makes its score, the first takes it
        const uint4 key = *(const uint4*)(query + width), value = *(const uint4*)(query + 2 * width);
        float x[8], score = 0.0f;
        unpack(x, key);
#pragma unroll
        for (int e = 0; e < 8; e++) score = fmaf(q[e], x[e], score);
#pragma unroll
        for (int distance = LANES / 2; distance; distance /= 2) score += __shfl_xor_sync(0xffffffffu, score, distance);
        const float top = fmaxf(greatest, score);
        const float keep = expf(greatest - top), weight = group == 0 ? expf(score - top) : 0.0f;
        greatest = top;
        denominator = fmaf(denominator, keep, lane == 0 ? weight : 0.0f);
        unpack(x, value);
#pragma unroll
        for (int e = 0; e < 8; e++) sums[e] = fmaf(weight, x[e], sums[e] * keep);
        if (group == 0) {
            *(uint4*)(keys + newest * HEAD_DIM) = key;
            *(uint4*)(values + newest * HEAD_DIM) = value;
        }
    }
    share_sums<16, LANES>(sums);
    denominator = warp_sum(denominator);

    // lanes have two elements each
    const int mine = d + 2 * group;
    if (blocks == 1) {
        u32* to = (u32*)(y + (size_t)n * width + head * HEAD_DIM + mine);
        *to = pack_bf16x2(sums[0] / denominator, sums[1] / denominator);
        return;
    }
    __shared__ u32 before;
    float *of_head = parts + (size_t)of_row * gridDim.x * LEFT, *part = of_head + (size_t)block * LEFT;
    part[mine] = sums[0];
    part[mine + 1] = sums[1];
    if (threadIdx.x == 0) {
        part[HEAD_DIM] = greatest;
        part[HEAD_DIM + 1] = denominator;
    }
    if (!is_last_block(counters + of_row, blocks, before)) return;
    for (int e = threadIdx.x; e < HEAD_DIM; e += 32) {
        const Part all = combined(of_head, blocks, HEAD_DIM, e);
        y[(size_t)n * width + head * HEAD_DIM + e] = convert<act>(all.sum / all.denominator);
    }
}
